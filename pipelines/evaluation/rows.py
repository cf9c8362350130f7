"""What is written of one question: its scores and sources in `predictions.jsonl`, its passages in the retrieval files.

Everything in `metrics.json` and in `frozenlm compare` is computed from these rows, so the two cannot disagree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pipelines.answer import Answer
from pipelines.errors import ShapeError, retrieval_errors
from pipelines.evaluation.answers import exact_match, f1, subspan_em
from pipelines.evaluation.questions import Question
from retrievers.metrics import Matcher, has_answer, ranking_per_question
from retrievers.types import Hit

Row = dict[str, Any]
_RANKING = {"ndcg@10": "nDCG@10", "mrr": "RR"}


def measure(question: Question, answer: Answer, *, matcher: Matcher) -> tuple[Row, Row]:
    """One question's row for `predictions.jsonl`, and its row for the retrieval files.

    Ranks count from 1 and are null where there is none. `answer_in_context` is null where no passages were offered.

    Raises:
        ShapeError: the score is not finite.
        ConfigError: an answer to score against is missing or blank.
    """
    if answer.score is not None and not math.isfinite(answer.score):
        raise ShapeError(f"the pipeline scored question {question.id!r} with {answer.score}, expected a finite number")
    golds = list(question.answers)
    matches = _Matches(golds, matcher)
    in_final = [matches(hit) for hit in answer.passages] if golds else []
    row: Row = {
        "id": question.id,
        "question": question.text,
        "answers": golds,
        "prediction": answer.text,
        "score": answer.score,
    }
    if answer.text is not None:
        row["em"] = exact_match(answer.text, golds)
        row["f1"] = f1(answer.text, golds)
        row["subspan_em"] = subspan_em(answer.text, golds)
    row |= {
        "answer_in_context": _in_context(answer, golds, matcher),
        "answer_rank": _first(in_final),
        "retrieved_answer_rank": _first([matches(hit) for hit in answer.retrieved]) if golds else None,
        "passages": len(answer.passages),
        "retrieved": len(answer.retrieved),
        "context": [kept.hit.passage_id for kept in answer.context],
        "packing": asdict(answer.packing) if answer.packing is not None else None,
        "timings": {stage: float(seconds) for stage, seconds in answer.timings.items()},
        "prompt": answer.prompt,
    }
    if answer.passes:
        row |= _recursion(answer, golds)
    if question.gold_passages:
        row |= _against_gold(question, answer.passages)
    retrieval = {
        "id": question.id,
        "question": question.text,
        "answers": golds,
        "ctxs": [_context(hit, in_final[i] if golds else None) for i, hit in enumerate(answer.passages)],
    }
    return row, retrieval


def _recursion(answer: Answer, golds: Sequence[str]) -> Row:
    """Which passes ran, and of the textual form whether any answer that was given on the way is right (`oracle`): the
    ceiling of every choice among them. A question for which nothing was sampled has its first answer only."""
    row: Row = {
        "passes": list(answer.passes),
        "second_pass": not {"second", "pass_2"}.isdisjoint(answer.passes),
        "confidence": answer.confidence,
    }
    if answer.passes[0] in ("first", "candidates"):
        said = [one.text for one in answer.candidates] if answer.candidates is not None else [answer.text or ""]
        row |= {
            "candidates": [asdict(one) for one in answer.candidates] if answer.candidates is not None else None,
            "candidates_dropped": answer.candidates_dropped,
            "oracle": any(exact_match(text, golds) for text in said) if golds else None,
        }
    return row


def _context(hit: Hit, found: bool | None) -> Row:
    context: Row = {"id": hit.passage_id, "title": hit.title, "text": hit.text, "score": hit.score}
    if hit.rerank_score is not None:
        context["rerank_score"] = hit.rerank_score
    if found is not None:
        context["has_answer"] = found
    return context


class _Matches:
    """Whether a passage's text has an answer; each passage of a question is looked at once."""

    def __init__(self, answers: Sequence[str], matcher: Matcher) -> None:
        self._answers, self._matcher = answers, matcher
        self._seen: dict[str, bool] = {}

    def __call__(self, hit: Hit) -> bool:
        if hit.passage_id not in self._seen:
            with retrieval_errors():
                self._seen[hit.passage_id] = has_answer(hit.text, self._answers, matcher=self._matcher)
        return self._seen[hit.passage_id]


def _in_context(answer: Answer, golds: Sequence[str], matcher: Matcher) -> bool | None:
    """DPR's matcher looks into each passage's shown text; `substring` into the passages as a whole, titles included."""
    if answer.text is None or not answer.passages or not golds:
        return None
    if matcher == "dpr":
        texts = [kept.text for kept in answer.context]
    else:
        texts = ["\n".join(f"{kept.hit.title}\n{kept.text}" for kept in answer.context)]
    with retrieval_errors():
        return any(has_answer(text, golds, matcher=matcher) for text in texts)


def _first(found: Sequence[bool]) -> int | None:
    return next((rank for rank, hit in enumerate(found, start=1) if hit), None)


def _against_gold(question: Question, passages: Sequence[Hit]) -> Row:
    grades = question.grades or (1,) * len(question.gold_passages)
    judged = {question.id: dict(zip(question.gold_passages, grades, strict=True))}
    ranks = {hit.passage_id: rank for rank, hit in enumerate(passages, start=1)}
    with retrieval_errors():
        scores = ranking_per_question(judged, {question.id: passages}, list(_RANKING.values()))
    return {
        "gold": len(question.gold_passages),
        "gold_ranks": sorted(ranks[passage] for passage in question.gold_passages if passage in ranks),
        **{name: scores[measure][question.id] for name, measure in _RANKING.items()},
    }
