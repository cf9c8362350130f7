"""Does a retriever or re-ranker keep its contract? Public, for whoever plugs in their own; we run the same checks on
theirs.

Every error begins with the plug-in's name, so that nobody looks for the fault in the wrong place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from retrievers.errors import RetrievalError, RetrieverError
from retrievers.types import Hit

_SAMPLE_QUERIES = ("who wrote hamlet", "capital of france")


def name_of(plugin: object) -> str:
    """`module.Class` of a plug-in, as its errors name it."""
    kind = plugin if isinstance(plugin, type) else type(plugin)
    return f"{kind.__module__}.{kind.__qualname__}"


def fingerprint_of(retriever: object) -> str | None:
    """What `retriever.fingerprint()` says, or None for a retriever that has none (its results cannot be cached).

    Raises:
        RetrieverError: it is neither a text nor None, or the retriever raised.
    """
    method = getattr(retriever, "fingerprint", None)
    if method is None:
        return None
    try:
        value = method()
    except (RetrievalError, MemoryError):
        raise
    except Exception as error:
        raise RetrieverError(f"{name_of(retriever)}: fingerprint raised {type(error).__name__}: {error}") from error
    if value is not None and not (isinstance(value, str) and value):
        raise RetrieverError(
            f"{name_of(retriever)}: fingerprint() gave {value!r}, expected a text that is not empty, or None"
        )
    return value


def check_hits(name: str, queries: Sequence[str], hits: Sequence[Sequence[Hit]], k: int) -> None:
    """Check what a retriever or re-ranker has returned.

    Where every hit of a list has a re-rank score, the order is judged by those, otherwise by the retrieval scores.

    Args:
        name: who returned it, for the errors.
        queries: what was asked.
        hits: one list a query.
        k: how many were asked for.

    Raises:
        RetrieverError: not one list a query, more than k hits, something that is not a Hit, an id or text that is not a
            string, an empty or duplicate id, a score that is not a finite number, or scores that rise.
    """
    if not _is_list(hits):
        raise RetrieverError(f"{name}: returned a {type(hits).__name__}, expected one list of hits a query")
    if len(hits) != len(queries):
        raise RetrieverError(f"{name}: returned {len(hits)} lists for {len(queries)} queries, expected one a query")
    for number, found in enumerate(hits):
        _check_list(f"{name}: query {number} ({queries[number]!r:.60})", found, k)


def check_reranked(
    name: str, queries: Sequence[str], before: Sequence[Sequence[Hit]], after: Sequence[Sequence[Hit]], k: int
) -> None:
    """Check what a re-ranker has made of `before`: as `check_hits`, every hit re-scored, and none that was not there.

    Raises:
        RetrieverError: as `check_hits`; a hit without a re-rank score; a passage that the re-ranker was not given.
    """
    check_hits(name, queries, after, k)
    for number, (given, found) in enumerate(zip(before, after, strict=True)):
        known = {hit.passage_id for hit in given}
        for hit in found:
            where = f"{name}: query {number} ({queries[number]!r:.60}), passage {hit.passage_id!r}"
            if hit.passage_id not in known:
                raise RetrieverError(f"{where} was not among the hits to re-rank")
            if hit.rerank_score is None:
                raise RetrieverError(f"{where} has no re-rank score; return hit.with_rerank_score(score)")


def check_retriever(retriever: Any, queries: Sequence[str] = _SAMPLE_QUERIES, k: int = 5) -> None:
    """Ask a retriever some questions and check everything that it promises. For plug-in authors' own tests.

    Args:
        retriever: any object with `retrieve(queries, k)`; `fingerprint()` and `close()` are optional, nothing is
            closed here.
        queries: at least one question, best some that it finds something for.
        k: hits a query to ask for; one hit and no query at all are tried as well.

    Raises:
        RetrieverError: the first promise that it breaks; begins with the retriever's class.
    """
    name = name_of(retriever)
    if isinstance(retriever, type):
        raise RetrieverError(f"{name}: got the class itself, expected an object of it")
    for method, needed in (("retrieve", True), ("fingerprint", False), ("close", False)):
        if not callable(getattr(retriever, method, None)) and (needed or hasattr(retriever, method)):
            raise RetrieverError(f"{name}: has no method {method}")
    fingerprint_of(retriever)
    for asked, wanted in ((list(queries), k), (list(queries), 1), (list(queries[:1]), k), ([], k)):
        try:
            hits = retriever.retrieve(asked, wanted)
        except Exception as error:
            raise RetrieverError(f"{name}: retrieve({asked!r:.80}, {wanted}) raised {error!r}") from error
        check_hits(name, asked, hits, wanted)


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _check_list(where: str, found: Sequence[Hit], k: int) -> None:
    if not _is_list(found):
        raise RetrieverError(f"{where}: got a {type(found).__name__}, expected a list of hits")
    if len(found) > k:
        raise RetrieverError(f"{where}: got {len(found)} hits, expected at most {k}")
    seen: set[str] = set()
    for place, hit in enumerate(found):
        if not isinstance(hit, Hit):
            raise RetrieverError(f"{where}, hit {place}: got a {type(hit).__name__}, expected a retrievers.Hit")
        if not isinstance(hit.passage_id, str) or not hit.passage_id:
            raise RetrieverError(f"{where}, hit {place}: passage_id is {hit.passage_id!r}, expected a string")
        if not isinstance(hit.text, str) or not isinstance(hit.title, str):
            raise RetrieverError(f"{where}, passage {hit.passage_id!r}: text and title must be strings")
        if hit.passage_id in seen:
            raise RetrieverError(f"{where}: passage {hit.passage_id!r} occurs twice, expected each passage once")
        seen.add(hit.passage_id)
        for kind, score in (("score", hit.score), ("re-rank score", hit.rerank_score)):
            if score is None and kind == "re-rank score":
                continue
            if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
                raise RetrieverError(
                    f"{where}, passage {hit.passage_id!r}: {kind} is {score!r} ({type(score).__name__}), "
                    "expected a finite Python number"
                )
    reranked = [hit.rerank_score for hit in found if hit.rerank_score is not None]
    scores = reranked if len(reranked) == len(found) else [hit.score for hit in found]
    for place, (this, following) in enumerate(pairwise(scores)):
        if following > this:
            raise RetrieverError(
                f"{where}: score rises from {this} to {following} at hit {place + 1}; put the best first"
            )
