"""From a config of kind `prompting` to records, the LM that is asked, and the prompts that ask it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pipelines import config as c
from pipelines.build import frozen_lm
from pipelines.config_prompting import Contextual, all_fields, sources
from pipelines.config_prompting import Demonstrations as Block
from pipelines.config_tasks import task_spec
from pipelines.errors import ConfigError

if TYPE_CHECKING:
    from frozenlm.prompting.calibration import Calibration
    from frozenlm.prompting.demonstrations import Demonstrations, Embed
    from frozenlm.prompting.ensemble import Ensemble
    from frozenlm.prompting.filled import PromptHost
    from pipelines.tasks.task import TaskRow

Record = dict[str, Any]


def host(config: c.PromptingJob) -> PromptHost:
    """The frozen LM that is asked, of either kind."""
    if config.lm is not None:
        return frozen_lm(config.lm)
    from frozenlm.prompting.masked import FrozenMaskedLM

    block = config.masked_lm
    if block is None:
        raise ConfigError("prompting asks either an lm or a masked_lm; name one of them")
    return FrozenMaskedLM.load(block.model, revision=block.revision, dtype=block.dtype, device=block.device)


def labelled_records(config: c.PromptingJob, split: str) -> list[tuple[TaskRow, Record]]:
    """The rows of one split, each with what the templates read of its record: their fields, the label and an id.

    Raises:
        ConfigError: no such split, a damaged record, or one without a field that a template reads.
    """
    from pipelines.tasks.records import read_records
    from pipelines.tasks.task import load_task

    spec, fields = task_spec(config.task), all_fields(config.prompting, config.task)
    found = []
    for row, record in zip(load_task(spec, split), read_records(spec.records[split]), strict=True):
        kept: Record = {"id": row.id, spec.label: row.label}
        for field in fields:
            name = spec.fields.get(field, field)
            if name not in record.fields:
                has = ", ".join(map(str, record.fields))
                raise ConfigError(f"{record.where}: a template reads the field {name!r}; the record has {has}")
            kept[field] = record.fields[name]
        found.append((row, kept))
    return found


def ensemble(config: c.PromptingJob, embed: Callable[[], Embed]) -> Ensemble:
    """All templates as one; of a single template, an ensemble of one.

    Args:
        embed: gives texts -> vectors, where the demonstrations need them.

    Raises:
        ConfigError: fewer train records than demonstrations; as `labelled_records`.
    """
    from frozenlm.prompting.classify import Prompt
    from frozenlm.prompting.ensemble import Ensemble
    from frozenlm.prompting.template import Template
    from frozenlm.prompting.verbalizer import Verbalizer

    block = config.prompting
    verbalizer = Verbalizer(block.words or task_spec(config.task).words.words, pieces=block.pieces)  # type: ignore[union-attr]
    shown = _demonstrations(config, block.demonstrations, embed) if block.demonstrations is not None else None
    members = []
    for number, source in enumerate(sources(block, config.task)):
        plain = Template.parse(source)
        cut = [field for field in block.cut if field in plain.fields]
        template = Template.parse(source, cut=cut, sentinel=block.sentinel, name=f"template {number}")
        settings: dict[str, Any] = {"demonstrations": shown, "calibration": _calibration(block)}
        members.append(Prompt(template, verbalizer, question_tokens=config.input.max_tokens, **settings))
    how = block.ensemble if len(members) > 1 else "mean"
    return Ensemble(members, how=how, weights=block.weights or None)


def _demonstrations(config: c.PromptingJob, block: Block, embed: Callable[[], Embed]) -> Demonstrations:
    from frozenlm.prompting.demonstrations import Demonstrations

    records = [record for _, record in labelled_records(config, "train")]
    if block.limit is not None and block.limit < len(records):
        records = random.Random(config.seed).sample(records, block.limit)
    if len(records) < block.k:
        raise ConfigError(
            f"task {config.task.name!r} has {len(records)} train records, and k = {block.k} demonstrations are asked "
            "for; lower k"
        )
    return Demonstrations(
        records,
        embed=embed() if config.prompting.needs_encoder else None,
        label=task_spec(config.task).label,
        seed=config.seed,
        **block.model_dump(exclude={"limit"}),
    )


def _calibration(block: c.Prompting) -> Calibration | None:
    from frozenlm.prompting.calibration import ContextualCalibration, DomainPMI

    found = block.calibration
    if found is None:
        return None
    if isinstance(found, Contextual):
        return ContextualCalibration(tuple(found.texts), found.demonstrations)
    return DomainPMI(found.premise, found.demonstrations)
