"""What the prompts that are the same for every input share: how they become pieces of rows.

Shapes: P soft tokens, H hidden size.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from frozenlm.prompts.interface import PromptInput
from frozenlm.rows import Soft


class ConstantPrompt:
    """For a module whose `forward()`, without inputs, gives [P, H]; named before `SavedPrompt`."""

    if TYPE_CHECKING:

        def __call__(self) -> Tensor: ...

    def segment(self) -> Soft:
        """All vectors as one piece of a row."""
        return Soft(self())

    def segments(self, inputs: Sequence[PromptInput]) -> list[Soft]:
        """The same segment for every input."""
        return [self.segment()] * len(inputs)
