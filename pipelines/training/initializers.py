"""From an `init` block of a config to the initialiser function that it names."""

from __future__ import annotations

from frozenlm.prompts import initializers
from pipelines import config as c


def initializer(block: c.Init) -> initializers.Initializer:
    """The initialiser of a soft prompt that a config asks for."""
    if isinstance(block, c.FromText):
        return initializers.from_text(block.text)
    if isinstance(block, c.FromLabels):
        return initializers.from_class_labels(block.labels)
    if isinstance(block, c.FromVocabulary):
        return initializers.from_sampled_vocabulary(block.top)
    return initializers.uniform(block.scale)
