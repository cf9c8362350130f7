"""`frozenlm evaluate` for a config of kind `classification`: the same folder and figures as for tasks of an LM."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.build import module_folder
from pipelines.build_classification import check_labels, labelled_texts
from pipelines.evaluation.labels import Labelled, Log, evaluate_labels
from pipelines.evaluation.task_figures import Records
from pipelines.tasks.task import TaskRow

if TYPE_CHECKING:
    from frozenlm.encoder_tasks import LabelledText
    from pipelines.classification import ClassificationPipeline

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
    from frozenlm.encoder_tasks import predict

    config, block = pipeline.config, pipeline.config.evaluation
    pairs = labelled_texts(config, block.split, log=log)[: limit or block.limit]
    rows = [row for row, _ in pairs]
    check_labels(pipeline.tuned.head, rows[0].choices, module_folder(config, config.name))

    def labelled(part: slice) -> list[Labelled]:
        tuned, texts = pipeline.tuned, [text for _, text in pairs[part]]
        found = predict(pipeline.encoder, tuned.head, tuned.delta, texts)  # type: ignore[arg-type]
        return [(one.label, one.probabilities, {"cut": one.cut}) for one in found]

    def figures(records: Records) -> dict[str, Any]:
        verification = pipeline.encoder.verify()
        return {
            "encoder_weights_changed": verification.changed,
            "encoder_weights": verification.total,
            "inputs_cut": sum(record["cut"] for record in records),
        }

    identity = {**pipeline.provenance(), "split": block.split, "examples_sha256": _digest(pairs)}
    return evaluate_labels(
        config,
        rows,
        out,
        labelled=labelled,
        identity=identity,
        figures=figures,
        restart=restart,
        log=log,
        progress=progress,
    )


def _digest(pairs: Pairs) -> str:
    lines = [[row.id, text.text, text.text_b, row.target, list(row.choices)] for row, text in pairs]
    return hashlib.sha256(json.dumps(lines).encode(errors="surrogatepass")).hexdigest()
