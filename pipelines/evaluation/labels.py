"""Measuring what labels the rows of one task: the folder, the records and the figures that all its kinds share."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.evaluation.outputs import ResultFolder
from pipelines.evaluation.progress import progress_bar
from pipelines.evaluation.task_answers import gold_of
from pipelines.evaluation.task_figures import CI_METHOD, Records, mean_figure, task_figures
from pipelines.evaluation.versions import versions
from pipelines.tasks.task import TaskRow

Log = Callable[[str], None]
Labelled = tuple[str, Mapping[str, float], Mapping[str, Any]]
"""The likeliest choice, the share of every choice, and what else a record shall say."""


def evaluate_labels(
    config: Any,
    rows: Sequence[TaskRow],
    out: Path | str,
    *,
    labelled: Callable[[slice], Sequence[Labelled]],
    identity: Mapping[str, Any],
    figures: Callable[[Records], Mapping[str, Any]],
    restart: bool = False,
    log: Log = lambda _: None,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure. A run that was stopped goes on where it was; a finished one is not run again.

    Args:
        config: with a `task`, an `evaluation` and a seed.
        rows: of the task, all with the same choices.
        labelled: the answers to a slice of the rows.
        identity: what the rows depend on; recorded, and compared when a run goes on.
        figures: what metrics.json says beside the scores.
        restart: throw away what the folder holds.

    Returns:
        The content of metrics.json.

    Raises:
        ConfigError: a folder with another evaluation in it.
    """
    from pipelines.loader import as_written

    task, chunk = config.task.name, config.evaluation.chunk
    folder = ResultFolder(out, passages=False)
    with folder.locked():
        folder.begin(identity, {"versions": versions(), "config": as_written(config)}, restart=restart)
        finished = folder.metrics()
        if finished is not None:
            log(f"{folder.path} is finished; its figures are taken as they are")
            return finished
        done = folder.resume([row.id for row in rows], chunk)
        if done:
            log(f"{done} of {len(rows)} rows are answered in {folder.path} already")
        with progress_bar(len(rows), done, show=progress) as advance:
            for start in range(done, len(rows), chunk):
                part = slice(start, start + chunk)
                began = time.perf_counter()
                answers = labelled(part)
                seconds = (time.perf_counter() - began) / len(answers)
                folder.append(
                    _record(task, row, answer, seconds) for row, answer in zip(rows[part], answers, strict=True)
                )
                advance(len(answers))
        records = list(folder.rows())
        found = {
            "n": len(records),
            "tasks": {task: task_figures("accuracy", records, seed=config.seed)},
            "mean": mean_figure({task: "accuracy"}, {task: records}, seed=config.seed),
            "unseen": [],
            "ci95_method": CI_METHOD,
            "seconds": sum(record["seconds"] for record in records),
            **figures(records),
            "seed": config.seed,
            "versions": versions(),
            **identity,
        }
        folder.finish(found, retrieval=False)
    return found


def _record(task: str, row: TaskRow, answer: Labelled, seconds: float) -> dict[str, Any]:
    choice, shares, more = answer
    return {
        "id": row.id,
        "task": task,
        "prediction": choice,
        "choice": row.choices.index(choice),
        "gold": gold_of(row),
        "choices": list(row.choices),
        "scores": [shares[one] for one in row.choices],
        "references": list(row.references or (row.target,)),
        "seconds": seconds,
        **more,
    }
