"""From packed windows to answers: what differs between one pass of the frozen LM and recursion.

`Pipeline` retrieves, re-ranks and packs alike for every kind; the reader of the config's kind reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines import stages
from pipelines.components import Components
from pipelines.config import NeuralRecursion, TextualRecursion
from pipelines.packing import Packed
from pipelines.reading import Reader, Reading


class OnePass:
    """A frozen reader's, or the closed-book LM's, one pass."""

    def __init__(self, parts: Components) -> None:
        self.parts = parts

    def read(self, questions: Sequence[str], packed: Sequence[Packed]) -> list[Reading]:
        """See `Reader`."""
        return [Reading(text, score, self.parts.prompt_hash) for text, score in stages.read(self.parts, packed)]

    def provenance(self) -> dict[str, Any]:
        """See `Reader`."""
        return {"prompt_sha256": self.parts.prompt_hash}


def reader_of(parts: Components) -> Reader:
    """The reader that a config's kind asks for; loads what it needs.

    Raises:
        CheckpointError: something is not trained yet, or was trained for another LM.
    """
    if isinstance(parts.config, TextualRecursion):
        from pipelines.textual_recursion import TextualReader

        return TextualReader(parts)
    if isinstance(parts.config, NeuralRecursion):
        from pipelines.neural_recursion import NeuralReader

        return NeuralReader(parts)
    return OnePass(parts)
