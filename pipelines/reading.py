"""What a reader gives back for one packed window, and what a reader is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

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
