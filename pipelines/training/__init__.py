"""`frozenlm train` and `frozenlm pretrain`: what a config trains depends on its kind."""

from __future__ import annotations

from typing import Any

from pipelines.build import Log
from pipelines.config import (
    Classification,
    ClosedBook,
    FrozenReader,
    MethodComparison,
    Multitask,
    NeuralRecursion,
    PromptingJob,
    RerankerJob,
    TextualRecursion,
)
from pipelines.config_prompting import NOTHING_TO_TRAIN
from pipelines.errors import ConfigError

__all__ = ["pretrain", "train"]


def train(config: Any, *, restart: bool = False, log: Log = lambda _: None) -> dict[str, Any]:
    """Train what the config is about: prompts, a connector, or a re-ranker. Interrupted runs go on where they
    stopped.

    Args:
        config: a validated config with a `training` block.
        restart: forget an earlier run of this name and begin again.
        log: told what happens, one line at a time.

    Returns:
        A summary: `module` (folder), `steps`, `best_step`, `best_score`, `examples`, `lm_weights_changed` and more by
        kind. Of tasks: `trained_parameters`, what the optimizer moves at most, and `kept_parameters`, the numbers in
        the module's file (an intrinsic prompt's decoder lies in another).

    Raises:
        ConfigError: nothing to train in this config, or a comparison of methods.
    """
    if isinstance(config, MethodComparison):
        raise ConfigError(
            "a comparison of methods is trained by `frozenlm compare-methods CONFIG --out DIR`; what it would train "
            "`frozenlm train CONFIG --dry-run` shows"
        )
    if isinstance(config, PromptingJob) and not config.prompting.learns:
        raise ConfigError(NOTHING_TO_TRAIN)
    if getattr(config, "training", None) is None:
        raise ConfigError(f"this config of kind {config.kind} has no training block; there is nothing to train")
    if isinstance(config, RerankerJob):
        from pipelines.training.reranker import train_reranker

        return train_reranker(config, restart=restart, log=log)
    if isinstance(config, FrozenReader | ClosedBook):
        from pipelines.training.reader import train_prompt

        return train_prompt(config, restart=restart, log=log)
    if isinstance(config, Multitask):
        from pipelines.training.multitask import train_multitask

        return train_multitask(config, restart=restart, log=log)
    if isinstance(config, Classification):
        from pipelines.training.classification import train_classification

        return train_classification(config, restart=restart, log=log)
    if isinstance(config, PromptingJob):
        from pipelines.training.prompting import train_prompting

        return train_prompting(config, restart=restart, log=log)
    if isinstance(config, TextualRecursion):
        from pipelines.training.textual_recursion import train_textual

        return train_textual(config, restart=restart, log=log)
    if isinstance(config, NeuralRecursion):
        from pipelines.training.neural_recursion import train_neural

        return train_neural(config, restart=restart, log=log)
    raise ConfigError(f"a config of kind {config.kind} trains nothing")


def pretrain(config: Any, *, restart: bool = False, log: Log = lambda _: None) -> dict[str, Any]:
    """Pretrain on plain text: the connector of a config of kind `neural_recursion`, or a soft prompt for the prompt of
    one of kind `multitask`. See `train`.

    Raises:
        ConfigError: a config of another kind, or one without a pretraining block.
    """
    if isinstance(config, Multitask):
        from pipelines.training.prompt_pretraining import pretrain_prompt

        return pretrain_prompt(config, restart=restart, log=log)
    if not isinstance(config, NeuralRecursion):
        raise ConfigError(
            f"a config of kind {config.kind} has nothing to pretrain; neural_recursion has a connector, multitask a "
            "prompt"
        )
    from pipelines.training.pretraining import pretrain_connector

    return pretrain_connector(config, restart=restart, log=log)
