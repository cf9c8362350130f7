"""From records of tasks to figures: each task's scores, their mean, intervals, and the difference of two runs.

The mean over tasks weighs every task alike. Its interval and that of a difference come from one bootstrap: examples are
drawn within each task, each task with random numbers of its own, and tasks are not drawn (they are the ones asked
about, not a sample of tasks). Two runs are compared on the same draws.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.errors import ConfigError
from pipelines.evaluation.outputs import ResultFolder
from pipelines.evaluation.statistics import Difference, Floats, mcnemar, resampled_means
from pipelines.evaluation.text_metrics import (
    CLASS_FIGURES,
    Measure,
    class_measure,
    figures_of,
    majority_share,
    text_measure,
)

CI_METHOD = (
    "Wilson for shares of examples; percentile bootstrap over examples, 2000 resamples, for the others; the mean's "
    "bootstrap draws within tasks"
)
Records = Sequence[Mapping[str, Any]]


def default_metric(*, choices: bool) -> str:
    """For a task that names none: accuracy where there are choices, else exact match and F1."""
    return "accuracy" if choices else "em_f1"


def by_task(records: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Records of each task, in order."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        found.setdefault(record["task"], []).append(record)
    return found


def check_figure(figure: str, records: Records) -> None:
    """Whether a task can be scored so, whatever is predicted.

    Raises:
        ConfigError: the figure needs choices and the task is free text, or goes by class and the choices differ by row.
    """
    if figure not in CLASS_FIGURES:
        return
    name = records[0]["task"]
    if not all("choices" in record for record in records):
        raise ConfigError(f"{figure} needs choices, and task {name!r} has rows of free text; choose another metric")
    if figure != "accuracy" and not _one_set_of_choices(records):
        raise ConfigError(f"{figure} goes by class, and the choices of task {name!r} differ by row; choose accuracy")


def measure(figure: str, records: Records) -> Measure:
    """One figure of one task.

    Raises:
        ConfigError: as `check_figure`.
    """
    check_figure(figure, records)
    if figure in CLASS_FIGURES:
        return class_measure(figure, [r["choice"] for r in records], [r["gold"] for r in records])
    return text_measure(figure, [r["prediction"] for r in records], [r["references"] for r in records])


def task_figures(metric: str, records: Records, *, seed: int = 0) -> dict[str, Any]:
    """What `metrics.json` says of one task: `score` is that of its metric, `figures` has the others beside it.

    `majority_accuracy` is the accuracy of always answering with the commonest class of these very rows; null where the
    choices differ from row to row.
    """
    classes = all("choices" in record for record in records)
    fixed = classes and _one_set_of_choices(records)
    beside = ("accuracy", "macro_f1") if fixed else ("accuracy",) if classes else ()
    names = list(dict.fromkeys([*figures_of(metric), *beside]))
    measures = {name: measure(name, records) for name in names}
    figures = {name: one.score for name, one in measures.items()}
    intervals = {name: one.interval(seed=seed) for name, one in measures.items()}
    found: dict[str, Any] = {
        "n": len(records),
        "metric": names[0],
        "score": figures[names[0]],
        "ci95": intervals[names[0]],
        "figures": figures,
        "figures_ci95": intervals,
    }
    if classes:
        found["majority_accuracy"] = majority_share([r["gold"] for r in records]) if fixed else None
    return found


def mean_figure(metrics: Mapping[str, str], records: Mapping[str, Records], *, seed: int = 0) -> dict[str, Any]:
    """The mean over tasks of their scores, with its 95% interval."""
    measures = [measure(figures_of(metrics[task])[0], own) for task, own in records.items()]
    draws = np.mean([one.draws(seed=seed + place) for place, one in enumerate(measures)], axis=0)
    low, high = np.quantile(draws, [0.025, 0.975])
    score = float(np.mean([one.score for one in measures]))
    return {"tasks": len(measures), "score": score, "ci95": [float(low), float(high)]}


def holds_tasks(folder: Path | str) -> bool:
    """Whether a folder holds a finished evaluation of tasks, not of questions."""
    return "tasks" in (ResultFolder(folder, passages=False).metrics() or {})


def compare_tasks(first: Path | str, second: Path | str, *, resamples: int = 10_000, seed: int = 0) -> dict[str, Any]:
    """Whether run `b` (`second`) differs from run `a` (`first`), task by task and on average.

    Returns:
        `a`, `b`: the folders; `n`; `tasks`: for each task `metric`, `n`, `a`, `b`, `difference` (b - a) with its 95%
        interval `low`, `high`, `p_bootstrap`, and for shares `only_a`, `only_b`, `p_mcnemar`; `mean`: the same of the
        mean over tasks.

    Raises:
        ConfigError: a folder that is unfinished or holds no tasks, or runs over other examples or with other metrics.
    """
    folders = [ResultFolder(first, passages=False), ResultFolder(second, passages=False)]
    about = [_finished(folder) for folder in folders]
    if about[0]["examples_sha256"] != about[1]["examples_sha256"]:
        raise ConfigError(
            f"{folders[0].path} and {folders[1].path} are over different examples ({about[0]['n']} and "
            f"{about[1]['n']}); only runs over the same tasks, ids, choices and answers can be compared"
        )
    metrics = [{task: own["metric"] for task, own in one["tasks"].items()} for one in about]
    if metrics[0] != metrics[1]:
        raise ConfigError(f"the runs have other metrics: {metrics[0]} and {metrics[1]}; evaluate one of them again")
    records = [by_task(folder.rows()) for folder in folders]
    found, draws = {}, []
    for place, (task, metric) in enumerate(metrics[0].items()):
        a, b = measure(metric, records[0][task]), measure(metric, records[1][task])
        drawn = _paired_draws(a, b, resamples=resamples, seed=seed + place)
        difference = _difference(a.score, b.score, drawn)
        found[task] = {"metric": metric, "n": len(a.values), **asdict(difference)}
        if a.yes_or_no:
            test = mcnemar(a.values[:, 0] == 1, b.values[:, 0] == 1)
            found[task] |= {"only_a": test.only_a, "only_b": test.only_b, "p_mcnemar": test.p}
        draws.append(drawn)
    scores = [float(np.mean([one[side] for one in found.values()])) for side in ("a", "b")]
    return {
        "a": str(folders[0].path),
        "b": str(folders[1].path),
        "n": about[0]["n"],
        "tasks": found,
        "mean": asdict(_difference(scores[0], scores[1], np.mean(draws, axis=0))),
    }


def _paired_draws(a: Measure, b: Measure, *, resamples: int, seed: int) -> Floats:
    """[resamples] differences b - a, both on the same samples of examples."""
    both = resampled_means(np.concatenate([a.values, b.values], axis=1), resamples=resamples, seed=seed)
    split = a.values.shape[1]
    return b.statistic(both[:, split:]) - a.statistic(both[:, :split])


def _difference(a: float, b: float, drawn: Floats) -> Difference:
    """As `statistics.paired_bootstrap` has it, from differences that are drawn already."""
    seen = b - a
    as_far = int((np.abs(drawn - seen) >= abs(seen) - 1e-12).sum())
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Difference(a, b, seen, float(low), float(high), (1 + as_far) / (1 + len(drawn)))


def _one_set_of_choices(records: Records) -> bool:
    return all(record["choices"] == records[0]["choices"] for record in records)


def _finished(folder: ResultFolder) -> dict[str, Any]:
    metrics = folder.metrics()
    if metrics is None:
        raise ConfigError(f"{folder.path} has no metrics.json; finish it with frozenlm evaluate first")
    if "tasks" not in metrics:
        raise ConfigError(f"{folder.path} holds no evaluation of tasks; compare runs of one kind")
    return metrics
