"""Constant vectors of texts, computed once and kept in memory.

What a frozen encoder says of a text, or the pooled embeddings of a frozen LM, never changes while a prompt generator
is trained. When the room is used up nothing is thrown out and further texts are computed anew each time: with data
drawn by epoch every text comes equally often, so the first ones are as good to keep as any.
Shapes: B texts, E features.
"""

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
        self._kept: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self._kept)

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """B texts, at least one -> [B, E] float32 on the CPU, no gradient."""
        new = [text for text in dict.fromkeys(texts) if text not in self._kept]
        fresh: dict[str, Tensor] = {}
        if new:
            with torch.inference_mode(False):  # what is kept while serving must be fit to train on later
                # Cloned, so that a vector which is kept does not hold the memory of its whole batch.
                fresh = {t: v.clone() for t, v in zip(new, self.compute(new).float().cpu(), strict=True)}
        self.found, self.computed = self.found + len(texts) - len(new), self.computed + len(new)
        vectors = torch.stack([fresh[text] if text in fresh else self._kept[text] for text in texts])
        for text in new[: max(0, self.capacity - len(self._kept))]:
            self._kept[text] = fresh[text]
        return vectors
