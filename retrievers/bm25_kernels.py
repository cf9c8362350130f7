"""The compiled inner loops of BM25: every question's scores, and the best k of them.

Imported on first use only, since numba and bm25s' compiled half take seconds to load. Compiled code is kept on disk
(beside this file, or
in the user's cache where that is read-only), so only the first question ever waits for the compiler.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from bm25s.numba.retrieve_utils import _compute_relevance_from_scores_jit_ready as score_all
from numba import njit, prange

DEPTH = 64


def _compiled(function: Callable[..., Any], *, parallel: bool = False) -> Any:
    try:
        return njit(nogil=True, parallel=parallel, cache=True)(function)
    except RuntimeError:  # numba found no folder that it may write to; compiling in every process still works
        return njit(nogil=True, parallel=parallel)(function)


@_compiled
def kth_largest(values: Any, k: int) -> float:
    return np.partition(values, len(values) - k)[len(values) - k]


@_compiled
def column_maxima(found: Any, width: int) -> Any:
    """The maximum of each column when `found` is written in lines of `width`; this runs in vector instructions."""
    maxima = found[:width].copy()
    for start in range(width, len(found), width):
        line = found[start : start + width]
        for at in range(len(line)):
            maxima[at] = line[at] if line[at] > maxima[at] else maxima[at]
    return maxima


@_compiled
def best(found: Any, floor: float, rank: Any, scores: Any, rows: Any) -> int:
    """Fill `scores` and `rows` [k] with the best by (-score, rank) above `floor`; how many there are.

    The k-th largest of the columns' maxima is no larger than the k-th best score, and close to it, so few rows are
    ever looked at one by one.
    """
    k = len(scores)
    width = -(-len(found) // DEPTH)
    maxima = column_maxima(found, width)
    bar = max(kth_largest(maxima, k), floor) if width >= k else floor
    looked_at = (maxima >= bar) & (maxima > floor)
    chosen = np.empty(DEPTH * looked_at.sum(), np.int64)
    size = 0
    for column in range(width):
        if looked_at[column]:
            for row in range(column, len(found), width):
                chosen[size] = row
                size += (found[row] >= bar) & (found[row] > floor)
    chosen = chosen[:size]
    if size > k:
        bar = kth_largest(found[chosen], k)
        chosen = chosen[found[chosen] >= bar]
    order = chosen[np.argsort(-found[chosen])]
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and found[order[end]] == found[order[start]]:
            end += 1
        if end > start + 1:
            order[start:end] = order[start:end][np.argsort(rank[order[start:end]])]
        start = end
    size = min(k, len(order))
    rows[:size] = order[:size]
    for at in range(size):
        scores[at] = found[order[at]]
    return size


@_compiled
def rank_query(
    wanted: Any, data: Any, indptr: Any, indices: Any, absent: Any, rank: Any, scores: Any, rows: Any
) -> int:
    found = score_all(data, indptr, indices, len(rank), wanted, data.dtype)
    floor = data.dtype.type(0)
    if len(absent):
        for term in wanted:
            floor += absent[term]
        found += floor
    return best(found, floor, rank, scores, rows)


# Every output is an argument of its own: what a prange writes into an array unpacked from a tuple is lost (numba
# 0.68).
def _rank_queries(
    terms: Any,
    starts: Any,
    data: Any,
    indptr: Any,
    indices: Any,
    absent: Any,
    rank: Any,
    scores: Any,
    rows: Any,
    counts: Any,
) -> None:
    for query in prange(len(starts) - 1):
        wanted = terms[starts[query] : starts[query + 1]]
        counts[query] = rank_query(wanted, data, indptr, indices, absent, rank, scores[query], rows[query])


serial = _compiled(_rank_queries)
parallel = _compiled(_rank_queries, parallel=True)
