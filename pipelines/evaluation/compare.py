"""`frozenlm compare`: two result folders over the same questions, question by question."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError
from pipelines.evaluation.figures import Scores, yes_or_no
from pipelines.evaluation.outputs import ResultFolder
from pipelines.evaluation.statistics import mcnemar, paired_bootstrap


def compare(a: Path | str, b: Path | str, *, resamples: int = 10_000, seed: int = 0) -> dict[str, Any]:
    """Whether run `b` differs from run `a`.

    Returns:
        `a`, `b`: the folders; `n`; `scores`: for each score that both runs have: `a`, `b`, `difference` (b - a) with
        its 95% interval `low`, `high`, `p_bootstrap`, and for yes-or-no scores `only_a`, `only_b`, `p_mcnemar`.

    Raises:
        ConfigError: a folder that is unfinished, or runs over other questions or with another matcher.
    """
    left, right = ResultFolder(a), ResultFolder(b)
    about = [_finished(folder) for folder in (left, right)]
    for key, what in (("questions_sha256", "questions"), ("matcher", "matcher")):
        if about[0].get(key) != about[1].get(key):
            shown = [found["n"] if what == "questions" else found.get(key) for found in about]
            raise ConfigError(
                f"{left.path} and {right.path} differ in their {what} ({shown[0]} and {shown[1]}); only runs over the "
                "same questions, answers and gold passages with the same matcher can be compared"
            )
    depths = sorted({int(k) for k in about[0]["recall_at"]} & {int(k) for k in about[1]["recall_at"]})
    first, second = (Scores.of(folder.rows(), depths) for folder in (left, right))
    if first.ids != second.ids:
        place = next((i for i, (x, y) in enumerate(zip(first.ids, second.ids, strict=False)) if x != y), None)
        where = "their number" if place is None else f"row {place + 1}: {first.ids[place]!r} and {second.ids[place]!r}"
        raise ConfigError(f"the rows of {left.path} and {right.path} differ in {where}; evaluate one of them again")
    scores: dict[str, Any] = {}
    for name, column in first.columns.items():
        if (other := second.columns.get(name)) is None:
            continue
        scores[name] = asdict(paired_bootstrap(column, other, resamples=resamples, seed=seed))
        if yes_or_no(name):
            test = mcnemar(column == 1, other == 1)
            scores[name] |= {"only_a": test.only_a, "only_b": test.only_b, "p_mcnemar": test.p}
    return {"a": str(left.path), "b": str(right.path), "n": len(first.ids), "scores": scores}


def _finished(folder: ResultFolder) -> dict[str, Any]:
    metrics = folder.metrics()
    if metrics is None:
        raise ConfigError(f"{folder.path} has no metrics.json; finish it with frozenlm evaluate first")
    return metrics
