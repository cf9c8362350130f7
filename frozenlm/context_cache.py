"""Keys and values of training contexts, kept from one epoch to the next.

A suffix prompt stands behind its context, so the frozen LM's keys and values of that context never change while the
prompt is trained. They are read once, without gradient, and kept in memory or on disk up to a byte budget. When the
budget is full nothing is thrown out: further contexts are read anew each time. (With data drawn by epoch every context
comes equally often, so the first ones are as good to keep as any, and evicting would only add writing.)

On disk a context is one file, named by the hash of the LM's fingerprint, its dtype and the context's ids, so that a
cache survives a kill, can be shared by runs, and never serves another LM. A damaged file is read anew and counted.
Shapes: L layers, K key-value heads, T context tokens, D head size.
"""

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from frozenlm.errors import CheckpointError, ConfigError
from frozenlm.memory import Memory
from frozenlm.rows import Tokens
from frozenlm.tensor_file import clear_temporaries, read_tensors, write_tensors

if TYPE_CHECKING:
    from frozenlm.lm import FrozenLM

CacheKind = Literal["off", "memory", "disk"]
BYTE_BUDGET = 2_000_000_000


@dataclass
class CacheCounts:
    """What a cache has done: contexts found, read by the LM, and of those read kept, over budget, unwritable."""

    found: int = 0
    read: int = 0
    kept: int = 0
    over_budget: int = 0
    damaged: int = 0
    unwritable: int = 0


class ContextCache:
    """The memory of any context: looked up, or read by the LM and kept.

    lm: a decoder-only LM
    kind: "off" reads every time
    byte_budget: the most bytes kept, in memory or in the folder's files for this LM
    folder: for kind "disk"
    device: where kind "memory" keeps; "cpu" leaves a GPU's memory to the LM

    Raises: ConfigError for an unknown kind, kind "disk" without a folder, or an encoder-decoder LM.
    """

    def __init__(
        self,
        lm: "FrozenLM",
        *,
        kind: CacheKind = "memory",
        byte_budget: int = BYTE_BUDGET,
        folder: Path | str | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if kind not in get_args(CacheKind):
            raise ConfigError(f"context cache kind is {kind!r}; expected one of {get_args(CacheKind)}")
        if kind == "disk" and folder is None:
            raise ConfigError('context cache kind "disk" needs a folder; give one, or use kind "memory"')
        if byte_budget < 0:
            raise ConfigError(f"context cache byte_budget is {byte_budget}; expected at least 0 bytes")
        if lm.kind != "decoder":
            raise ConfigError("an encoder-decoder LM reads prompt and context together; there is nothing to keep")
        self.lm, self.kind, self.byte_budget, self.device = lm, kind, byte_budget, device
        self.counts = CacheCounts()
        self._kept: dict[str, Tensor] = {}
        self._root = None if folder is None else Path(folder) / lm.fingerprint[:16]
        self.nbytes = 0
        if kind == "disk" and self._root is not None and self._root.is_dir():
            clear_temporaries(self._root, older_than=3600)
            self.nbytes = sum(path.stat().st_size for path in self._root.rglob("*.safetensors"))

    def memory(self, contexts: Sequence[Sequence[int]]) -> Memory:
        """The memory of a batch of contexts, row i for context i, on the LM's device.

        contexts: B lists of token ids, none empty

        Raises: ShapeError for an empty context or one past the window; ConfigError while a delta is attached to the LM.
        """
        if self.lm.is_changed and self.kind != "off":
            raise ConfigError(
                "a context cache keeps what the plain LM has read, and a delta is attached; detach it, or use kind off"
            )
        keys = [self._key(context) for context in contexts]
        found = {key: memory for key in dict.fromkeys(keys) if (memory := self._find(key)) is not None}
        missing = {key: context for key, context in zip(keys, contexts, strict=True) if key not in found}
        self.counts.found += sum(key in found for key in keys)
        self.counts.read += len(missing)
        if not missing:
            return Memory.concatenate([found[key] for key in keys])
        # In the LM's own dtype even when the step runs under autocast, so that a memory fits every later use.
        with torch.autocast(self.lm.device.type, enabled=False):
            fresh = self.lm.read([[Tokens.of(context)] for context in missing.values()])
        if self.kind != "off":
            for row, key in enumerate(missing):
                self._keep(key, fresh.select([row]))
        if list(missing) == keys:
            return fresh
        rows = {key: fresh.select([row]) for row, key in enumerate(missing)}
        return Memory.concatenate([found[key] if key in found else rows[key] for key in keys])

    def report(self) -> str:
        """One line for the log."""
        counts = self.counts
        line = f"context cache ({self.kind}): {counts.found} contexts found, {counts.read} read by the LM, "
        line += f"{counts.kept} of them kept; {self.nbytes:,} of {self.byte_budget:,} bytes used"
        for count, what in (
            (counts.over_budget, "not kept because the budget is full"),
            (counts.damaged, "files damaged and read anew"),
            (counts.unwritable, "could not be written"),
        ):
            if count:
                line += f"; {count} {what}"
        return line

    def _key(self, context: Sequence[int]) -> str:
        text = f"{self.lm.fingerprint} {self.lm.dtype} {' '.join(map(str, context))}"
        return hashlib.sha256(text.encode()).hexdigest()

    def _path(self, key: str) -> Path:
        if self._root is None:
            raise ConfigError("this context cache has no folder")
        return self._root / key[:2] / f"{key}.safetensors"

    def _find(self, key: str) -> Memory | None:
        if self.kind == "memory":
            kept = self._kept.get(key)
            return None if kept is None else self._unpack(kept)
        if self.kind == "off" or not self._path(key).exists():
            return None
        try:
            return self._unpack(read_tensors(self._path(key))[0]["context"])
        except (CheckpointError, KeyError):
            self.counts.damaged += 1
            with contextlib.suppress(OSError):
                self.nbytes -= self._path(key).stat().st_size
                self._path(key).unlink()
            return None

    def _keep(self, key: str, memory: Memory) -> None:
        # One tensor [2L, K, T, D] a context, trimmed to its own length: one allocation, one entry in a file.
        size = sum(t.nbytes for t in (*memory.keys, *memory.values))
        if self.nbytes + size > self.byte_budget:
            self.counts.over_budget += 1
            return
        packed = torch.cat([*memory.keys, *memory.values])
        if self.kind == "memory":
            self._kept[key] = packed.to(self.device)
        else:
            try:
                write_tensors(self._path(key), {"context": packed}, {}, durable=False)
            except CheckpointError:
                self.counts.unwritable += 1
                return
        self.counts.kept += 1
        self.nbytes += size

    def _unpack(self, packed: Tensor) -> Memory:
        layers = packed.shape[0] // 2
        parts = [part.unsqueeze(0) for part in packed.to(self.lm.device).unbind(0)]
        length = packed.shape[2]
        return Memory(
            keys=tuple(parts[:layers]),
            values=tuple(parts[layers:]),
            mask=torch.ones(1, length, dtype=torch.long, device=self.lm.device),
            lengths=torch.tensor([length], device=self.lm.device),
            lm_fingerprint=self.lm.fingerprint,
        )
