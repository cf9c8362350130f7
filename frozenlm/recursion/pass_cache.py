"""The states of pass 1, computed once and read from disk while the connector is trained.

Pass 1 of neural recursion (arXiv 2204.10019, section 4.2) depends on the frozen LM and the data only. Its final hidden
states are computed once and kept in shards of many rows, memory-mapped, so that an epoch costs one pass and not two and
main memory does not grow with the data. In the LM's own dtype (the default) nothing is lost; bfloat16 halves the disk
space of a float32 LM.

A cache lies in a folder named by the LM's fingerprint, the data and both dtypes, so another LM or other data never read
it. A shard is one file, replaced atomically, with a digest of all of it: after a kill the finished shards are taken
up, and a shard that is cut, changed or not of this cache is named and computed anew. Every start reads the shards once
to check them. The byte budget is filled with the first rows; the others are run anew each time, and counted.
States reach training through the file in the start that computed them too, so a resumed run reads the same bits.
Shapes: n tokens of a row, H' width of the final hidden states.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from frozenlm.errors import CheckpointError, ConfigError, ShapeError
from frozenlm.lm import BATCH_TOKENS, FrozenLM
from frozenlm.recursion import stale_caches
from frozenlm.recursion.sizes import require_decoder
from frozenlm.rows import Tokens
from frozenlm.tensor_file import clear_temporaries, read_tensors, write_tensors

StateType = Literal["lm", "float32", "bfloat16", "float16"]
BYTE_BUDGET = 20_000_000_000
SHARD_BYTES = 2**27

logger = logging.getLogger("frozenlm.recursion")


@dataclass
class PassCacheCounts:
    """What a cache holds and has done.

    rows, tokens: different rows asked to be kept, and their tokens
    kept: rows in the shards
    over_budget: rows that the byte budget has no room for
    shards, taken_up, damaged: files; found whole from an earlier start; computed anew since they were not whole
    nbytes: of the kept states
    run_anew: rows that `states` had to run through the LM
    """

    rows: int = 0
    tokens: int = 0
    kept: int = 0
    over_budget: int = 0
    shards: int = 0
    taken_up: int = 0
    damaged: int = 0
    nbytes: int = 0
    run_anew: int = 0


@dataclass(frozen=True)
class _Shard:
    """Some rows in one file: numbers of the first and of the one after the last."""

    path: Path
    first: int
    stop: int


class FirstPassCache:
    """Final hidden states of pass 1 by row of token ids.

    Making one computes and writes what is missing; it can be killed and started again.

    lm: a decoder-only LM
    rows: what pass 1 reads (`rows_read` of the training and dev examples); duplicates are kept once
    folder: where; several caches may share it
    dtype: of the states on disk; "lm" is exact
    byte_budget: the most bytes of states kept
    shard_bytes: of one file, about; the most work that a kill loses
    batch_tokens: the most tokens the LM runs at a time
    run: name of the training run that reads it; when this cache is complete, those in `folder` that the run has read
        before and no other run reads are removed. None: the cache is nobody's and stays
    log: gets one line about what was found damaged, and the report

    Raises: ConfigError for an encoder-decoder LM, a setting out of range or a name that no file can have; ShapeError
        for an empty row or one past the window; CheckpointError when the disk is full or the folder cannot be written.
    """

    def __init__(
        self,
        lm: FrozenLM,
        rows: Sequence[Sequence[int]],
        *,
        folder: Path | str,
        dtype: StateType = "lm",
        byte_budget: int = BYTE_BUDGET,
        shard_bytes: int = SHARD_BYTES,
        batch_tokens: int = BATCH_TOKENS,
        run: str | None = None,
        log: Callable[[str], None] | None = None,
    ) -> None:
        require_decoder(lm)
        if dtype not in get_args(StateType):
            raise ConfigError(f"pass-1 cache dtype is {dtype!r}; expected one of {get_args(StateType)}")
        if byte_budget < 0 or shard_bytes < 1:
            raise ConfigError(
                f"pass-1 cache byte_budget is {byte_budget} and shard_bytes {shard_bytes}; expected at least 0 and 1"
            )
        self.lm, self.byte_budget, self.counts = lm, byte_budget, PassCacheCounts()
        self.dtype: torch.dtype = lm.dtype if dtype == "lm" else getattr(torch, dtype)
        self._batch_tokens, self._log = batch_tokens, log or logger.info
        self._width = lm.hidden_states([[Tokens((0,))]])[0].shape[1]
        self._opened: dict[Path, Any] = {}
        self._places: dict[bytes, tuple[Path, int, int]] = {}
        unique = self._unique(rows)
        self.key = self._key(unique)
        self.folder = Path(folder) / self.key[:32]
        if run is not None:
            stale_caches.check_run(run)
            stale_caches.mark(self.folder, run)
        self._build(unique, list(self._shards(unique, shard_bytes)))
        self._log(self.report())
        if run is not None:
            for other in stale_caches.remove_others(self.folder, run):
                self._log(f"pass-1 cache: {other} removed, since run {run} reads other data or another LM now")

    @property
    def identity(self) -> dict[str, str]:
        """What the identity of a training run that reads these states must hold: the dtype that they were rounded to;
        nothing where they are exact."""
        exact = torch.promote_types(self.dtype, self.lm.dtype) == self.dtype
        return {} if exact else {"first_pass_dtype": str(self.dtype).removeprefix("torch.")}

    def states(self, rows: Sequence[Sequence[int]]) -> list[Tensor]:
        """Final hidden states of pass 1, one tensor [n, H'] a row, on the LM's device; those not kept are run anew."""
        digests = [_digest(row) for row in rows]
        missing = {digest: row for digest, row in zip(digests, rows, strict=True) if digest not in self._places}
        self.counts.run_anew += len(missing)
        anew = dict(zip(missing, self._run(list(missing.values())), strict=True)) if missing else {}
        return [anew[digest] if digest in anew else self._read(*self._places[digest]) for digest in digests]

    def report(self) -> str:
        """One line for the log."""
        counts = self.counts
        line = f"pass-1 cache: {counts.kept} of {counts.rows} rows kept in {counts.shards} files, {counts.nbytes:,} of "
        line += f"{self.byte_budget:,} bytes of {str(self.dtype).removeprefix('torch.')}"
        for count, what in (
            (counts.taken_up, "files taken up from before"),
            (counts.damaged, "files not whole and computed anew"),
            (counts.over_budget, "rows over the byte budget, run anew in every epoch"),
        ):
            if count:
                line += f"; {count} {what}"
        return line

    def _unique(self, rows: Sequence[Sequence[int]]) -> list[Sequence[int]]:
        """The different rows in the order of their first appearance, all checked."""
        seen: dict[bytes, Sequence[int]] = {}
        window = self.lm.window
        for number, row in enumerate(rows):
            if not len(row):
                raise ShapeError(f"row {number} of the pass-1 cache is empty; a row needs at least one token")
            if window is not None and len(row) > window:
                raise ShapeError(
                    f"row {number} of the pass-1 cache has {len(row)} tokens, the LM's window is {window}; shorten it"
                )
            seen.setdefault(_digest(row), row)
        return list(seen.values())

    def _key(self, rows: Sequence[Sequence[int]]) -> str:
        digest = hashlib.sha256(f"{self.lm.fingerprint} {self.lm.dtype} {self.dtype}".encode())
        for row in rows:
            digest.update(_digest(row))
        return digest.hexdigest()

    def _shards(self, rows: Sequence[Sequence[int]], shard_bytes: int) -> Iterator[_Shard]:
        """The rows within the budget, cut into files; counts what there is and what is left out."""
        counts, each = self.counts, self._width * self.dtype.itemsize
        counts.rows, counts.tokens = len(rows), sum(map(len, rows))
        first = filled = 0
        for number, row in enumerate(rows):
            size = len(row) * each
            if counts.nbytes + size > self.byte_budget:
                break
            if filled and filled + size > shard_bytes:
                yield self._shard(first, number)
                first, filled = number, 0
            filled, counts.nbytes, counts.kept = filled + size, counts.nbytes + size, counts.kept + 1
        counts.over_budget = counts.rows - counts.kept
        if filled:
            yield self._shard(first, counts.kept)

    def _shard(self, first: int, stop: int) -> _Shard:
        self.counts.shards += 1
        return _Shard(self.folder / f"rows-{first:09d}-{stop:09d}.safetensors", first, stop)

    def _build(self, rows: Sequence[Sequence[int]], shards: Sequence[_Shard]) -> None:
        if self.folder.is_dir():
            clear_temporaries(self.folder, older_than=3600)
            wanted = {shard.path for shard in shards}
            for path in self.folder.glob(stale_caches.SHARDS):
                if path not in wanted:  # cut for another budget or another size of file
                    path.unlink()
        for shard in shards:
            own = rows[shard.first : shard.stop]
            if not self._is_whole(shard, sum(map(len, own))):
                write_tensors(shard.path, {"states": self._stored(own)}, self._record(shard), durable=False)
            at = 0
            for row in own:
                self._places[_digest(row)] = (shard.path, at, at + len(row))
                at += len(row)

    def _is_whole(self, shard: _Shard, tokens: int) -> bool:
        """Whether an earlier start has written the shard; says why a file that is there is of no use."""
        if not shard.path.exists():
            return False
        try:
            tensors, record = read_tensors(shard.path)
            found = record, {name: (list(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
            expected = self._record(shard), {"states": ([tokens, self._width], self.dtype)}
            if found != expected:
                raise CheckpointError(f"{shard.path} is not of this cache: it holds {found}, expected {expected}")
        except CheckpointError as error:
            self.counts.damaged += 1
            self._log(f"pass-1 cache: a file is of no use and is computed anew: {error}")
            return False
        self.counts.taken_up += 1
        return True

    def _record(self, shard: _Shard) -> dict[str, Any]:
        return {"key": self.key, "first": shard.first, "stop": shard.stop}

    def _stored(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """States [sum of n, H'] of the rows in the dtype of the disk, on the CPU."""
        states = torch.cat([one.cpu() for one in self._run(rows)]).to(self.dtype)
        if not bool(torch.isfinite(states).all()):
            raise ConfigError(
                f"the LM's states do not fit into {self.dtype}: some became Inf or NaN; use dtype 'bfloat16' or 'lm'"
            )
        return states

    def _run(self, rows: Sequence[Sequence[int]]) -> list[Tensor]:
        # In the LM's own dtype even when the step runs under autocast, so that kept and run states are the same.
        with torch.autocast(self.lm.device.type, enabled=False):
            return self.lm.hidden_states([[Tokens.of(row)] for row in rows], batch_tokens=self._batch_tokens)

    def _read(self, path: Path, start: int, stop: int) -> Tensor:
        if path not in self._opened:
            self._opened[path] = safe_open(path, framework="pt", device="cpu")  # memory-mapped
        part: Tensor = self._opened[path].get_slice("states")[start:stop]
        return part.to(self.lm.device)


def _digest(row: Sequence[int]) -> bytes:
    return hashlib.blake2b(np.asarray(row, dtype=np.int64).tobytes(), digest_size=16).digest()
