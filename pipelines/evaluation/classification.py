"""`frozenlm evaluate` for a config of kind `classification`: the same folder and figures as for tasks of an LM."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.build import module_folder
from pipelines.build_classification import check_labels, labelled_texts
from pipelines.evaluation.outputs import ResultFolder
from pipelines.evaluation.progress import progress_bar
from pipelines.evaluation.task_answers import gold_of
from pipelines.evaluation.task_figures import CI_METHOD, mean_figure, task_figures
from pipelines.evaluation.versions import versions
from pipelines.tasks.task import TaskRow

if TYPE_CHECKING:
    from frozenlm.encoder_tasks import LabelledText
    from pipelines.classification import ClassificationPipeline

Log = Callable[[str], None]
Pairs = Sequence[tuple[TaskRow, "LabelledText"]]


def evaluate_classification(
    pipeline: ClassificationPipeline,
    out: Path | str,
    *,
    limit: int | None = None,
    restart: bool = False,
    log: Log = lambda _: None,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure on the config's task. A run that was stopped goes on where it was; a finished one is not run again.

    Returns:
        The content of metrics.json.

    Raises:
        ConfigError: no such split, or a folder with another evaluation in it.
        CheckpointError: nothing has been trained, or something else than the config asks for.
    """
    from pipelines.loader import as_written

    config, block = pipeline.config, pipeline.config.evaluation
    pairs = labelled_texts(config, block.split, log=log)[: limit or block.limit]
    rows = [row for row, _ in pairs]
    check_labels(pipeline.tuned.head, rows[0].choices, module_folder(config, config.name))
    identity = {**pipeline.provenance(), "split": block.split, "examples_sha256": _digest(pairs)}
    folder = ResultFolder(out, passages=False)
    with folder.locked():
        folder.begin(identity, {"versions": versions(), "config": as_written(config)}, restart=restart)
        finished = folder.metrics()
        if finished is not None:
            log(f"{folder.path} is finished; its figures are taken as they are")
            return finished
        done = folder.resume([row.id for row in rows], block.chunk)
        with progress_bar(len(rows), done, show=progress) as advance:
            for start in range(done, len(rows), block.chunk):
                part = pairs[start : start + block.chunk]
                folder.append(_records(pipeline, part))
                advance(len(part))
        records = list(folder.rows())
        task, seed = config.task.name, config.seed
        verification = pipeline.encoder.verify()
        found = {
            "n": len(records),
            "tasks": {task: task_figures("accuracy", records, seed=seed)},
            "mean": mean_figure({task: "accuracy"}, {task: records}, seed=seed),
            "unseen": [],
            "ci95_method": CI_METHOD,
            "seconds": sum(record["seconds"] for record in records),
            "encoder_weights_changed": verification.changed,
            "encoder_weights": verification.total,
            "inputs_cut": sum(record["cut"] for record in records),
            "seed": seed,
            "versions": versions(),
        } | identity
        folder.finish(found, retrieval=False)
    return found


def _records(pipeline: ClassificationPipeline, pairs: Pairs) -> list[dict[str, Any]]:
    from frozenlm.encoder_tasks import predict

    began = time.perf_counter()
    tuned = pipeline.tuned
    found = predict(pipeline.encoder, tuned.head, tuned.delta, [text for _, text in pairs])  # type: ignore[arg-type]
    seconds = (time.perf_counter() - began) / len(pairs)
    return [
        {
            "id": row.id,
            "task": pipeline.config.task.name,
            "prediction": predicted.label,
            "choice": row.choices.index(predicted.label),
            "gold": gold_of(row),
            "choices": list(row.choices),
            "scores": [predicted.probabilities[choice] for choice in row.choices],
            "references": list(row.references or (row.target,)),
            "seconds": seconds,
            "cut": predicted.cut,
        }
        for (row, _), predicted in zip(pairs, found, strict=True)
    ]


def _digest(pairs: Pairs) -> str:
    lines = [[row.id, text.text, text.text_b, row.target, list(row.choices)] for row, text in pairs]
    return hashlib.sha256(json.dumps(lines).encode(errors="surrogatepass")).hexdigest()
