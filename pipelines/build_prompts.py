"""From the config blocks of P-tuning, low-rank and intrinsic prompts to the modules they name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import config as c
from pipelines.build import module_folder
from pipelines.errors import CheckpointError, ConfigError
from retrievers.files import sha256_file

if TYPE_CHECKING:
    from frozenlm.lm import FrozenLM
    from frozenlm.prompts.interface import PromptModule
    from frozenlm.prompts.intrinsic import PromptDecoder

Block = c.PTuning | c.LowRank | c.AutoEncoder | c.Intrinsic


def new(config: c.Multitask, block: Block, lm: FrozenLM, tasks: Sequence[str], common: dict[str, Any]) -> PromptModule:
    """A module before training.

    Args:
        tasks: those that are trained on.
        common: init, position and seed, for methods that take them.

    Raises:
        ConfigError: a size out of range, or tasks without a prompt to rebuild.
        CheckpointError: what it begins with is not trained, or of other sizes than the config says.
    """
    if isinstance(block, c.PTuning):
        from frozenlm.prompts.p_tuning import PTuning

        init = common["init"] if block.anchor else None
        return PTuning.create(lm, block.slots, form=block.form, anchor=block.anchor, init=init, seed=common["seed"])
    if isinstance(block, c.LowRank):
        from frozenlm.prompts.low_rank import LowRankPrompt

        return LowRankPrompt.create(lm, block.length, rank=block.rank, form=block.form, **common)
    if isinstance(block, c.AutoEncoder):
        return _auto_encoder(config, block, lm, tasks)
    from frozenlm.prompts.intrinsic import IntrinsicPrompt

    seed = config.seed if block.start == "random" else None
    return IntrinsicPrompt.create(lm, _decoder(config, block, lm), seed=seed)


def loaded(config: c.Multitask, block: Block, lm: FrozenLM) -> PromptModule:
    """A trained module from the workspace; all but the auto-encoder as the plain vectors that they come to.

    Raises:
        CheckpointError: damaged, of another LM, or of other settings than the config says.
    """
    folder = module_folder(config, block.name)
    if isinstance(block, c.PTuning):
        from frozenlm.prompts.p_tuning import PTuning

        module: Any = PTuning.load(folder, lm)
        if module.slots.length == block.length:
            _check(folder, slots=(module.slots.sizes, block.slots), form=(module.form, block.form))
            _check(folder, anchor=(module.anchor is not None, block.anchor))
    elif isinstance(block, c.LowRank):
        from frozenlm.prompts.low_rank import LowRankPrompt

        module = LowRankPrompt.load(folder, lm)
        _check(folder, rank=(module.rank, block.rank), form=(module.form, block.form))
    elif isinstance(block, c.AutoEncoder):
        from frozenlm.prompts.prompt_autoencoder import PromptAutoEncoder

        coder = PromptAutoEncoder.load(folder, lm)
        hidden = block.dimension if block.hidden is None else block.hidden
        _check(folder, dimension=(coder.dimension, block.dimension), hidden=(coder.hidden.out_features, hidden))
        return coder
    else:
        from frozenlm.prompts.intrinsic import IntrinsicPrompt

        module = IntrinsicPrompt.load(folder, lm, _decoder(config, block, lm))
    plain: PromptModule = module.eval().collapse()
    return plain


def begins_with(config: c.Multitask, block: c.Module) -> dict[str, Any]:
    """What a training run of this block depends on beside its settings: the trained modules that it begins with, as the
    SHA-256 of each module's card. A run must not go on when they have changed."""
    names = [name for name in (getattr(block, "autoencoder", None), getattr(block, "prompts", None)) if name]
    folders = [module_folder(config, name) for name in names]
    init = getattr(block, "init", None)
    if isinstance(init, c.FromModule):
        folders.append(init.folder if init.folder is not None else module_folder(config, str(init.name)))
    cards = {str(folder.name): sha256_file(folder / "module.json") for folder in folders}
    return {"begins_with": cards} if cards else {}


def _auto_encoder(config: c.Multitask, block: c.AutoEncoder, lm: FrozenLM, tasks: Sequence[str]) -> PromptModule:
    from frozenlm.prompts.prompt_autoencoder import PromptAutoEncoder
    from frozenlm.prompts.task_prompts import TaskPrompts

    folder = _trained(config, block.prompts, "prompts of kind task_prompts")
    prompts = TaskPrompts.load(folder, lm)
    _check(folder, length=(prompts.length, block.length), position=(prompts.position, block.position))
    if missing := [task for task in tasks if task not in prompts.tasks]:
        raise ConfigError(
            f"{folder} holds no prompt for the task {missing[0]!r}, which this config trains on; it holds those of "
            f"{', '.join(prompts.tasks)}"
        )
    sizes = block.model_dump(include={"dimension", "hidden", "weight"})
    return PromptAutoEncoder.create(lm, prompts, **sizes, seed=config.seed)


def _decoder(config: c.Multitask, block: c.Intrinsic, lm: FrozenLM) -> PromptDecoder:
    from frozenlm.prompts.prompt_autoencoder import PromptAutoEncoder

    folder = _trained(config, block.autoencoder, "auto-encoder (kind prompt_autoencoder)")
    coder = PromptAutoEncoder.load(folder, lm)
    _check(folder, length=(coder.length, block.length), position=(coder.position, block.position))
    _check(folder, dimension=(coder.dimension, block.dimension))
    return coder.decoder()


def _trained(config: c.Multitask, name: str, what: str) -> Path:
    folder = module_folder(config, name)
    if not folder.exists():
        raise CheckpointError(f"no trained {what} at {folder}; train them first, under that name and in this workspace")
    return folder


def _check(folder: Path, **pairs: tuple[Any, Any]) -> None:
    for name, (held, asked) in pairs.items():
        if held != asked:
            raise CheckpointError(
                f"{folder} was trained with {name} {held}, the config asks for {asked}; set it back, train it again "
                "with --restart, or give it another name"
            )
