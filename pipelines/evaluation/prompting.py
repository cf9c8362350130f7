"""`frozenlm evaluate` for a config of kind `prompting`: the same folder and figures as for tasks of an LM."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frozenlm.rows import text_ids
from pipelines.build_prompting import labelled_records
from pipelines.evaluation.labels import Labelled, Log, evaluate_labels
from pipelines.evaluation.task_figures import Records
from pipelines.evaluation.tasks import examples_sha256

if TYPE_CHECKING:
    from frozenlm.prompting.filled import Filled
    from pipelines.prompting import PromptingPipeline


def evaluate_prompting(
    pipeline: PromptingPipeline,
    out: Path | str,
    *,
    limit: int | None = None,
    restart: bool = False,
    log: Log = lambda _: None,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure on the config's task. A run that was stopped goes on where it was; a finished one is not run again.

    All questions are worded before the first is asked, so what does not fit is said at once.

    Returns:
        The content of metrics.json. `inputs_cut` counts questions, `tokens_cut` and `demonstrations_dropped` are sums
        over questions and templates, `encoder_inputs_cut` counts demonstrations too.

    Raises:
        ConfigError: no such split, a record without a field, demonstrations that do not fit, or a folder with another
            evaluation in it.
    """
    config, block = pipeline.config, pipeline.config.evaluation
    pairs = labelled_records(config, block.split, log)[: limit or block.limit]
    rows = [row for row, _ in pairs]
    words, encoder = pipeline.words, pipeline.encoder
    cut_before = encoder.truncated if encoder is not None else 0
    filled = pipeline.ensemble.fill(pipeline.host, [record for _, record in pairs])
    cut_for_encoder = encoder.truncated - cut_before if encoder is not None else 0

    def labelled(part: slice) -> list[Labelled]:
        return [
            (
                words[one.label],
                {words[label]: share for label, share in one.probabilities.items()},
                {"cut": one.cut, "dropped": one.dropped},
            )
            for one in pipeline.ensemble.answered(pipeline.host, filled[part])
        ]

    def figures(records: Records) -> dict[str, Any]:
        verification = pipeline.host.verify()
        seconds = sum(record["seconds"] for record in records)
        return {
            "rows_per_second": len(records) / seconds if seconds > 0 else None,
            "lm_weights_changed": verification.changed,
            "lm_weights": verification.total,
            "encoder_weights_changed": encoder.verify().changed if encoder is not None else None,
            "encoder_inputs_cut": cut_for_encoder,
            "inputs_cut": sum(record["cut"] > 0 for record in records),
            "tokens_cut": sum(record["cut"] for record in records),
            "demonstrations_dropped": sum(record["dropped"] for record in records),
        }

    identity = {
        **pipeline.provenance(),
        "split": block.split,
        "examples_sha256": examples_sha256([row.task for row in rows], rows),
        "inputs_sha256": _digest(filled),
    }
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


def _digest(filled: Sequence[Sequence[Filled]]) -> str:
    inputs = hashlib.sha256()
    for question in filled:
        inputs.update(json.dumps([text_ids(one.row) for one in question]).encode() + b"\n")
    return inputs.hexdigest()
