"""Constant vectors of texts, computed once and kept in memory.

What a frozen encoder says of a text, or the pooled embeddings of a frozen LM, never changes while a prompt generator
is trained. When the room is used up nothing is thrown out and further texts are computed anew each time: with data
drawn by epoch every text comes equally often, so the first ones are as good to keep as any. Texts are known by their
SHA-256, so what is kept stays small however long they are.
Shapes: B texts, E features.
"""

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Compute = Callable[[list[str]], Tensor]
"""B texts -> [B, E], on any device; must not depend on anything that is trained."""

CAPACITY = 50_000  # vectors; 150 MB at E 768


class TextVectors:
    """The vector of any text: looked up, or computed and kept.

    compute: what makes them
    capacity: the most vectors kept
    found, computed: running counts of texts answered from what was kept, and of texts given to `compute`
    """

    def __init__(self, compute: Compute, *, capacity: int = CAPACITY) -> None:
        self.compute, self.capacity = compute, capacity
        self.found = self.computed = 0
        self._kept: dict[bytes, Tensor] = {}

    def __len__(self) -> int:
        return len(self._kept)

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """B texts, at least one -> [B, E] float32 on the CPU, no gradient."""
        keys = [_key(text) for text in texts]
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._kept}
        fresh: dict[bytes, Tensor] = {}
        if new:
            with torch.inference_mode(False):  # what is kept while serving must be fit to train on later
                # Cloned, so that a vector which is kept does not hold the memory of its whole batch.
                vectors = self.compute(list(new.values())).float().cpu()
                fresh = {key: vector.clone() for key, vector in zip(new, vectors, strict=True)}
        self.found, self.computed = self.found + len(texts) - len(new), self.computed + len(new)
        found = torch.stack([fresh[key] if key in fresh else self._kept[key] for key in keys])
        for key in list(fresh)[: max(0, self.capacity - len(self._kept))]:
            self._kept[key] = fresh[key]
        return found


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
