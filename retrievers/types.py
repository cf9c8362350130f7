"""The words that retrieval is spoken in: a passage, a hit, and the two protocols that turn questions into ranked hits.

A retriever or re-ranker of a user's own needs nothing from us but these shapes; `check_retriever` says whether it
keeps them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class Passage:
    """One unit of a corpus. `id` is unique in its corpus."""

    id: str
    text: str
    title: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Hit:
    """One passage found for one query. `score` is the retriever's, larger is better, comparable within one query only.

    A re-ranker keeps `score` and writes its own into `meta["rerank_score"]`.
    """

    passage_id: str
    score: float
    text: str
    title: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rerank_score(self) -> float | None:
        """The re-ranker's score, or None where no re-ranker has seen this hit."""
        return self.meta.get("rerank_score")

    def with_rerank_score(self, score: float) -> Hit:
        """The same hit with a re-ranker's score beside the retriever's."""
        return replace(self, meta={**self.meta, "rerank_score": float(score)})


@runtime_checkable
class Retriever(Protocol):
    """Questions to ranked passages. Optional beside it: `fingerprint() -> str` (turns result caching on) and
    `close()`."""

    def retrieve(self, queries: Sequence[str], k: int) -> Sequence[Sequence[Hit]]:
        """At most `k` hits a query, best first, one list a query in the order of `queries`."""
        ...


@runtime_checkable
class Reranker(Protocol):
    """A second, dearer opinion on a retriever's hits."""

    def rerank(self, queries: Sequence[str], hits: Sequence[Sequence[Hit]], k: int) -> Sequence[Sequence[Hit]]:
        """The best `k` of each query's hits in the re-ranker's order; `hits` is parallel to `queries`."""
        ...


@runtime_checkable
class TextScorer(Protocol):
    """What likelihood re-ranking needs of a language model: log p(continuation | prompt), summed over its tokens, in
    nats."""

    def score_texts(self, prompts: Sequence[str], continuations: Sequence[str]) -> Sequence[float]:
        """One log-probability a pair; `prompts` and `continuations` are parallel."""
        ...
