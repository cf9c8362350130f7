"""From an `init` block of a config to the initialiser function that it names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipelines import config as c

if TYPE_CHECKING:
    from frozenlm.lm import FrozenLM


def initializer(block: c.Init, lm: FrozenLM, *, seed: int) -> Any:
    """The initialiser of a soft prompt, as `frozenlm.prompts.initializers` defines it."""
    from frozenlm.prompts import initializers

    if isinstance(block, c.FromText):
        return initializers.from_text(lm, block.text)
    if isinstance(block, c.FromLabels):
        return initializers.from_class_labels(lm, block.labels, seed=seed)
    if isinstance(block, c.FromVocabulary):
        return initializers.from_sampled_vocabulary(lm, top=block.top, seed=seed)
    return initializers.uniform(scale=block.scale, seed=seed)
