"""From a config of kind `prompting` to records, the LM that is asked, the prompts that ask it, and what they learn."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pipelines import config as c
from pipelines.build import frozen_lm, module_folder
from pipelines.config_prompting import Contextual, all_fields, sources
from pipelines.config_prompting import Demonstrations as Block
from pipelines.config_tasks import task_spec
from pipelines.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from frozenlm.prompting.calibration import Calibration
    from frozenlm.prompting.demonstrations import Demonstrations, Embed
    from frozenlm.prompting.ensemble import Ensemble
    from frozenlm.prompting.filled import PromptHost
    from frozenlm.prompting.learned import LearnedPrompt
    from frozenlm.prompting.template import Template
    from frozenlm.prompting.verbalizer import Verbalizer
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


def ensemble(config: c.PromptingJob, embed: Callable[[], Embed], learned: LearnedPrompt | None = None) -> Ensemble:
    """All templates as one; of a single template, an ensemble of one.

    Args:
        embed: gives texts -> vectors, where the demonstrations need them.
        learned: what is learned about the one template, where anything is.

    Raises:
        ConfigError: fewer train records than demonstrations; as `labelled_records`.
    """
    from frozenlm.prompting.classify import Prompt
    from frozenlm.prompting.ensemble import Ensemble

    block, words = config.prompting, _words(config)
    shown = _demonstrations(config, block.demonstrations, embed) if block.demonstrations is not None else None
    settings: dict[str, Any] = {"demonstrations": shown, "calibration": _calibration(block)}
    settings["question_tokens"] = config.input.max_tokens
    make = Prompt if learned is None else learned.prompt
    members = [make(template, words, **settings) for template in _templates(config)]
    how = block.ensemble if len(members) > 1 else "mean"
    return Ensemble(members, how=how, weights=block.weights or None)


def new_learned(config: c.PromptingJob, host: PromptHost) -> LearnedPrompt:
    """What is learned, before training.

    Raises:
        ConfigError: words that the host cannot write.
    """
    from frozenlm.prompting.learned import LearnedPrompt

    (template,) = _templates(config)
    kind = config.prompting.verbalizer
    return LearnedPrompt.create(host, template, _words(config), verbalizer=kind, seed=config.seed)


def trained_learned(config: c.PromptingJob, host: PromptHost) -> LearnedPrompt | None:
    """What has been learned, from the workspace, in eval mode; None where nothing is to be learned.

    Raises:
        CheckpointError: not trained yet, damaged, or of another LM, template or labels.
    """
    from frozenlm.prompting.learned import LearnedPrompt

    if not config.prompting.learns:
        return None
    folder = module_folder(config, config.prompting.name)
    if not folder.exists():
        raise CheckpointError(f"no trained prompt at {folder}; run `frozenlm train CONFIG` from this directory")
    (template,) = _templates(config)
    return LearnedPrompt.load(folder, host, template, _words(config), verbalizer=config.prompting.verbalizer).eval()


def _templates(config: c.PromptingJob) -> list[Template]:
    from frozenlm.prompting.template import Template

    block, found = config.prompting, []
    for number, source in enumerate(sources(block, config.task)):
        cut = [field for field in block.cut if field in Template.parse(source).fields]
        found.append(Template.parse(source, cut=cut, sentinel=block.sentinel, name=f"template {number}"))
    return found


def _words(config: c.PromptingJob) -> Verbalizer:
    from frozenlm.prompting.verbalizer import Verbalizer

    block = config.prompting
    return Verbalizer(block.words or task_spec(config.task).words.words, pieces=block.pieces)  # type: ignore[union-attr]


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
