"""From the config blocks of a mixture of tasks to the objects they name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import build_prompts
from pipelines import config as c
from pipelines.build import Log, frozen_encoder, module_folder
from pipelines.build_deltas import new_delta, trained_delta
from pipelines.config_tasks import PromptSource, task_spec
from pipelines.errors import CheckpointError, ConfigError
from pipelines.tasks.encoding import RowEncoder
from pipelines.training.initializers import initializer

if TYPE_CHECKING:
    from frozenlm.encoder import FrozenEncoder
    from frozenlm.lm import FrozenLM
    from frozenlm.prompts.interface import PromptModule
    from frozenlm.prompts.soft_prompt import SoftPrompt
    from pipelines.tasks.task import Task


def encoder(config: c.Multitask) -> FrozenEncoder | None:
    """The frozen encoder, where a prompt needs one."""
    block = config.encoder
    prompts = [config.prompt, *config.modules]
    if block is None or not any(isinstance(prompt, c.InputDependent | c.IDPG) for prompt in prompts):
        return None
    return frozen_encoder(block)


def expanded(blocks: Sequence[c.TaskBlock]) -> list[c.TaskBlock]:
    """The blocks, with `template: all` made one block a template of the original task, named `task.number`, and
    `metric: auto` made the one that fits.

    Raises:
        ConfigError: a templates file that cannot be read, or without such a template.
    """
    found: list[c.TaskBlock] = []
    for block in blocks:
        if block.promptsource is not None and block.promptsource.template == "all":
            found += _one_each(block, block.promptsource)
        elif block.metric == "auto":
            found.append(block.model_copy(update={"metric": _fitting_metric(block)}))
        else:
            found.append(block)
    return found


def _one_each(block: c.TaskBlock, source: PromptSource) -> list[c.TaskBlock]:
    from pipelines.tasks.promptsource import read_templates

    templates = [template for template in read_templates(source.file) if template.original_task]
    if not templates:
        raise ConfigError(f"task {block.name!r}: {source.file} has no template that asks for the original task")
    blocks = []
    for number, template in enumerate(templates, start=1):
        changes = {
            "name": f"{block.name}.{number}",
            "promptsource": source.model_copy(update={"template": template.id}),
            "metric": block.metric if block.metric != "auto" else "accuracy" if template.answer_choices else "rouge",
            "weight": block.weight / len(templates),
        }
        blocks.append(block.model_copy(update=changes))
    return blocks


def _fitting_metric(block: c.TaskBlock) -> str:
    if block.promptsource is None:
        return task_spec(block).metric
    from pipelines.tasks.promptsource import load_template

    template = load_template(block.promptsource.file, block.promptsource.template)
    return "accuracy" if template.source.answer_choices else "rouge"


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
    specs = [task_spec(block) for block in blocks]
    if missing := [one.name for one in specs if split not in one.records]:
        raise ConfigError(f"task {missing[0]!r} has no {split} records; name them under tasks.{split}")
    found = load_tasks(specs, [split])
    for task in found:
        rows = task.rows[split]
        if isinstance(rows, TaskRows) and rows.skipped:
            log(f"{task.name}: {rows.skipped} {split} records left out, for which the template has nothing to ask")
    return found


def row_encoder(config: c.Multitask, lm: FrozenLM, *, soft_tokens: int = 0) -> RowEncoder:
    """How rows become tokens of this LM.

    Args:
        soft_tokens: of a prompt that the config does not know.

    Raises:
        ConfigError: answers are longer than the room kept for them, or inputs have none.
    """
    block = config.input
    beside = [getattr(one, "length", 0) for one in (config.trained, *config.modules)]
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
        soft_tokens=max(soft_tokens, *beside),
    )


def new_module(config: c.Multitask, block: c.Module, lm: FrozenLM, encoder: FrozenEncoder | None) -> Any:
    """A prompt method or a delta before training.

    Raises:
        ConfigError, CheckpointError: as `new_prompt` and `build_deltas.new_delta`.
    """
    return (
        new_delta(block, lm, config.seed) if isinstance(block, c.DeltaBlock) else new_prompt(config, block, lm, encoder)
    )


def trained_module(config: c.Multitask, block: c.Module, lm: FrozenLM, encoder: FrozenEncoder | None) -> Any:
    """A prompt method or a delta from the workspace, in eval mode.

    Raises:
        CheckpointError: not trained yet, damaged, of another LM or encoder, or not what the config asks for.
    """
    if isinstance(block, c.DeltaBlock):
        return trained_delta(module_folder(config, block.name), block, lm)
    return trained_prompt(config, block, lm, encoder)


def new_prompt(config: c.Multitask, block: c.Prompt, lm: FrozenLM, encoder: FrozenEncoder | None) -> PromptModule:
    """A prompt method before training.

    Raises:
        ConfigError: a size out of range.
        CheckpointError: a prompt that it begins with is not trained, or of other sizes.
    """
    common: dict[str, Any] = {
        "init": initializer(block.init, config.workspace_path / "modules"),
        "position": block.position,
        "seed": config.seed,
    }
    seen = [task.name for task in expanded(config.tasks) if task.seen]
    if isinstance(block, c.OnePrompt):
        from frozenlm.prompts.soft_prompt import SoftPrompt

        return SoftPrompt.create(lm, block.length, **common)
    if isinstance(block, c.PromptPerTask):
        from frozenlm.prompts.task_prompts import TaskPrompts

        return TaskPrompts.create(lm, seen, block.length, unseen=block.unseen, **common)
    if isinstance(block, c.Attempt):
        from frozenlm.prompts.attempt import Attempt

        sources = [_source(config, name, lm) for name in block.sources]
        of_tasks = seen if block.per_task else None
        sizes = block.model_dump(include={"width", "temperature", "unseen"})
        return Attempt.create(lm, sources, block.length, tasks=of_tasks, **sizes, **common)
    if isinstance(block, build_prompts.Block):
        return build_prompts.new(config, block, lm, seen, common)
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
    """A prompt method from the workspace, in eval mode.

    Raises:
        CheckpointError: not trained yet, damaged, of another LM or encoder, or not of the config's length and position.
    """
    folder = module_folder(config, block.name)
    if not folder.exists():
        raise CheckpointError(
            f"no trained prompt at {folder}; run `frozenlm train CONFIG` from this directory, or set prompt=null to "
            "use the LM as it is"
        )
    if isinstance(block, build_prompts.Block):
        module: Any = build_prompts.loaded(config, block, lm)
    else:
        module = _loaded(folder, block, lm, encoder)
    module.eval()
    if (module.length, module.position) != (block.length, block.position):
        raise CheckpointError(
            f"{folder} holds a prompt of {module.length} tokens in {module.position} position, the config asks for "
            f"{block.length} in {block.position}; train it again with --restart, or give it another prompt.name"
        )
    if isinstance(block, c.InputDependent):
        _check_sizes(folder, asdict(module.sizes), block.model_dump())
    elif isinstance(block, c.IDPG):
        _check_sizes(folder, {"bottleneck": len(module.bias), "phm": len(module.down)}, block.model_dump())
    elif isinstance(block, c.Attempt):
        _check_attempt(folder, module, block)
    return module


def _check_attempt(folder: Path, module: Any, block: c.Attempt) -> None:
    from frozenlm.prompts.attempt import ANY_TASK

    held = {"sources": len(module.sources), "width": module.down.shape[1], "temperature": module.temperature}
    usual = module.lm.hidden_size * math.e
    asked = {"sources": len(block.sources), "width": block.width, "temperature": block.temperature or usual}
    held["per_task"], asked["per_task"] = module.targets.tasks != (ANY_TASK,), block.per_task
    _check_sizes(folder, held, asked)


def _check_sizes(folder: Path, held: dict[str, Any], asked: dict[str, Any]) -> None:
    if "feed_forward" in held:
        held, asked = ({**one, "feed_forward": one["feed_forward"] or 4 * one["width"]} for one in (held, asked))
    for name, value in asked.items():
        if name != "dropout" and held.get(name, value) != value:
            raise CheckpointError(
                f"{folder} was trained with {name} {held[name]}, the config asks for {value}; set it back, train it "
                "again with --restart, or give it another prompt.name"
            )


def _loaded(folder: Path, block: c.Prompt, lm: FrozenLM, encoder: FrozenEncoder | None) -> PromptModule:
    if isinstance(block, c.OnePrompt):
        from frozenlm.prompts.soft_prompt import SoftPrompt

        return SoftPrompt.load(folder, lm)
    if isinstance(block, c.PromptPerTask):
        from frozenlm.prompts.task_prompts import TaskPrompts

        of_tasks = TaskPrompts.load(folder, lm)
        of_tasks.unseen = block.unseen
        return of_tasks
    if isinstance(block, c.Attempt):
        from frozenlm.prompts.attempt import Attempt

        mixed = Attempt.load(folder, lm)
        if block.per_task:
            mixed.targets.unseen = block.unseen
        return mixed
    if encoder is None:
        raise ConfigError(f"prompt {block.name!r} of kind {block.kind} needs an encoder block")
    if isinstance(block, c.IDPG):
        from frozenlm.prompts.idpg import IDPG

        return IDPG.load(folder, lm, encoder)
    from frozenlm.prompts.input_dependent import InputDependentPrompt

    return InputDependentPrompt.load(folder, lm, encoder)
