"""From packed windows to answers: what differs between one pass of the frozen LM and recursion.

`Pipeline` retrieves, re-ranks and packs alike for every kind; one object with this protocol reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from pipelines import stages
from pipelines.components import Components
from pipelines.config import NeuralRecursion, TextualRecursion
from pipelines.packing import Packed

if TYPE_CHECKING:
    from frozenlm.recursion.candidates import Candidate


@dataclass(frozen=True)
class Reading:
    """What came of one window.

    Attributes:
        text: the answer.
        score: its summed log-probability, nats; None where nothing was generated or sampled.
        prompt: hash of the learned prompt of the pass that answered.
        passes: what ran, in order.
        candidates: what was sampled, best first, each with its count and log-probability.
        candidates_dropped: of these, how many the second pass could not be shown.
        confidence: of a first answer, 0 to 1.
        timings: seconds a question by stage; they stand in for `read`.
    """

    text: str
    score: float | None
    prompt: str | None = None
    passes: tuple[str, ...] = ()
    candidates: list[Candidate] | None = None
    candidates_dropped: int = 0
    confidence: float | None = None
    timings: dict[str, float] = field(default_factory=dict)


class Reader(Protocol):
    """Reads windows with the frozen LM and what was trained around it."""

    def read(self, questions: Sequence[str], packed: Sequence[Packed]) -> list[Reading]:
        """One reading a window."""
        ...

    def provenance(self) -> dict[str, Any]:
        """Hashes of what was trained, and settings that are not in the config."""
        ...


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
