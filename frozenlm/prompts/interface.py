"""What every prompt method looks like to the loss, the LM's host and the pipelines.

A method turns what an example is about (`PromptInput`) into one `Soft` segment a row; where the segment stands is its
`position`. A plain soft prompt ignores the input, a prompt a task looks at the task's name, ID-PT reads the text. So
rows of any methods can stand in one batch. A method whose vectors stand around the context in several pieces
(`PlacesItself`) builds its rows on its own; `prompted` is the one way to a row for all of them.
Shapes: B rows, P soft tokens, H hidden size of the LM.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from frozenlm.errors import ConfigError
from frozenlm.rows import Row, Segment, Soft

if TYPE_CHECKING:
    from pathlib import Path

    from frozenlm.lm import FrozenLM

Position = Literal["prefix", "suffix"]
Place = Literal["prefix", "suffix", "around"]
"""Where a prompt stands: before the context, behind all of it, or anywhere else."""


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

    @property
    def position(self) -> Place:
        """With "suffix", what the LM reads of a context does not depend on the prompt."""
        ...

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


@runtime_checkable
class PlacesItself(PromptModule, Protocol):
    """A prompt method with vectors in more places than one before or one behind the context."""

    def rows(self, contexts: Sequence[Row], inputs: Sequence[PromptInput]) -> list[Row]:
        """B contexts and B inputs -> B rows in which the LM reads both."""
        ...


@runtime_checkable
class Constant(PromptModule, Protocol):
    """A prompt method whose vectors are the same for every input."""

    def segment(self) -> Soft:
        """The prompt [P, H] as one piece."""
        ...


def prompted(module: PromptModule | None, contexts: Sequence[Row], inputs: Sequence[PromptInput]) -> list[Row]:
    """The rows in which the LM reads contexts with their prompts; the contexts as they are without a module.

    Raises: what the module raises.
    """
    if module is None:
        return list(contexts)
    if isinstance(module, PlacesItself):
        return module.rows(contexts, inputs)
    position = module.position
    if position == "around":
        raise ConfigError(
            f"a {type(module).__name__} stands around the context, but has no method rows(contexts, inputs) that says "
            "where; see frozenlm/prompts/slots.py"
        )
    return [placed(*pair, position) for pair in zip(module.segments(inputs), contexts, strict=True)]


def placed(segment: Soft, context: Row, position: Position) -> list[Segment]:
    """The row in which the LM reads a prompt and a context."""
    return [segment, *context] if position == "prefix" else [*context, segment]
