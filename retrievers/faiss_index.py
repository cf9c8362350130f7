"""faiss behind the dense index: flat (exact), IVF and HNSW (approximate), always by inner product.

Kept beside our own exact search because an approximate index answers in a hundredth of the time once a corpus has
millions of passages. Three things that faiss leaves to its caller: it pads short result lists with row -1 (which in
Python is the last passage), it checks nothing when it reads a file (the manifest's hash does), and its default
batching makes exact search ten times slower than its own best setting.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from retrievers.compute import require
from retrievers.errors import IndexMismatchError, RetrieverError

KINDS = ("flat", "ivf", "hnsw")
DEFAULTS: dict[str, dict[str, int]] = {
    "flat": {},
    # lists 0 = the rule of lists_for; training sample of 64 vectors a list, drawn with the seed.
    "ivf": {"lists": 0, "probes": 32, "sample_per_list": 64, "seed": 0},
    "hnsw": {"neighbours": 32, "ef_construction": 200, "ef_search": 128, "threads": 1},
}
SEARCH_ONLY = ("probes", "ef_search")

Found = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]


def lists_for(rows: int) -> int:
    """Number of IVF lists for a corpus: 4 sqrt(N), faiss's own guidance, and never more than one list for 39 rows."""
    return max(1, min(round(4 * math.sqrt(rows)), rows // 39))


def checked_parameters(kind: str, given: Mapping[str, int]) -> dict[str, int]:
    """The parameters of an index kind, defaults filled in.

    `ivf`: lists, probes, sample_per_list, seed. `hnsw`: neighbours (M), ef_construction, ef_search, threads (of the
    build: with one thread the graph is the same every time; more are faster and give another graph each time).

    Raises:
        RetrieverError: unknown kind or parameter, or a value that is not a whole number of at least 0.
    """
    if kind not in KINDS:
        raise RetrieverError(f"faiss index {kind!r} is unknown; expected one of {', '.join(KINDS)}.")
    unknown = sorted(set(given) - set(DEFAULTS[kind]))
    if unknown:
        raise RetrieverError(f"index {kind!r} has no parameter {unknown}; it has {sorted(DEFAULTS[kind])}.")
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < (0 if name in ("lists", "seed") else 1):
            raise RetrieverError(
                f"parameter {name!r} of index {kind!r} is {value!r}; expected a positive whole number."
            )
    return {**DEFAULTS[kind], **given}


@contextlib.contextmanager
def tuned_faiss() -> Iterator[Any]:
    """faiss with matmul for every batch and large blocks; the process-wide settings are put back on exit."""
    faiss = require("faiss")
    wanted = {"distance_compute_blas_threshold": 1, "distance_compute_blas_database_bs": 8192}
    before = {name: getattr(faiss.cvar, name) for name in wanted}
    for name, value in wanted.items():
        setattr(faiss.cvar, name, value)
    try:
        yield faiss
    finally:
        for name, value in before.items():
            setattr(faiss.cvar, name, value)


def build_faiss(
    path: Path,
    kind: str,
    shards: Callable[[], Iterable[npt.NDArray[np.float32]]],
    *,
    rows: int,
    dim: int,
    parameters: Mapping[str, int],
) -> None:
    """Build an index over shards of vectors and write it to `path` (whole or not at all is up to the caller).

    faiss keeps the index in memory while it is built: rows x dim x 4 bytes, for HNSW another rows x neighbours x 8.

    Args:
        shards: gives the shards [n, dim] from the first on, each time it is called (IVF reads them twice).
        parameters: as from `checked_parameters`.

    Raises:
        MissingExtraError: faiss is not installed.
    """
    with tuned_faiss() as faiss, _threads(faiss, parameters.get("threads", 0)):
        if kind == "flat":
            index = faiss.IndexFlatIP(dim)
        elif kind == "hnsw":
            index = faiss.IndexHNSWFlat(dim, parameters["neighbours"], faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction = parameters["ef_construction"]
        else:
            lists = min(parameters["lists"] or lists_for(rows), rows)
            index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, lists, faiss.METRIC_INNER_PRODUCT)
            index.cp.seed = parameters["seed"] + 1
            # Few vectors a list on a toy corpus are no reason for faiss to print a warning.
            index.cp.min_points_per_centroid = 1
            index.train(_sample(shards(), rows, min(rows, lists * parameters["sample_per_list"]), parameters["seed"]))
        for shard in shards():
            index.add(np.ascontiguousarray(shard, dtype=np.float32))
        faiss.write_index(index, str(path))


class FaissSearch:
    """A faiss index read from a file. `search` never returns padding."""

    def __init__(self, path: Path, kind: str, *, rows: int, dim: int, parameters: Mapping[str, int]) -> None:
        """Read the index; flat and IVF go to all GPUs where faiss sees any.

        Raises:
            IndexMismatchError: the file is not an index of this size.
            MissingExtraError: faiss is not installed.
        """
        faiss = require("faiss")
        try:
            index = faiss.read_index(str(path))
        except RuntimeError as error:
            raise IndexMismatchError(f"{path} is no faiss index ({error}); build the index again.") from error
        if index.ntotal != rows or index.d != dim:
            raise IndexMismatchError(
                f"{path} holds {index.ntotal} vectors of {index.d} numbers; expected {rows} of {dim}. Build it again."
            )
        if kind == "ivf":
            index.nprobe = min(parameters["probes"], index.nlist)
        if kind == "hnsw":
            index.hnsw.efSearch = parameters["ef_search"]
        elif faiss_gpus(faiss) > 0:
            index = faiss.index_cpu_to_all_gpus(index)
        self._index = index
        self._kind = kind
        self.rows = rows

    def search(self, queries: npt.NDArray[np.float32], k: int) -> list[Found]:
        """Scores and rows of each query, best first; at most k, fewer where the index reached fewer.

        Raises:
            RetrieverError: k below 1.
        """
        if k < 1:
            raise RetrieverError(f"k is {k}; expected at least 1.")
        wanted = min(k, self.rows)
        if self._kind == "hnsw" and wanted > self._index.hnsw.efSearch:
            # HNSW returns at most as many as it keeps open: ask for no less.
            self._index.hnsw.efSearch = wanted
        # A single query is faster in faiss's own loop: 148 against 56 queries a second on an AMD EPYC.
        with tuned_faiss() if len(queries) > 1 else contextlib.nullcontext():
            scores, rows = self._index.search(np.ascontiguousarray(queries, dtype=np.float32), wanted)
        real = rows >= 0
        return [(s[keep], r[keep]) for s, r, keep in zip(scores, rows, real, strict=True)]


def faiss_gpus(faiss: Any) -> int:
    """GPUs that faiss can use. The GPU wheel imports on a machine without one, so its presence says nothing."""
    if not hasattr(faiss, "index_cpu_to_all_gpus") or not hasattr(faiss, "get_num_gpus"):
        return 0
    return int(faiss.get_num_gpus())


def _sample(shards: Iterable[np.ndarray], rows: int, size: int, seed: int) -> npt.NDArray[np.float32]:
    """`size` vectors drawn without replacement, in row order; the same for the same seed however the rows are cut."""
    chosen = np.sort(np.random.default_rng(seed).choice(rows, size=size, replace=False))
    parts, start = [], 0
    for shard in shards:
        here = chosen[(chosen >= start) & (chosen < start + len(shard))] - start
        parts.append(np.asarray(shard[here], dtype=np.float32))
        start += len(shard)
    return np.concatenate(parts)


@contextlib.contextmanager
def _threads(faiss: Any, count: int) -> Iterator[None]:
    """faiss limited to `count` threads (0 = as it is)."""
    before = faiss.omp_get_max_threads()
    if count:
        faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
