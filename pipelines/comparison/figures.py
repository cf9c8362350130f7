"""From the results of a comparison to its figures: means over seeds and tasks, and each method beside the reference.

The mean of a method weighs every task alike; its spread is the standard deviation over seeds of that mean. The share of
the reference is the ratio of the means, the figure of the Delta Tuning survey (arXiv 2203.06904, table 7).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.comparison.results import Result
from pipelines.config_comparison import ZERO_SHOT

NORMAL_95 = 1.96  # standard deviations
STATE_BYTES = 16  # of a trained number


@dataclass(frozen=True)
class MethodFigures:
    """One method over all its runs.

    tasks: task -> scores, a seed each
    mean: of the tasks' means; None unless every task has been run
    spread: standard deviation over seeds of the mean over tasks; None with one seed, or where tasks lack seeds
    interval: 95% of `mean`, over test rows, which the seeds share, and over seeds (our choice: normal, variances added)
    of_reference: mean / mean of the reference
    trained_parameters: what the optimizer moves, counted when training begins (in lines of earlier versions, when
        DiffPruning's gates had closed); most over the tasks, where heads differ in size
    kept_parameters: what serves it, most over the tasks; None where no line says it
    share: trained, of the LM's parameters
    seconds_per_step: median; steps alone, without evaluation
    saved_bytes: what a step keeps for its backward pass, most
    step_bytes: what a step needs beside the frozen weights, most: `saved_bytes`, and for each trained number its value,
        its gradient and AdamW's two moments in float32, 16 bytes (our count: Adafactor holds less); None where lines of
        earlier versions do not say how many numbers DiffPruning's step trains
    """

    method: str
    kind: str
    tasks: dict[str, list[float]]
    mean: float | None
    spread: float | None
    interval: tuple[float, float] | None
    of_reference: float | None
    trained_parameters: int
    kept_parameters: int | None
    share: float
    seconds_per_step: float | None
    saved_bytes: int | None
    step_bytes: int | None
    learning_rates: dict[str, float]


def figures(results: Sequence[Result], reference: str | None = None) -> list[MethodFigures]:
    """One entry a method, in the order of the results (see `results.in_order`); zero-shot first."""
    methods = dict.fromkeys([ZERO_SHOT, *(result["method"] for result in results)])
    tasks = list(dict.fromkeys(result["task"] for result in results))
    of = {method: [result for result in results if result["method"] == method] for method in methods}
    standard = _mean(of.get(reference or "", []), tasks)
    return [_method(own, tasks, standard) for own in of.values() if own]


def _method(results: Sequence[Result], tasks: Sequence[str], standard: float | None) -> MethodFigures:
    mean = _mean(results, tasks)
    steps = [result["seconds_per_step"] for result in results if result.get("seconds_per_step")]
    saved = [r for r in results if r.get("saved_bytes") is not None]
    kept = [r["kept_parameters"] for r in results if r.get("kept_parameters") is not None]
    trained = max(result["trained_parameters"] for result in results)
    return MethodFigures(
        method=results[0]["method"],
        kind=results[0]["kind"],
        tasks={task: [r["score"] for r in results if r["task"] == task] for task in tasks},
        mean=mean,
        spread=_spread(results, tasks),
        interval=_interval(results, tasks),
        of_reference=mean / standard if mean is not None and standard else None,
        trained_parameters=trained,
        kept_parameters=max(kept, default=None),
        share=trained / results[0]["lm_parameters"],
        seconds_per_step=statistics.median(steps) if steps else None,
        saved_bytes=max((r["saved_bytes"] for r in saved), default=None),
        step_bytes=max((_step_bytes(r) for r in saved if _says_what_a_step_trains(r)), default=None),
        learning_rates={r["task"]: r["learning_rate"] for r in results if "learning_rate" in r},
    )


def _says_what_a_step_trains(result: Result) -> bool:
    return result["kind"] != "diff_pruning" or result.get("kept_parameters") is not None


def _step_bytes(result: Result) -> int:
    return int(result["saved_bytes"] + STATE_BYTES * result["trained_parameters"])


def _mean(results: Sequence[Result], tasks: Sequence[str]) -> float | None:
    scores = [[r["score"] for r in results if r["task"] == task] for task in tasks]
    return statistics.mean(statistics.mean(own) for own in scores) if scores and all(scores) else None


def _spread(results: Sequence[Result], tasks: Sequence[str]) -> float | None:
    by_seed: dict[int, dict[str, float]] = {}
    for result in results:
        by_seed.setdefault(result["seed"], {})[result["task"]] = result["score"]
    means = [statistics.mean(own.values()) for own in by_seed.values() if len(own) == len(tasks)]
    return statistics.stdev(means) if len(means) > 1 else None


def _interval(results: Sequence[Result], tasks: Sequence[str]) -> tuple[float, float] | None:
    mean, spread = _mean(results, tasks), _spread(results, tasks)
    if mean is None:
        return None
    seeds = len({result["seed"] for result in results})
    halves = [[(r["ci95"][1] - r["ci95"][0]) / 2 for r in results if r["task"] == task] for task in tasks]
    of_rows = sum(statistics.mean(own) ** 2 for own in halves) / len(tasks) ** 2
    half = math.sqrt(of_rows + (NORMAL_95 * (spread or 0)) ** 2 / seeds)
    return mean - half, mean + half


def transfer(results: Sequence[Result], method: str) -> dict[str, dict[str, float]]:
    """Trained for -> measured on -> score, the mean over seeds; the diagonal is the task's own score."""
    found: dict[str, dict[str, list[float]]] = {}
    for result in results:
        if result["method"] == method:
            row: Mapping[str, Any] = {**result.get("transfer", {}), result["task"]: result["score"]}
            for task, score in row.items():
                found.setdefault(result["task"], {}).setdefault(task, []).append(score)
    return {source: {task: statistics.mean(own) for task, own in row.items()} for source, row in found.items()}


def curves(results: Sequence[Result], method: str) -> dict[int, float]:
    """Step -> dev score, the mean over tasks of each task's mean over seeds, at the steps where all tasks have one."""
    tasks = {result["task"] for result in results}
    at: dict[int, dict[str, list[float]]] = {}
    for result in results:
        if result["method"] == method:
            for entry in result.get("history", []):
                if entry.get("score") is not None:
                    at.setdefault(int(entry["step"]), {}).setdefault(result["task"], []).append(entry["score"])
    whole = {step: of_tasks for step, of_tasks in sorted(at.items()) if len(of_tasks) == len(tasks)}
    return {step: statistics.mean(map(statistics.mean, of_tasks.values())) for step, of_tasks in whole.items()}
