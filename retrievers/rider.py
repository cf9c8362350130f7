"""Rider, re-ranking by a reader's first answers (Mao et al. 2021, arXiv 2101.00294). Nothing is trained.

Passages that contain one of the answers a first pass predicted move to the front; within both groups the retriever's
order stays. The predictions come from the caller: a pipeline asks its reader once with the retriever's own order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from retrievers.compute import spec_sha256
from retrievers.errors import RetrieverError
from retrievers.metrics import has_answer
from retrievers.rerank import check_parallel, ranked
from retrievers.types import Hit


class RiderReranker:
    """Hits with a predicted answer first; the rerank score is 1 for those and 0 for the rest."""

    def __init__(self, predictions: Mapping[str, Sequence[str]]) -> None:
        """`predictions`: for each question text the first pass's answers, best first; empty ones are ignored."""
        self._predictions = {question: [a for a in answers if a.strip()] for question, answers in predictions.items()}

    def rerank(self, queries: Sequence[str], hits: Sequence[Sequence[Hit]], k: int) -> list[list[Hit]]:
        """The k best of each query's hits.

        Raises:
            RetrieverError: lists that are not parallel, k below 1, or a question without predictions.
        """
        check_parallel(queries, hits, k)
        missing = [query for query in queries if query not in self._predictions]
        if missing:
            raise RetrieverError(
                f"no first-pass answers for {len(missing)} of {len(queries)} questions, such as {missing[0][:80]!r}; "
                "run the reader on all of them first."
            )
        scores: list[float] = []
        for query, found in zip(queries, hits, strict=True):
            answers = self._predictions[query]
            scores += [float(bool(answers) and has_answer(hit.text, answers)) for hit in found]
        return ranked(hits, scores, k)

    def fingerprint(self) -> str:
        """SHA-256 over the predictions."""
        return f"rider:{spec_sha256(self._predictions)}"

    def close(self) -> None:
        """Nothing is held open."""
