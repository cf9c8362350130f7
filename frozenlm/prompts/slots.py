"""Learned vectors in slots around and inside the context: P-tuning's template [P1; x; P2; y; P3], arXiv 2103.10385,
section 3.2.

A row is a list of segments, so soft tokens may stand anywhere. `Slots` says how many stand where: before the context,
between its pieces, behind it. A context of k segments has k + 1 slots; two numbers fit a context of any number. The
answer y of a causal or an encoder-decoder LM comes after the last slot, since what stands behind an answer cannot
change it; a masked LM's answer is a mask token in a piece of its own, with P3 behind it.
Shapes: B rows, P soft tokens, H hidden size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor

from frozenlm.errors import CheckpointError, ConfigError, ShapeError
from frozenlm.prompts.constant import ConstantPrompt
from frozenlm.prompts.initializers import Initializer
from frozenlm.prompts.interface import Place, PromptInput
from frozenlm.prompts.saved import SavedPrompt
from frozenlm.prompts.soft_prompt import SoftPrompt, check_width
from frozenlm.rows import Row, Segment, Soft

if TYPE_CHECKING:
    from frozenlm.lm import FrozenLM

KIND = "slotted_prompt"


@dataclass(frozen=True)
class Slots:
    """How many soft tokens stand in each slot.

    sizes: before the context, between its pieces, and behind it; at least two numbers, at least one of them above 0

    Raises: ConfigError for anything else.
    """

    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        sound = isinstance(self.sizes, tuple) and all(type(size) is int and size >= 0 for size in self.sizes)
        if not sound or len(self.sizes) < 2 or not sum(self.sizes):
            raise ConfigError(
                f"slots are {self.sizes!r}; expected a tuple of at least two whole numbers, the soft tokens before the "
                "context, between its pieces and behind it, not all of them 0"
            )

    @property
    def length(self) -> int:
        """P, of all slots together."""
        return sum(self.sizes)

    @property
    def position(self) -> Place:
        """`suffix` where all stand behind the context, `prefix` where all stand before it."""
        before, *inside, behind = self.sizes
        if any(inside) or (before and behind):
            return "around"
        return "prefix" if before else "suffix"

    def rows(self, vectors: Tensor, contexts: Sequence[Row]) -> list[Row]:
        """The rows in which the LM reads vectors [P, H] and contexts; all rows share the vectors of a slot.

        Raises: ShapeError for a context of another number of pieces than there is room for between the slots.
        """
        soft = [[Soft(part)] if len(part) else [] for part in vectors.split(self.sizes)]
        return [self._row(soft, context) for context in contexts]

    def _row(self, soft: Sequence[Sequence[Soft]], context: Row) -> list[Segment]:
        pieces: list[Row] = [context] if len(soft) == 2 else [[segment] for segment in context]
        if len(pieces) + 1 != len(soft):
            raise ShapeError(
                f"slots {self.sizes} stand around {len(soft) - 1} pieces of context, this one has {len(pieces)}; part "
                "it with Example.cuts, or use two slots"
            )
        behind = [segment for piece, slot in zip(pieces, soft[1:], strict=True) for segment in (*piece, *slot)]
        return [*soft[0], *behind]


class SlottedPrompt(ConstantPrompt, SavedPrompt):
    """P trained vectors in the slots of a template; what P-tuning collapses to.

    vectors: [P, H] where they begin, slot after slot; copied
    slots: how many of them stand where

    Raises: ShapeError for anything but a matrix of as many rows as there are slots; ConfigError for values that are
        not finite, or bad slots.
    """

    KIND = KIND

    def __init__(self, vectors: Tensor, slots: Sequence[int]) -> None:
        super().__init__()
        self.slots = Slots(tuple(slots))
        self.vectors = SoftPrompt(vectors).vectors
        if len(vectors) != self.slots.length:
            raise ShapeError(f"{len(vectors)} vectors for slots {self.slots.sizes}; expected {self.slots.length}")

    @classmethod
    def create(
        cls, lm: "FrozenLM", slots: Sequence[int], *, init: Initializer | None = None, seed: int = 0
    ) -> "SlottedPrompt":
        """A new prompt for an LM; the same seed gives the same prompt.

        init: from `frozenlm.prompts.initializers`; sampled vocabulary by default

        Raises: ConfigError for bad slots; what the initialiser raises.
        """
        length = Slots(tuple(slots)).length
        return cls(SoftPrompt.create(lm, length, init=init, seed=seed).vectors, slots)

    @property
    def position(self) -> Place:
        """Where the slots are."""
        return self.slots.position

    @property
    def length(self) -> int:
        """P."""
        return self.slots.length

    @property
    def hidden_size(self) -> int:
        """H."""
        return self.vectors.shape[1]

    def forward(self) -> Tensor:
        """[P, H]"""
        return self.vectors

    def rows(self, contexts: Sequence[Row], inputs: Sequence[PromptInput]) -> list[Row]:
        """The rows in which the LM reads contexts with the vectors in their slots."""
        return self.slots.rows(self(), contexts)

    def extra_repr(self) -> str:
        """What `print(prompt)` shows."""
        return f"slots={self.slots.sizes}, hidden_size={self.hidden_size}"

    def settings(self) -> dict[str, Any]:
        """Slots and width."""
        return {"slots": list(self.slots.sizes), "hidden_size": self.hidden_size}

    @classmethod
    def from_saved(
        cls, tensors: Mapping[str, Tensor], config: Mapping[str, Any], lm: "FrozenLM", where: Path | str
    ) -> Self:
        """As `SavedPrompt.from_saved`."""
        vectors, slots = tensors.get("vectors"), config.get("slots")
        if set(tensors) != {"vectors"} or vectors is None or not isinstance(slots, list):
            raise CheckpointError(f"{where} holds {sorted(tensors)} and {config}; expected only vectors, and slots")
        check_width(vectors, lm, where)
        return cls(vectors, slots)
