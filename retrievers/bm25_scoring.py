"""Term numbers to ranked rows: bm25s' scores, our choice of the best k.

Scores are bm25s' own (2407.03618): its index, its compiled scoring function. Only the choice of the best k is written
here, because bm25s breaks ties by the accident of its heap: a passage may fall out at place k or not depending on the
order of the corpus. Here equal scores are ordered by passage id, so that results depend on nothing but the corpus and
the question.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from retrievers.errors import IndexMismatchError

# So many results are held at a time; more questions are answered in several rounds.
_RESULTS_AT_ONCE = 4_000_000
# numba's threads may be started from one Python thread at a time only.
_PARALLEL = threading.Lock()

Ranked = tuple[np.ndarray, np.ndarray]


class TokenShards:
    """Token ids of all passages, read from the shards on disk one passage at a time; may be gone through again and
    again.

    This is what bm25s and rank_bm25 are given in place of a list of lists.
    """

    def __init__(self, folder: Path) -> None:
        self._files = sorted(folder.glob("tokens-*.npy"))
        self._lengths = [folder / f"lengths-{path.stem.removeprefix('tokens-')}.npy" for path in self._files]
        self._count = sum(len(np.load(path, mmap_mode="r", allow_pickle=False)) for path in self._lengths)

    @property
    def files(self) -> list[Path]:
        """All files that the tokens lie in."""
        return [*self._files, *self._lengths]

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[list[int]]:
        for tokens, lengths in zip(self._files, self._lengths, strict=True):
            flat = np.load(tokens, allow_pickle=False)
            start = 0
            for length in np.load(lengths, allow_pickle=False).tolist():
                yield flat[start : start + length].tolist()
                start += length


class Bm25sScorer:
    """A bm25s index on disk, memory-mapped.

    Args:
        folder: what `BM25.save` wrote.
        rank: [N], the place of each row in the order of passage ids.
        threads: numba threads for a batch; 1 never enters numba's thread pool.

    Raises:
        IndexMismatchError: bm25s cannot load the folder.
    """

    def __init__(self, folder: Path, rank: np.ndarray, *, threads: int) -> None:
        import bm25s

        try:
            index = bm25s.BM25.load(folder, mmap=True, load_corpus=False, show_progress=False)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise IndexMismatchError(f"bm25s cannot load {folder}: {error}; build the index again") from error
        self.vocabulary: dict[str, int] = index.vocab_dict
        self._data, self._indices, self._indptr = (
            np.asarray(index.scores[name]) for name in ("data", "indices", "indptr")
        )
        absent = index.nonoccurrence_array
        self._absent = np.zeros(0, self._data.dtype) if absent is None else np.asarray(absent, self._data.dtype)
        self._rank = np.asarray(rank)
        self._threads = threads

    def top(self, queries: Sequence[Sequence[int]], k: int) -> Iterator[Ranked]:
        """Rows and scores of each query's best k, ordered by (-score, id); fewer where fewer have a score above
        zero."""
        k = min(k, len(self._rank))
        at_once = max(1, _RESULTS_AT_ONCE // k)
        for start in range(0, len(queries), at_once):
            yield from self._round(queries[start : start + at_once], k)

    def _round(self, queries: Sequence[Sequence[int]], k: int) -> Iterator[Ranked]:
        starts = np.zeros(len(queries) + 1, np.int64)
        np.cumsum([len(query) for query in queries], out=starts[1:])
        terms = np.fromiter((term for query in queries for term in query), np.int64, int(starts[-1]))
        scores = np.empty((len(queries), k), self._data.dtype)
        rows = np.empty((len(queries), k), np.int64)
        counts = np.empty(len(queries), np.int64)
        from retrievers import bm25_kernels

        arguments = (terms, starts, self._data, self._indptr, self._indices, self._absent, self._rank)
        if self._threads == 1 or len(queries) == 1:
            bm25_kernels.serial(*arguments, scores, rows, counts)
        else:
            # numba's pool sets OpenMP's number of threads for the thread that enters it. torch shares OpenMP, and with
            # another number of threads its sums end in other bits: so a thread of our own enters.
            with _PARALLEL, ThreadPoolExecutor(1) as own:
                own.submit(_parallel, self._threads, *arguments, scores, rows, counts).result()
        for query, count in enumerate(counts.tolist()):
            yield rows[query, :count], scores[query, :count]


def _parallel(threads: int, *arguments: np.ndarray) -> None:
    import numba

    from retrievers import bm25_kernels

    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    bm25_kernels.parallel(*arguments)


class RankBm25Scorer:
    """rank_bm25 behind the same face: the reference, for small corpora. It keeps all tokens as Python lists and scores
    every passage in Python loops, about a thousand times slower than bm25s at 100,000 passages.

    Args:
        tokens: the passages' token ids.
        rank: [N], the place of each row in the order of passage ids.
        method: "okapi", "bm25+" or "bm25l" (whose formula in rank_bm25 0.2.2 is not the published one).
    """

    def __init__(
        self, tokens: Iterable[list[int]], rank: np.ndarray, *, method: str, k1: float, b: float, delta: float | None
    ) -> None:
        import rank_bm25

        corpus = list(tokens)
        extra = {} if method == "okapi" or delta is None else {"delta": delta}
        kind = {"okapi": rank_bm25.BM25Okapi, "bm25+": rank_bm25.BM25Plus, "bm25l": rank_bm25.BM25L}[method]
        self._index = kind(corpus, k1=k1, b=b, **extra)
        self._terms = [frozenset(passage) for passage in corpus]
        self._rank = np.asarray(rank)

    def top(self, queries: Sequence[Sequence[int]], k: int) -> Iterator[Ranked]:
        """Rows and scores of each query's best k, ordered by (-score, id); passages without any term are left out."""
        for query in queries:
            scores = np.asarray(self._index.get_scores(list(query)), np.float64)
            rows = [row for row, terms in enumerate(self._terms) if scores[row] > 0 and not terms.isdisjoint(query)]
            kept = np.asarray(rows, np.int64)
            kept = kept[np.lexsort((self._rank[kept], -scores[kept]))][:k]
            yield kept, scores[kept]
