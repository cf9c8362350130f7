"""From the config blocks of a mixture of tasks to the objects they name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import config as c
from pipelines.build import Log, module_folder
from pipelines.errors import CheckpointError, ConfigError
from pipelines.tasks.encoding import RowEncoder
from pipelines.training.initializers import initializer
from retrievers.compute import resolve_model

if TYPE_CHECKING:
    from frozenlm.encoder import FrozenEncoder
    from frozenlm.lm import FrozenLM
    from frozenlm.prompts.interface import PromptModule
    from frozenlm.prompts.soft_prompt import SoftPrompt
    from pipelines.tasks.spec import TaskSpec
    from pipelines.tasks.task import Task


def encoder(config: c.Multitask) -> FrozenEncoder | None:
    """The frozen encoder, where a prompt needs one."""
    block = config.encoder
    prompts = [config.prompt, *config.modules]
    if block is None or not any(isinstance(prompt, c.InputDependent | c.IDPG) for prompt in prompts):
        return None
    from frozenlm.encoder import FrozenEncoder

    return FrozenEncoder.load(
        resolve_model(block.model),
        revision=block.revision,
        dtype=block.dtype,
        device=block.device,
        max_length=block.max_length,
    )


def expanded(blocks: Sequence[c.TaskBlock]) -> list[c.TaskBlock]:
    """The blocks, with `template: all` made one block a template of the original task, named `task.number`.

    Raises:
        ConfigError: a file that cannot be read, or without such a template.
    """
    found: list[c.TaskBlock] = []
    for block in blocks:
        if block.promptsource is None or block.promptsource.template != "all":
            found.append(block)
            continue
        from pipelines.tasks.promptsource import read_templates

        file = block.promptsource.file
        templates = [template for template in read_templates(file) if template.original_task]
        if not templates:
            raise ConfigError(f"task {block.name!r}: {file} has no template that asks for the original task")
        for number, template in enumerate(templates, start=1):
            metric = block.metric if block.metric != "auto" else "accuracy" if template.answer_choices else "rouge"
            changes = {
                "name": f"{block.name}.{number}",
                "promptsource": block.promptsource.model_copy(update={"template": template.id}),
                "metric": metric,
                "weight": block.weight / len(templates),
            }
            found.append(block.model_copy(update=changes))
    return found


def spec(block: c.TaskBlock) -> TaskSpec:
    """The task that a block describes; nothing is read yet."""
    from pipelines.tasks.records import RecordSource
    from pipelines.tasks.spec import TaskSpec

    sources: dict[str, RecordSource] = {}
    for split in ("train", "dev", "test"):
        records: c.Records | None = getattr(block, split)
        if records is not None:
            sources[split] = RecordSource(
                path=records.path or str(records.dataset),
                format=records.format if records.path is not None else "hf",
                **records.model_dump(include={"split", "subset", "revision", "skip", "limit", "sample"}),
            )
    source = block.promptsource
    return TaskSpec(
        name=block.name,
        records=sources,
        promptsource=source.file if source is not None else None,
        promptsource_template=source.template if source is not None else None,
        labels=tuple(block.labels),
        **block.model_dump(include={"metric", "template", "verbalizer", "target", "references", "label", "fields"}),
    )


def tasks(config: c.Multitask, split: str, *, seen: bool | None = None, log: Log = lambda _: None) -> list[Task]:
    """The tasks of a config with the rows of one split; what was left out is said.

    Args:
        seen: True for those that are trained on, False for the others, None for all.

    Raises:
        ConfigError: no task, a task without this split, or one that is empty or damaged.
    """
    from pipelines.tasks.task import TaskRows, load_tasks

    blocks = [task for task in expanded(config.tasks) if seen is None or task.seen == seen]
    if not blocks:
        raise ConfigError("this config has no task to read; give it a tasks block with at least one that is seen")
    specs = [spec(block) for block in blocks]
    if missing := [one.name for one in specs if split not in one.records]:
        raise ConfigError(f"task {missing[0]!r} has no {split} records; name them under tasks.{split}")
    found = load_tasks(specs, [split])
    for task in found:
        rows = task.rows[split]
        if isinstance(rows, TaskRows) and rows.skipped:
            log(f"{task.name}: {rows.skipped} {split} records left out, for which the template has nothing to ask")
    return found


def row_encoder(config: c.Multitask, lm: FrozenLM) -> RowEncoder:
    """How rows become tokens of this LM.

    Raises:
        ConfigError: answers are longer than the room kept for them, or inputs have none.
    """
    block, prompts = config.input, [config.prompt, *config.modules]
    if config.generation.max_new_tokens > block.answer_tokens:
        raise ConfigError(
            f"generation.max_new_tokens is {config.generation.max_new_tokens}, but input.answer_tokens keeps only "
            f"{block.answer_tokens} tokens of the window for the answer; raise the one or lower the other"
        )
    return RowEncoder(
        lm,
        max_tokens=block.max_tokens,
        keep_end=block.keep_end,
        answer=block.answer,
        answer_tokens=block.answer_tokens,
        soft_tokens=max((prompt.length for prompt in prompts if prompt is not None), default=0),
    )


def new_prompt(config: c.Multitask, block: c.Prompt, lm: FrozenLM, encoder: FrozenEncoder | None) -> PromptModule:
    """A prompt method before training.

    Raises:
        ConfigError: a size out of range.
        CheckpointError: a source prompt of ATTEMPT is not trained.
    """
    common: dict[str, Any] = {
        "init": initializer(block.init),
        "position": block.position,
        "seed": config.seed,
    }
    seen = [task.name for task in expanded(config.tasks) if task.seen]
    if isinstance(block, c.OnePrompt):
        from frozenlm.prompts.soft_prompt import SoftPrompt

        return SoftPrompt.create(lm, block.length, **common)
    if isinstance(block, c.PromptPerTask):
        from frozenlm.prompts.task_prompts import TaskPrompts

        return TaskPrompts.create(lm, seen, block.length, **common)
    if isinstance(block, c.Attempt):
        from frozenlm.prompts.attempt import Attempt

        sources = [_source(config, name, lm) for name in block.sources]
        of_tasks = seen if block.per_task else None
        return Attempt.create(
            lm, sources, block.length, tasks=of_tasks, width=block.width, temperature=block.temperature, **common
        )
    if encoder is None:
        raise ConfigError(f"prompt {block.name!r} of kind {block.kind} needs an encoder block")
    if isinstance(block, c.IDPG):
        from frozenlm.prompts.idpg import IDPG

        return IDPG.create(lm, encoder, block.length, bottleneck=block.bottleneck, phm=block.phm, **common)
    from frozenlm.prompts.input_dependent import InputDependentPrompt

    sizes = block.model_dump(exclude={"kind", "name", "length", "position", "init"})
    return InputDependentPrompt.create(lm, encoder, block.length, **sizes, **common)


def _source(config: c.Multitask, name: str, lm: FrozenLM) -> SoftPrompt:
    from frozenlm.prompts.soft_prompt import SoftPrompt

    folder = module_folder(config, name)
    if not folder.exists():
        raise CheckpointError(
            f"no source prompt at {folder}; train it first: `frozenlm train` on a config of one task with a "
            "soft_prompt of that name, in this workspace"
        )
    return SoftPrompt.load(folder, lm)


def trained_prompt(config: c.Multitask, block: c.Prompt, lm: FrozenLM, encoder: FrozenEncoder | None) -> PromptModule:
    """A prompt method from the workspace.

    Raises:
        CheckpointError: not trained yet, damaged, of another LM or encoder, or not of the config's length and position.
    """
    folder = module_folder(config, block.name)
    if not folder.exists():
        raise CheckpointError(
            f"no trained prompt at {folder}; run `frozenlm train CONFIG` from this directory, or set prompt=null to "
            "use the LM as it is"
        )
    module = _loaded(folder, block, lm, encoder)
    if (module.length, module.position) != (block.length, block.position):
        raise CheckpointError(
            f"{folder} holds a prompt of {module.length} tokens in {module.position} position, the config asks for "
            f"{block.length} in {block.position}; train it again with --restart, or give it another prompt.name"
        )
    return module


def _loaded(folder: Path, block: c.Prompt, lm: FrozenLM, encoder: FrozenEncoder | None) -> PromptModule:
    if isinstance(block, c.OnePrompt):
        from frozenlm.prompts.soft_prompt import SoftPrompt

        return SoftPrompt.load(folder, lm)
    if isinstance(block, c.PromptPerTask):
        from frozenlm.prompts.task_prompts import TaskPrompts

        return TaskPrompts.load(folder, lm)
    if isinstance(block, c.Attempt):
        from frozenlm.prompts.attempt import Attempt

        return Attempt.load(folder, lm)
    if encoder is None:
        raise ConfigError(f"prompt {block.name!r} of kind {block.kind} needs an encoder block")
    if isinstance(block, c.IDPG):
        from frozenlm.prompts.idpg import IDPG

        return IDPG.load(folder, lm, encoder)
    from frozenlm.prompts.input_dependent import InputDependentPrompt

    return InputDependentPrompt.load(folder, lm, encoder)
