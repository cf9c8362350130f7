"""From an `init` block of a config to the initialiser function that it names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from frozenlm.prompts import initializers
from pipelines import config as c
from pipelines.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    import torch

    from frozenlm.lm import FrozenLM


def initializer(block: c.Init, modules: Path | None = None) -> initializers.Initializer:
    """The initialiser of a soft prompt that a config asks for.

    Args:
        modules: where the modules of the workspace lie, for a prompt that is known by name.

    Raises:
        ConfigError: a prompt known by name where only a folder can be given.
    """
    if isinstance(block, c.FromModule):
        return _from_module(block, modules)
    if isinstance(block, c.FromText):
        return initializers.from_text(block.text)
    if isinstance(block, c.FromLabels):
        return initializers.from_class_labels(block.labels)
    if isinstance(block, c.FromVocabulary):
        return initializers.from_sampled_vocabulary(block.top)
    return initializers.uniform(block.scale)


def _from_module(block: c.FromModule, modules: Path | None) -> initializers.Initializer:
    if block.folder is None and modules is None:
        raise ConfigError(f"init: the prompt {block.name!r} is given by name; here it must be given by its folder")
    folder = block.folder if block.folder is not None else Path(modules or "", str(block.name))

    def copy(lm: FrozenLM, length: int, generator: torch.Generator) -> torch.Tensor:
        from frozenlm.checkpoint import verify_module
        from frozenlm.prompts.task_prompts import KIND as TASK_PROMPTS
        from frozenlm.prompts.transfer import saved_vectors

        if not folder.exists():
            raise CheckpointError(f"no trained prompt to start from at {folder}; train it first, or give another init")
        held = verify_module(folder)
        tasks = held.config["tasks"] if held.kind == TASK_PROMPTS and held.config.get("unseen") != "mean" else ()
        if tasks and block.task not in tasks:
            raise ConfigError(
                f"init.task is {block.task!r}, and {folder} holds prompts for {', '.join(map(repr, tasks))}; set "
                "init.task to one of them"
            )
        return initializers.from_vectors(saved_vectors(folder, lm, block.task))(lm, length, generator)

    return copy
