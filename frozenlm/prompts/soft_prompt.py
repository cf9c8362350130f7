"""Prompt tuning: Lester et al. 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning", arXiv 2104.08691.

A prompt of P learned vectors stands beside the text; it is all that is trained, P x H numbers, for encoder-decoder
models too (their encoder reads it). The paper puts it before the text. Our addition is `position="suffix"`: behind the
text the prompt changes nothing that the LM computed for the text, so for a decoder-only LM the text's keys and values
are constants, and a training step runs over P + answer tokens only.

The vectors are float32 whatever the LM's dtype, since steps of learning are smaller than bfloat16 resolves; they are
cast where the row is assembled. The LM is only asked for embeddings when the prompt is made and is never held.
Shapes: P soft tokens, H hidden size.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, get_args

import torch
from torch import Tensor, nn

from frozenlm.errors import CheckpointError, ConfigError, ShapeError
from frozenlm.prompts.constant import ConstantPrompt
from frozenlm.prompts.initializers import Initializer, from_sampled_vocabulary
from frozenlm.prompts.interface import Position, placed
from frozenlm.prompts.saved import SavedPrompt
from frozenlm.rows import Row, Segment

if TYPE_CHECKING:
    from frozenlm.lm import FrozenLM

KIND = "soft_prompt"


class SoftPrompt(ConstantPrompt, SavedPrompt):
    """P trained vectors in front of the text or behind it.

    vectors: [P, H] where they begin; copied
    position: "prefix" (the paper's form) or "suffix" (ours, the cheap one to train)

    Raises: ShapeError for anything but a matrix; ConfigError for values that are not finite or an unknown position.
    """

    KIND = KIND

    def __init__(self, vectors: Tensor, *, position: Position = "suffix") -> None:
        super().__init__()
        if vectors.ndim != 2 or 0 in vectors.shape:
            raise ShapeError(
                f"a soft prompt starts from a matrix [P, H] of at least one row, got {list(vectors.shape)}"
            )
        if not bool(torch.isfinite(vectors).all()):
            raise ConfigError("a soft prompt cannot start from NaN or Inf; check the initialiser or the file")
        if position not in get_args(Position):
            raise ConfigError(f"position is {position!r}; expected one of {get_args(Position)}")
        self.vectors = nn.Parameter(vectors.detach().to(torch.float32, copy=True))
        self.position: Position = position

    @classmethod
    def create(
        cls,
        lm: "FrozenLM",
        length: int = 20,
        *,
        init: Initializer | None = None,
        position: Position = "suffix",
        seed: int = 0,
    ) -> "SoftPrompt":
        """A new prompt for an LM; the same seed gives the same prompt.

        init: from `frozenlm.prompts.initializers`; sampled vocabulary by default

        Raises: ConfigError for a length below 1, or what the initialiser raises.
        """
        if length < 1:
            raise ConfigError(f"a soft prompt has at least 1 vector, got length {length}")
        generator = torch.Generator().manual_seed(seed)
        vectors = (init or from_sampled_vocabulary())(lm, length, generator)
        if vectors.shape != (length, lm.hidden_size):
            raise ShapeError(
                f"the initialiser returned {list(vectors.shape)}; expected [P, H] = [{length}, {lm.hidden_size}]"
            )
        return cls(vectors, position=position)

    @property
    def length(self) -> int:
        """P."""
        return self.vectors.shape[0]

    @property
    def hidden_size(self) -> int:
        """H."""
        return self.vectors.shape[1]

    def forward(self) -> Tensor:
        """[P, H]"""
        return self.vectors

    def place(self, context: Row) -> list[Segment]:
        """The row in which the LM reads the prompt and the context."""
        return placed(self.segment(), context, self.position)

    def extra_repr(self) -> str:
        """What `print(prompt)` shows."""
        return f"length={self.length}, hidden_size={self.hidden_size}, position={self.position!r}"

    def settings(self) -> dict[str, Any]:
        """Sizes and position."""
        return {"length": self.length, "hidden_size": self.hidden_size, "position": self.position}

    @classmethod
    def from_saved(
        cls, tensors: Mapping[str, Tensor], config: Mapping[str, Any], lm: "FrozenLM", where: Path | str
    ) -> Self:
        """As `SavedPrompt.from_saved`."""
        vectors = tensors.get("vectors")
        if set(tensors) != {"vectors"} or vectors is None or config.get("position") not in get_args(Position):
            raise CheckpointError(f"{where} holds {sorted(tensors)} and {config}; expected only vectors and a position")
        check_width(vectors, lm, where)
        return cls(vectors, position=config["position"])


def check_width(vectors: Tensor, lm: "FrozenLM", where: Path | str) -> None:
    """Refuses vectors that cannot stand among the LM's embeddings.

    Raises: CheckpointError.
    """
    if vectors.ndim != 2 or vectors.shape[0] < 1 or vectors.shape[1] != lm.hidden_size:
        raise CheckpointError(
            f"{where} holds a prompt of shape {list(vectors.shape)}; this LM needs [P, {lm.hidden_size}]; "
            "load the LM it was trained for"
        )
