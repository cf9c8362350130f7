"""From rows to figures: the columns of scores that rows hold, their means, their intervals.

All figures are shares or means in [0, 1] but for counts and seconds. Only numbers are kept of a row, so memory grows by
about a hundred bytes a question.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipelines.evaluation.statistics import Floats, bootstrap, wilson

CI_METHOD = "Wilson for shares of questions; percentile bootstrap over questions, 2000 resamples, for the others"
_RECURSION = ("oracle_at_n", "second_pass_share", "without_candidates_share")
_YES_OR_NO = ("em", "subspan_em", "recall_at_context", *_RECURSION, "recall_at.", "retriever_recall_at.")
_BY_K = ("recall_at", "retriever_recall_at", "gold_recall_at")


def yes_or_no(name: str) -> bool:
    """Whether a column holds only 0 and 1."""
    return name in _YES_OR_NO or name.startswith(tuple(n for n in _YES_OR_NO if n.endswith(".")))


@dataclass
class Scores:
    """The columns of a run. A column is absent where nothing of its kind was measured.

    Attributes:
        ids: question ids in order.
        columns: name -> [N] scores; names with a k read `recall_at.20`.
    """

    recall_at: Sequence[int]
    ids: list[str] = field(default_factory=list)
    columns: dict[str, Floats] = field(default_factory=dict)
    seconds: Counter[str] = field(default_factory=Counter)
    packing: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    candidates: Counter[str] = field(default_factory=Counter)
    depth: int = 0

    @classmethod
    def of(cls, rows: Iterable[dict[str, Any]], recall_at: Sequence[int]) -> Scores:
        """Read rows once, in order."""
        scores = cls(recall_at=tuple(recall_at))
        values: dict[str, list[float | None]] = {}
        for n, row in enumerate(rows):
            scores._count(row)
            for name, value in scores._values(row).items():
                values.setdefault(name, [None] * n).append(value)
            for column in values.values():
                column.extend([None] * (n + 1 - len(column)))
        scores.columns = {
            name: np.array([value or 0.0 for value in column], dtype=np.float64)
            for name, column in values.items()
            if any(value is not None for value in column)
        }
        return scores

    def _count(self, row: dict[str, Any]) -> None:
        self.ids.append(row["id"])
        self.seconds.update(row["timings"])
        self.depth = max(self.depth, row["passages"])
        self.packing["passages"] += len(row["context"])
        if found := row.get("candidates"):
            self.candidates.update(different=len(found), dropped=row["candidates_dropped"])
        if report := row["packing"]:
            self.packing["tokens"] += report["tokens"]
            self.packing["dropped"] += report["kept"] < report["offered"]
            self.packing["truncated"] += report["truncated"]
            self.packing["neutralised"] += report["neutralised"]
            self.dropped.update(report["dropped"])

    def _values(self, row: dict[str, Any]) -> dict[str, float | None]:
        values: dict[str, float | None] = {name: row.get(name) for name in ("em", "f1", "subspan_em", "ndcg@10", "mrr")}
        values["recall_at_context"] = row["answer_in_context"]
        values["second_pass_share"] = row.get("second_pass")
        if "oracle" in row:
            values |= {"oracle_at_n": row["oracle"], "without_candidates_share": row["candidates"] == []}
        for k in self.recall_at:
            if row["answers"] and row["passages"]:
                values[f"recall_at.{k}"] = (row["answer_rank"] or k + 1) <= k
            if row["answers"] and row["retrieved"]:
                values[f"retriever_recall_at.{k}"] = (row["retrieved_answer_rank"] or k + 1) <= k
            if row.get("gold"):
                values[f"gold_recall_at.{k}"] = sum(rank <= k for rank in row["gold_ranks"]) / row["gold"]
        return values

    def figures(self, *, seed: int = 0) -> dict[str, Any]:
        """The measured part of `metrics.json`: figures, their 95% intervals under `ci95`, costs."""
        n = len(self.ids)
        figures: dict[str, Any] = {"n": n}
        intervals: dict[str, Any] = {}
        for name in ("em", "f1", "subspan_em", "recall_at_context", "ndcg@10", "mrr"):
            figures[name], intervals[name] = self._figure(name, seed)
        for name in _RECURSION:
            if name in self.columns:  # of recursion, the others of its textual form only
                figures[name], intervals[name] = self._figure(name, seed)
        if "oracle_at_n" in self.columns:
            figures["candidates"] = dict(self.candidates)
        for name in _BY_K:
            by_k = {str(k): self._figure(f"{name}.{k}", seed) for k in self.recall_at}
            figures[name] = {k: value for k, (value, _) in by_k.items()}
            intervals[name] = {k: interval for k, (_, interval) in by_k.items()}
        figures |= self._given_context()
        intervals["em_given_context"] = self._ratio_interval(seed)
        figures |= {
            "ci95": intervals,
            "ci95_method": CI_METHOD,
            "recall_depth": self.depth,
            "passages_in_context": self.packing["passages"] / n,
            "tokens_in_context": self.packing["tokens"] / n,
            "dropped_share": self.packing["dropped"] / n,
            "dropped": dict(self.dropped),
            "truncated": self.packing["truncated"],
            "neutralised_delimiters": self.packing["neutralised"],
            "seconds": dict(self.seconds),
            "questions_per_second": {stage: n / s if s > 0 else None for stage, s in self.seconds.items()},
        }
        return figures

    def _figure(self, name: str, seed: int) -> tuple[float | None, list[float] | None]:
        column = self.columns.get(name)
        if column is None:
            return None, None
        mean = float(column.mean())
        interval = wilson(mean, len(column)) if yes_or_no(name) else bootstrap(column[:, None], seed=seed)
        return mean, None if interval is None else list(interval)

    def _given_context(self) -> dict[str, float | None]:
        """`em_given_context` is EM / recall@context, the paper's diagnostic (arXiv 2204.10019, table 2); it also counts
        right answers to questions whose context lacks them. `em_where_in_context` leaves those questions out."""
        em, recall = self.columns.get("em"), self.columns.get("recall_at_context")
        if em is None or recall is None or recall.sum() == 0:
            return {"em_given_context": None, "em_where_in_context": None}
        return {
            "em_given_context": float(em.mean() / recall.mean()),
            "em_where_in_context": float(em[recall == 1].mean()),
        }

    def _ratio_interval(self, seed: int) -> list[float] | None:
        em, recall = self.columns.get("em"), self.columns.get("recall_at_context")
        if em is None or recall is None or recall.sum() == 0:
            return None
        interval = bootstrap(np.stack([em, recall], axis=1), lambda means: means[:, 0] / means[:, 1], seed=seed)
        return None if interval is None else list(interval)
