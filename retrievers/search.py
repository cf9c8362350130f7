"""Exact nearest neighbours by inner product: one matrix multiplication, and a proof that nothing was missed.

A brute-force search is bound by memory bandwidth (one query) or by matrix multiplication (many), and a matmul in bf16
halves the first and is several times faster at the second. bf16 rounds, so the matmul only nominates candidates (twice
as many as asked for); those are scored again in fp32. Whether a row outside the candidates could still belong to the
answer is not left to hope: the rounding error is bounded from the norms of what was rounded off, and a query whose
candidates are not proven complete gets a second pass over everything that lies within the bound. So results are those
of an fp32 brute-force search, ties included, in either precision.

This module imports torch; it is itself imported only when a dense index is opened.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from retrievers.compute import pick_device, pick_dtype
from retrievers.errors import RetrieverError

Scores = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

_BLOCK_ROWS = 131_072
_RESCORE_ROWS = 4_096
_GROUP = 16
_FP32_UNIT = 2.0**-24
_BF16_UNIT = 2.0**-8


class Found(NamedTuple):
    """Results for one query, best first; equal scores in the order of the tie ranks."""

    scores: Scores
    rows: Rows


@dataclass(frozen=True)
class Spread:
    """What the proof must know of the vectors: the largest L2 norm, and the largest norm of what bf16 rounds off."""

    norm: float
    residual: float

    @classmethod
    def joined(cls, parts: Sequence[Spread]) -> Spread:
        """Of several shards together."""
        return cls(max(part.norm for part in parts), max(part.residual for part in parts))


def measure(shard: np.ndarray) -> Spread:
    """The spread of one shard [n, D], float32 or int16 (bf16 bits), read once in small pieces."""
    norm = residual = 0.0
    for first in range(0, len(shard), _RESCORE_ROWS):
        vectors = _tensor(shard[first : first + _RESCORE_ROWS]).float()
        norm = max(norm, float(vectors.norm(dim=1).max()))
        residual = max(residual, float((vectors - vectors.bfloat16().float()).norm(dim=1).max()))
    # A hair more than the fp32 norms, which are rounded themselves.
    return Spread(norm * (1 + 1e-5), residual * (1 + 1e-5))


class ExactSearch:
    """Exact top-k by inner product over shards of vectors [n, D] (arrays or memory maps) that make N rows together."""

    def __init__(
        self,
        shards: Sequence[np.ndarray],
        *,
        precision: str = "auto",
        device: str = "auto",
        tie_rank: npt.NDArray[np.int64] | None = None,
        spread: Spread | None = None,
        query_batch: int = 256,
    ) -> None:
        """Prepare the search; memory-mapped fp32 shards are not read here in fp32 precision on the CPU.

        Args:
            shards: float32 arrays, or int16 arrays that hold the bits of bf16 numbers (numpy has no bf16).
            precision: of the matmul: `float32` searches the maps where they lie; `bfloat16` keeps a bf16 copy in memory
                (half the size of fp32 shards); `auto` takes bf16 where the device multiplies it natively and the copy
                fits into half of the free memory. On a CPU without native bf16 it is slower than fp32.
            device: `auto`, `cpu`, `cuda[:n]`; on CUDA vectors stay on the device where they fit, else travel block by
                block.
            spread: what `measure` says of all shards together, if known; else it is measured at the first search.
            tie_rank: [N] the order among rows of equal score (smaller first); None is row order.
            query_batch: queries searched at once; scores take query_batch x 131,072 numbers.

        Raises:
            RetrieverError: no rows, shards of different width, or another dtype.
        """
        self._shards = [shard for shard in shards if len(shard)]
        if not self._shards:
            raise RetrieverError("there are no vectors to search; build the index from at least one passage.")
        self.dim = int(self._shards[0].shape[1])
        for number, shard in enumerate(self._shards):
            if shard.ndim != 2 or shard.shape[1] != self.dim or shard.dtype not in (np.float32, np.int16):
                raise RetrieverError(
                    f"shard {number} is {shard.dtype} {shard.shape}; expected float32, or int16 (bf16 bits), "
                    f"[n, {self.dim}]."
                )
        self._starts = np.cumsum([0, *(len(shard) for shard in self._shards)])
        self.rows = int(self._starts[-1])
        self._tie_rank = tie_rank
        self._spread = spread
        self._query_batch = query_batch
        self._device = pick_device(device)
        self._dtype = pick_dtype(precision, self._device)
        if precision == "auto" and self._dtype == torch.bfloat16 and not self._copy_fits():
            self._dtype = torch.float32
        self._prepare()

    @property
    def precision(self) -> str:
        """Of the matmul: `float32` or `bfloat16`."""
        return str(self._dtype).removeprefix("torch.")

    def search(self, queries: npt.NDArray[np.float32], k: int) -> list[Found]:
        """The k best rows of each query (all N where k is larger).

        Args:
            queries: [B, D] float32.

        Raises:
            RetrieverError: wrong shape, k below 1, or a query that is not finite.
        """
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise RetrieverError(f"queries have shape {queries.shape}; expected [B, {self.dim}].")
        if k < 1:
            raise RetrieverError(f"k is {k}; expected at least 1.")
        if not np.isfinite(queries).all():
            raise RetrieverError(
                "a query vector holds NaN or infinity; the encoder is broken or its precision too low."
            )
        found: list[Found] = []
        with torch.inference_mode(), _full_precision(self._device):
            for start in range(0, len(queries), self._query_batch):
                found += self._search_batch(queries[start : start + self._query_batch], min(k, self.rows))
        return found

    def _search_batch(self, queries: npt.NDArray[np.float32], k: int) -> list[Found]:
        wanted = min(self.rows, max(2 * k, k + 32))
        rounded = torch.from_numpy(queries).to(self._device, self._dtype)
        scores, rows = self._candidates(rounded, queries, wanted)
        found = [self._rank(query, np.sort(candidates), k) for query, candidates in zip(queries, rows, strict=True)]
        if wanted == self.rows:
            return found
        bounds = self._error_bounds(queries, rounded)
        unproven = []
        for index, (result, bound) in enumerate(zip(found, bounds, strict=True)):
            best_outside = float(scores[index, -1])
            if best_outside + bound + self._output_error(best_outside) >= result.scores[-1]:
                unproven.append(index)
        if unproven:
            floors = []
            for index in unproven:
                floor = float(found[index].scores[-1]) - bounds[index]
                floors.append(floor - self._output_error(floor))
            for index, candidates in zip(unproven, self._above(rounded[unproven], floors), strict=True):
                found[index] = self._rank(queries[index], candidates, k)
        return found

    def _candidates(
        self, rounded: torch.Tensor, queries: npt.NDArray[np.float32], wanted: int
    ) -> tuple[npt.NDArray[np.float32], Rows]:
        """The `wanted` best rows of each query by the matmul's scores: scores and rows [B, wanted], best first."""
        best_scores: list[torch.Tensor] = []
        best_rows: list[torch.Tensor] = []
        for start, block in self._blocks():
            if len(queries) == 1 and block.dtype == torch.float32 and block.device.type == "cpu":
                # One query is bound by memory; numpy's BLAS spreads it over the cores, torch's does not everywhere.
                scores = torch.from_numpy(block.numpy() @ queries[0])[None]
            else:
                scores = rounded @ block.T
            values, columns = largest(scores, min(wanted, scores.shape[1]))
            best_scores.append(values)
            best_rows.append(columns + start)
        if len(best_scores) > 1:
            joined = torch.cat(best_scores, dim=1)
            top = joined.topk(wanted, dim=1)
            return top.values.float().cpu().numpy(), torch.cat(best_rows, dim=1).gather(1, top.indices).cpu().numpy()
        return best_scores[0].float().cpu().numpy(), best_rows[0].cpu().numpy()

    def _above(self, rounded: torch.Tensor, floors: Sequence[float]) -> list[Rows]:
        """All rows whose matmul score reaches a query's floor, ascending."""
        limits = torch.tensor(floors, dtype=torch.float32, device=self._device)[:, None]
        pieces: list[list[Rows]] = [[] for _ in floors]
        for start, block in self._blocks():
            reached = (rounded @ block.T).float() >= limits
            for index, mask in enumerate(reached):
                pieces[index].append(mask.nonzero()[:, 0].cpu().numpy() + start)
        return [np.concatenate(piece) for piece in pieces]

    def _rank(self, query: npt.NDArray[np.float32], rows: Rows, k: int) -> Found:
        """Score `rows` (ascending) in fp32 and keep the k best, ties by tie rank."""
        scores = np.concatenate(
            [self._exact(query, rows[i : i + _RESCORE_ROWS]) for i in range(0, len(rows), _RESCORE_ROWS)]
        )
        ranks = rows if self._tie_rank is None else self._tie_rank[rows]
        order = np.lexsort((ranks, -scores))[:k]
        return Found(scores[order], rows[order])

    def _exact(self, query: npt.NDArray[np.float32], rows: Rows) -> Scores:
        """fp32 scores of `rows` (ascending). einsum sums every row in the same order, so equal vectors tie exactly."""
        cuts = np.searchsorted(rows, self._starts)
        vectors = np.concatenate(
            [
                as_float32(shard[rows[first:last] - begin])
                for shard, begin, first, last in zip(self._shards, self._starts, cuts, cuts[1:], strict=False)
                if last > first
            ]
        )
        return np.einsum("nd,d->n", vectors, query)

    def _prepare(self) -> None:
        """Bring the vectors into the matmul's precision and place, where that costs no more memory than allowed."""
        self._kept: list[tuple[int, torch.Tensor]] | None = None
        in_place = self._device.type == "cpu" and all(_dtype(shard) == self._dtype for shard in self._shards)
        if in_place:
            self._kept = [
                (int(start), _tensor(shard)) for start, shard in zip(self._starts, self._shards, strict=False)
            ]
            return
        if self._device.type == "cpu" and self._dtype == torch.float32:
            return
        if self._device.type == "cuda" and not self._copy_fits():
            return
        self._kept = list(self._converted())

    def _blocks(self) -> Iterator[tuple[int, torch.Tensor]]:
        """(first row, vectors [n, D]) in the matmul's precision and place."""
        return iter(self._kept) if self._kept is not None else self._converted()

    def _converted(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Shards converted and joined into blocks: few large matmuls and top-k calls beat many small ones."""
        parts: list[torch.Tensor] = []
        start = count = 0
        for shard in self._shards:
            for first in range(0, len(shard), _BLOCK_ROWS):
                part = _tensor(shard[first : first + _BLOCK_ROWS]).to(self._device, self._dtype)
                if parts and count + len(part) > _BLOCK_ROWS:
                    yield start, torch.cat(parts)
                    start, count, parts = start + count, 0, []
                parts.append(part)
                count += len(part)
        yield start, torch.cat(parts) if len(parts) > 1 else parts[0]

    def _error_bounds(self, queries: npt.NDArray[np.float32], rounded: torch.Tensor) -> list[float]:
        """An upper bound of |matmul score - fp32 score| over all rows, a query; the output's own rounding comes on top.

        q.x - q'.x' = (q - q').x + q'.(x - x'), each term bounded by Cauchy-Schwarz; then the order of summation.
        """
        if self._spread is None:
            self._spread = Spread.joined([measure(shard) for shard in self._shards])
        lost = self._spread.residual if self._dtype == torch.bfloat16 else 0.0
        kept = rounded.float().cpu().numpy()
        norms = np.linalg.norm(kept.astype(np.float64), axis=1)
        residuals = np.linalg.norm(queries.astype(np.float64) - kept, axis=1)
        summation = 4 * self.dim * _FP32_UNIT * (norms + residuals) * self._spread.norm
        return list(residuals * self._spread.norm + norms * lost + summation)

    def _output_error(self, score: float) -> float:
        return abs(score) * _BF16_UNIT if self._dtype == torch.bfloat16 else 0.0

    def _copy_fits(self) -> bool:
        """Whether all vectors in the matmul's precision fit into half of the free memory of the device."""
        needed = self.rows * self.dim * self._dtype.itemsize
        if self._device.type == "cuda":
            return needed < torch.cuda.mem_get_info(self._device)[0] / 2
        return needed < os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2


def largest(scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` largest of each row [B, N]: values, descending, and columns, both [B, count].

    Long rows are thinned first: columns are put into groups, and only the groups with the `count` best maxima can hold
    one of the `count` best numbers. On a CPU that halves the time of `topk`, which is not small beside a bf16 matmul.
    """
    batch, width = scores.shape
    groups = width // _GROUP
    if groups < 4 * count or scores.device.type != "cpu":
        top = scores.topk(count, dim=1)
        return top.values, top.indices
    whole = groups * _GROUP
    kept = scores[:, :whole].view(batch, _GROUP, groups).amax(1).topk(count, dim=1, sorted=False).indices
    columns = (kept[:, None, :] + torch.arange(_GROUP)[None, :, None] * groups).flatten(1)
    columns = torch.cat([columns, torch.arange(whole, width).expand(batch, -1)], dim=1)
    top = scores.gather(1, columns).topk(count, dim=1)
    return top.values, columns.gather(1, top.indices)


def bfloat16_bits(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.int16]:
    """fp32 numbers rounded to bf16, as the int16 bits that an index of half the size stores."""
    return torch.from_numpy(np.ascontiguousarray(vectors)).bfloat16().view(torch.int16).numpy()


def _dtype(shard: np.ndarray) -> torch.dtype:
    return torch.bfloat16 if shard.dtype == np.int16 else torch.float32


def _tensor(shard: np.ndarray) -> torch.Tensor:
    """A tensor over the same memory; nothing here writes to it."""
    tensor = torch.from_numpy(np.asarray(shard))
    return tensor.view(torch.bfloat16) if shard.dtype == np.int16 else tensor


def as_float32(vectors: np.ndarray) -> npt.NDArray[np.float32]:
    """Stored vectors, float32 or int16 (bf16 bits), as float32."""
    return _tensor(vectors).float().numpy() if vectors.dtype == np.int16 else vectors


@contextlib.contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """On CUDA, sum in fp32: the bound above does not hold for TF32 or for bf16 partial sums."""
    if device.type != "cuda":
        yield
        return
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32, matmul.allow_bf16_reduced_precision_reduction
    matmul.allow_tf32, matmul.allow_bf16_reduced_precision_reduction = False, False
    try:
        yield
    finally:
        matmul.allow_tf32, matmul.allow_bf16_reduced_precision_reduction = before
