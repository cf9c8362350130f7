"""What every prompt method looks like to the loss, the LM's host and the pipelines.

A method turns what an example is about (`PromptInput`) into one `Soft` segment a row; where the segment stands is its
`position`. A plain soft prompt ignores the input, a prompt a task looks at the task's name, ID-PT reads the text. So
rows of any methods can stand in one batch. Shapes: B rows, P soft tokens, H hidden size of the LM.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from frozenlm.rows import Row, Segment, Soft

if TYPE_CHECKING:
    from pathlib import Path

    from frozenlm.lm import FrozenLM

Position = Literal["prefix", "suffix"]


@dataclass(frozen=True)
class PromptInput:
    """What a prompt can be written from.

    text: the input x as the LM reads it, without control tokens
    task: the name of the task it belongs to; None where nobody knows
    """

    text: str = ""
    task: str | None = None


@runtime_checkable
class PromptModule(Protocol):
    """A trained prompt method; every one is an `nn.Module` whose parameters are exactly what is trained."""

    position: Position

    @property
    def length(self) -> int:
        """P, the same for every input."""
        ...

    def segments(self, inputs: Sequence[PromptInput]) -> list[Soft]:
        """B inputs -> B segments [P, H], differentiable in the parameters; none depends on its batch-mates."""
        ...

    def save(self, folder: "Path | str", lm: "FrozenLM") -> None:
        """Write what is trained, with the fingerprints of what it belongs to."""
        ...


def placed(segment: Soft, context: Row, position: Position) -> list[Segment]:
    """The row in which the LM reads a prompt and a context."""
    return [segment, *context] if position == "prefix" else [*context, segment]
