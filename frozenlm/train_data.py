"""Which examples a training step sees: a pure function of (seed, step), so a resumed run needs no sampler state."""

import hashlib
import itertools
from collections.abc import Sequence
from functools import lru_cache

import torch

from frozenlm.errors import ConfigError

SORT_WINDOW = 50
"""Batches that are sorted by length together; wide enough to cut padding, narrow enough to keep the order random."""


def derived_seed(*parts: int | str) -> int:
    """A 63-bit seed from the parts, the same on every machine and Python (unlike `hash`)."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class BatchOrder:
    """Draws every epoch as a new permutation cut into batches. The last batch of an epoch may be smaller.

    size: examples in the data
    lengths: [size] tokens per example; given, batches hold examples of like length (less padding)
    """

    def __init__(self, size: int, batch_size: int, *, seed: int, lengths: Sequence[int] | None = None) -> None:
        """Raises ConfigError when there is no example or `lengths` has another length than the data."""
        if size < 1:
            raise ConfigError("the training data are empty: got 0 examples, expected at least 1; check the data file")
        if lengths is not None and len(lengths) != size:
            raise ConfigError(f"lengths has {len(lengths)} entries for {size} examples; give one length per example")
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.lengths = None if lengths is None else tuple(lengths)
        self.batches_per_epoch = -(-size // batch_size)
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)

    def indices(self, step: int) -> list[int]:
        """The examples of an optimizer step, counted from 0."""
        epoch, position = divmod(step, self.batches_per_epoch)
        return self._epoch(epoch)[position]

    def _draw_epoch(self, epoch: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(derived_seed("order", self.seed, epoch))
        order: list[int] = torch.randperm(self.size, generator=generator).tolist()
        if self.lengths is None:
            return [order[start : start + self.batch_size] for start in range(0, self.size, self.batch_size)]
        lengths, window = self.lengths, SORT_WINDOW * self.batch_size
        batches: list[list[int]] = []
        for start in range(0, self.size, window):
            near = sorted(order[start : start + window], key=lambda index: lengths[index])
            batches += [near[cut : cut + self.batch_size] for cut in range(0, len(near), self.batch_size)]
        shuffled = torch.randperm(len(batches), generator=generator).tolist()
        return [batches[index] for index in shuffled]


def split_evenly(items: Sequence[int], parts: int) -> list[list[int]]:
    """Cuts items into `parts` runs whose sizes differ by at most one; some are empty when there are fewer items."""
    bounds = [len(items) * part // parts for part in range(parts + 1)]
    return [list(items[start:stop]) for start, stop in itertools.pairwise(bounds)]
