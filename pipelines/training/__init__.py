"""`frozenlm train`: what a config trains depends on its kind."""

from __future__ import annotations

from typing import Any

from pipelines.build import Log
from pipelines.config import ClosedBook, FrozenReader, Multitask, RerankerJob
from pipelines.errors import ConfigError

__all__ = ["train"]


def train(config: Any, *, restart: bool = False, log: Log = lambda _: None) -> dict[str, Any]:
    """Train what the config is about: a prompt, or a re-ranker. Interrupted runs go on where they
    stopped.

    Args:
        config: a validated config with a `training` block.
        restart: forget an earlier run of this name and begin again.
        log: told what happens, one line at a time.

    Returns:
        A summary: `module` (folder), `steps`, `best_step`, `best_score`, `examples`, `lm_weights_changed` and more by
        kind.

    Raises:
        ConfigError: nothing to train in this config.
    """
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
    raise ConfigError(f"a config of kind {config.kind} trains nothing")
