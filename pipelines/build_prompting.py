"""From a config of kind `prompting` to records, the LM that is asked, the prompts that ask it, and what they learn."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pipelines import config as c
from pipelines.build import Log, frozen_lm, module_folder
from pipelines.config_prompting import RENDERED, Contextual, all_fields, check_labels, sources
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
    """The frozen LM that is asked, of either kind.

    Raises:
        ConfigError: `sentinel` for an LM that has no use for it.
    """
    found = _host(config)
    if config.prompting.sentinel and found.kind != "encoder-decoder":
        kind = "masked" if found.kind == "masked" else "decoder-only"
        raise ConfigError(
            f"prompting.sentinel has an encoder-decoder LM answer at its sentinel, and this one is {kind}; leave it out"
        )
    return found


def _host(config: c.PromptingJob) -> PromptHost:
    if config.lm is not None:
        return frozen_lm(config.lm)
    from frozenlm.prompting.masked import FrozenMaskedLM

    block = config.masked_lm
    if block is None:
        raise ConfigError("prompting asks either an lm or a masked_lm; name one of them")
    return FrozenMaskedLM.load(block.model, revision=block.revision, dtype=block.dtype, device=block.device)


def label_words(task: c.TaskBlock) -> dict[str, str]:
    """Label of a task -> its word. The answer choices of a promptsource template are labels and words at once.

    Raises:
        ConfigError: a templates file that cannot be read, no choices, or choices that differ from record to record.
    """
    words = task_spec(task).words
    if words is not None:
        return words.words
    if task.promptsource is None:
        raise ConfigError(f"task {task.name!r} has no labels; prompting needs a fixed set of choices")
    from frozenlm.prompting.labels import word_table
    from pipelines.tasks.promptsource import load_template

    template = load_template(task.promptsource.file, task.promptsource.template)
    choices = template.fixed_choices()
    if choices is None:
        has = "answer choices that are read off each record" if template.source.answer_choices else "no answer choices"
        raise _no_fixed_choices(task, f"{template.source.where} has {has}")
    words_of = {choice: choice for choice in choices}
    word_table(words_of, where=f"{template.source.where}, answer_choices", synonyms=False)
    return words_of


def _no_fixed_choices(task: c.TaskBlock, why: str) -> ConfigError:
    return ConfigError(
        f"task {task.name!r}: {why}; prompting scores the same words for every record: take another template, or use "
        "kind: multitask"
    )


def labelled_records(config: c.PromptingJob, split: str, log: Log = lambda _: None) -> list[tuple[TaskRow, Record]]:
    """The rows of one split, each with what the templates read of its record: their fields, the label and an id.

    Of a promptsource task that is what its template writes, and its target as the label.

    Raises:
        ConfigError: no such split, a damaged record, one without a field that a template reads, or one with other
            choices than the rest.
    """
    from pipelines.tasks.records import read_records
    from pipelines.tasks.task import load_task

    spec, fields = task_spec(config.task), all_fields(config.prompting, config.task)
    if config.task.promptsource is not None:
        return _rendered(config.task, split, log)
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


def _rendered(task: c.TaskBlock, split: str, log: Log) -> list[tuple[TaskRow, Record]]:
    from pipelines.tasks.task import load_task

    choices, rows = tuple(label_words(task)), load_task(task_spec(task), split)
    if rows.skipped:
        log(f"{task.name}: {rows.skipped} {split} records left out, for which the template has nothing to ask")
    for row in rows:
        if row.choices != choices:
            said = " and ".join(", ".join(map(repr, own)) for own in (choices, row.choices))
            raise _no_fixed_choices(task, f"its template has the answer choices {said} ({row.id})")
    return [(row, {"id": row.id, task.label: row.target, RENDERED: row.text}) for row in rows]


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

    block, own = config.prompting, label_words(config.task)
    check_labels(block, list(own), whose=f"task {config.task.name!r}")
    return Verbalizer(block.words or own, pieces=block.pieces)


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
