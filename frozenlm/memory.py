"""Memory: what the LM keeps of text that it has read, so that it need not read it again.

The keys and values of a run of segments that no trained parameter touches are constants. Read once without gradient,
they are shared by many rows, continued by rows of any length, and kept on disk. The stored tensors are never written
to: every continuation concatenates into new ones. For an encoder-decoder the memory is the encoder's output, which can
be decoded from many times but not continued: its encoder reads in both directions.
Shapes: B rows, T columns, L layers, K key-value heads, D head size, H hidden size (`docs/notation.md`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from frozenlm.checkpoint import load_module, save_module
from frozenlm.errors import ShapeError

KIND = "memory"


@dataclass(frozen=True, eq=False)
class Memory:
    """What B rows have read.

    Args:
        keys, values: L tensors [B, K, T, D] each; empty for an encoder-decoder.
        mask: [B, T] long, 1 where the row has read something.
        lengths: [B] long, how much each row has read; the position at which it goes on.
        lm_fingerprint: of the LM that has read.
        encoded: [B, T, H] for an encoder-decoder, else None.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    mask: Tensor
    lengths: Tensor
    lm_fingerprint: str
    encoded: Tensor | None = None

    def __len__(self) -> int:
        return self.mask.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of the stored tensors (an expanded memory counts as if copied)."""
        return sum(t.numel() * t.element_size() for t in (*self._batched(), self.mask, self.lengths))

    @property
    def dtype(self) -> torch.dtype:
        """Of the stored keys and values."""
        return self._batched()[0].dtype

    def expand(self, n: int) -> "Memory":
        """One row's memory for n rows, without a copy.

        Raises:
            ShapeError: the memory has more than one row, or n is below 1.
        """
        if len(self) != 1:
            raise ShapeError(f"expand needs a memory of one row, this one has {len(self)}; use select(indices)")
        if n < 1:
            raise ShapeError(f"expand needs n of at least 1, got {n}")
        return self._map(lambda t: t.expand(n, *t.shape[1:]))

    def select(self, indices: Sequence[int] | Tensor) -> "Memory":
        """The rows at the indices, in that order; an index may come several times. Unused columns are dropped.

        Raises:
            ShapeError: no index, or one out of range.
        """
        wanted = [int(i) for i in indices]
        if not wanted or min(wanted) < 0 or max(wanted) >= len(self):
            raise ShapeError(f"select needs indices in 0..{len(self) - 1}, got {wanted[:8]}")
        index = torch.tensor(wanted, device=self.mask.device)
        chosen = self._map(lambda t: t.index_select(0, index))
        used = chosen.mask.any(dim=0)
        if bool(used.all()):
            return chosen
        columns = used.nonzero().squeeze(1)
        return Memory(
            tuple(t.index_select(2, columns) for t in chosen.keys),
            tuple(t.index_select(2, columns) for t in chosen.values),
            chosen.mask.index_select(1, columns),
            chosen.lengths,
            chosen.lm_fingerprint,
            None if chosen.encoded is None else chosen.encoded.index_select(1, columns),
        )

    @staticmethod
    def concatenate(memories: Sequence["Memory"]) -> "Memory":
        """The rows of several memories of one LM, one after another.

        Raises:
            ShapeError: none given, or read by different LMs.
        """
        if not memories:
            raise ShapeError("concatenate needs at least one memory, got none")
        first = memories[0]
        if any(m.lm_fingerprint != first.lm_fingerprint or len(m.keys) != len(first.keys) for m in memories):
            raise ShapeError("the memories were read by different LMs; read them with one")
        width = max(m.mask.shape[1] for m in memories)

        def join(parts: Sequence[Tensor], dim: int) -> Tensor:
            """Pad each part on the right to `width` columns along `dim`, then stack the rows."""
            return torch.cat([_pad(part, dim, width) for part in parts])

        layers = range(len(first.keys))
        encoded = [m.encoded for m in memories if m.encoded is not None]
        return Memory(
            tuple(join([m.keys[i] for m in memories], 2) for i in layers),
            tuple(join([m.values[i] for m in memories], 2) for i in layers),
            join([m.mask for m in memories], 1),
            torch.cat([m.lengths for m in memories]),
            first.lm_fingerprint,
            join(encoded, 1) if encoded else None,
        )

    def to(self, device: torch.device | str) -> "Memory":
        """The same on another device."""
        return self._map(lambda t: t.to(device))

    def to_cache(self) -> DynamicCache:
        """A fresh transformers cache over the stored tensors; using it never changes them.

        Raises:
            ShapeError: the memory is an encoder's output.
        """
        if self.encoded is not None:
            raise ShapeError("an encoder-decoder's memory holds encoder outputs, not keys and values")
        cache = DynamicCache()
        for keys, values in zip(self.keys, self.values, strict=True):
            layer = DynamicLayer()
            layer.lazy_initialization(keys, values)
            # Set, not copied: the layer's update concatenates into new tensors, so these stay as they are.
            layer.keys, layer.values = keys, values
            cache.layers.append(layer)
        return cache

    def save(self, folder: Path | str) -> None:
        """Write to a folder (safetensors and JSON, atomically).

        Raises:
            CheckpointError: it cannot be written.
        """
        tensors = {f"layers.{i}.keys": t for i, t in enumerate(self.keys)}
        tensors |= {f"layers.{i}.values": t for i, t in enumerate(self.values)}
        tensors |= {"mask": self.mask, "lengths": self.lengths}
        if self.encoded is not None:
            tensors["encoded"] = self.encoded
        config = {"layers": len(self.keys)}
        save_module(folder, tensors, config, lm_fingerprint=self.lm_fingerprint, kind=KIND, max_magnitude=None)

    @classmethod
    def load(cls, folder: Path | str, lm_fingerprint: str, *, device: torch.device | str = "cpu") -> "Memory":
        """Read what `save` wrote.

        Args:
            lm_fingerprint: `FrozenLM.fingerprint` of the LM that will go on from it.

        Raises:
            CheckpointError: damaged, or read by another LM.
        """
        tensors, config = load_module(folder, kind=KIND, lm_fingerprint=lm_fingerprint, max_magnitude=None)
        layers = range(int(config["layers"]))
        return cls(
            tuple(tensors[f"layers.{i}.keys"] for i in layers),
            tuple(tensors[f"layers.{i}.values"] for i in layers),
            tensors["mask"],
            tensors["lengths"],
            lm_fingerprint,
            tensors.get("encoded"),
        ).to(device)

    def _batched(self) -> tuple[Tensor, ...]:
        return (*self.keys, *self.values) if self.encoded is None else (self.encoded,)

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Memory":
        return Memory(
            tuple(change(t) for t in self.keys),
            tuple(change(t) for t in self.values),
            change(self.mask),
            change(self.lengths),
            self.lm_fingerprint,
            None if self.encoded is None else change(self.encoded),
        )


def _pad(tensor: Tensor, dim: int, width: int) -> Tensor:
    missing = width - tensor.shape[dim]
    if missing == 0:
        return tensor
    shape = [*tensor.shape[:dim], missing, *tensor.shape[dim + 1 :]]
    return torch.cat([tensor, tensor.new_zeros(shape)], dim=dim)
