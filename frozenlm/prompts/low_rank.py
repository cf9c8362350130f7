"""LoPT, low-rank prompt tuning: Guo et al. 2024, arXiv 2406.19486, section 3.

A prompt X [P, H] of rank r instead of any rank:

    factors      X = U V             U [P, r], V [r, H]; r (P + H) numbers are trained   (LoPT-1)
    projection   X = s(X0 U) V       U [H, r], V [r, H]; 2 r H numbers are trained       (LoPT-2)

X0 is the initial prompt, which `projection` keeps frozen, and s a nonlinearity.

Our choices. `factors` begins at the best approximation of rank r to the initial prompt, its truncated singular value
decomposition, shared evenly between U and V: the initial prompt itself where r = P. s is the tanh. `projection` begins
near that approximation too: X0 U are its left singular vectors, made small enough for the tanh to be nearly linear.
Shapes: P soft tokens, H hidden size, r rank.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import torch
from torch import Tensor

from frozenlm.errors import CheckpointError, ConfigError, ShapeError
from frozenlm.prompts.constant import ConstantPrompt
from frozenlm.prompts.initializers import Initializer
from frozenlm.prompts.interface import Position
from frozenlm.prompts.saved import SavedPrompt
from frozenlm.prompts.soft_prompt import SoftPrompt, check_width

if TYPE_CHECKING:
    from frozenlm.lm import FrozenLM

KIND = "low_rank_prompt"
Form = Literal["factors", "projection"]
LINEAR = 0.1  # largest number given to the tanh at the start, where it is off by less than a third of a percent


class LowRankPrompt(ConstantPrompt, SavedPrompt):
    """A prompt [P, H] as the product of two trained matrices.

    left: U where it begins; copied
    right: V where it begins; copied
    initial: X0, the frozen [P, H] of the form `projection`; None is the form `factors`
    position: "prefix" or "suffix"

    Raises: ShapeError for matrices that do not match; ConfigError for an unknown position or values not finite.
    """

    KIND = KIND
    initial: Tensor | None

    def __init__(
        self, left: Tensor, right: Tensor, *, initial: Tensor | None = None, position: Position = "suffix"
    ) -> None:
        super().__init__()
        _check_shapes(left, right, initial)
        self.left = SoftPrompt(left, position=position).vectors
        self.right = SoftPrompt(right).vectors
        self.register_buffer("initial", None if initial is None else SoftPrompt(initial).vectors.detach())
        self.position: Position = position

    @classmethod
    def create(
        cls,
        lm: "FrozenLM",
        length: int = 20,
        *,
        rank: int = 4,
        form: Form = "factors",
        init: Initializer | None = None,
        position: Position = "suffix",
        seed: int = 0,
    ) -> "LowRankPrompt":
        """A new prompt for an LM; the same seed gives the same prompt.

        rank: r, at most the smaller of P and H
        init: of the prompt that is approximated, from `frozenlm.prompts.initializers`; sampled vocabulary by default

        Raises: ConfigError for a length, rank or form out of range; what the initialiser raises.
        """
        if form not in get_args(Form):
            raise ConfigError(f"low-rank prompt: form is {form!r}; expected one of {get_args(Form)}")
        start = SoftPrompt.create(lm, length, init=init, seed=seed).vectors.detach()
        if not 1 <= rank <= min(start.shape):
            raise ConfigError(
                f"low-rank prompt: rank is {rank}; expected 1 to {min(start.shape)}, the smaller of P and H: a prompt "
                f"of {length} vectors has no higher rank"
            )
        if form == "factors":
            return cls(*_factors(start, rank), position=position)
        return cls(*_projection(start, rank), initial=start, position=position)

    @staticmethod
    def parameter_count(*, length: int, hidden_size: int, rank: int, form: Form = "factors") -> int:
        """r (P + H), or 2 r H with the form `projection`."""
        return rank * (hidden_size + (length if form == "factors" else hidden_size))

    @property
    def form(self) -> Form:
        """Which of the two it is."""
        return "factors" if self.initial is None else "projection"

    @property
    def length(self) -> int:
        """P."""
        return len(self.left if self.initial is None else self.initial)

    @property
    def rank(self) -> int:
        """r."""
        return self.left.shape[1]

    @property
    def hidden_size(self) -> int:
        """H."""
        return self.right.shape[1]

    def forward(self) -> Tensor:
        """[P, H]"""
        left = self.left if self.initial is None else torch.tanh(self.initial @ self.left)
        return (left @ self.right).float()

    @torch.no_grad()
    def collapse(self) -> SoftPrompt:
        """The product as a plain soft prompt."""
        return SoftPrompt(self(), position=self.position)

    def extra_repr(self) -> str:
        """What `print(prompt)` shows."""
        return f"length={self.length}, rank={self.rank}, form={self.form!r}, position={self.position!r}"

    def settings(self) -> dict[str, Any]:
        """Sizes, form and position."""
        sizes = {"length": self.length, "hidden_size": self.hidden_size, "rank": self.rank}
        return {"position": self.position, "form": self.form, **sizes}

    @classmethod
    def from_saved(
        cls, tensors: Mapping[str, Tensor], config: Mapping[str, Any], lm: "FrozenLM", where: Path | str
    ) -> Self:
        """As `SavedPrompt.from_saved`."""
        names = {"left", "right", "initial"} if config.get("form") == "projection" else {"left", "right"}
        if set(tensors) != names or config.get("position") not in get_args(Position):
            raise CheckpointError(f"{where} holds {sorted(tensors)} with {config}; expected {sorted(names)}")
        check_width(tensors["right"], lm, where)
        left, right, initial = tensors["left"], tensors["right"], tensors.get("initial")
        return cls(left, right, initial=initial, position=config["position"])


def _factors(vectors: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """U [P, r], V [r, H] whose product is the closest of rank r to vectors [P, H]."""
    left, scales, right = torch.linalg.svd(vectors.double(), full_matrices=False)
    shared = scales[:rank].sqrt()
    return (left[:, :rank] * shared).float(), (shared[:, None] * right[:rank]).float()


def _projection(vectors: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """U [H, r], V [r, H] with tanh(X0 U) V near that product."""
    left, scales, right = torch.linalg.svd(vectors.double(), full_matrices=False)
    small = LINEAR / left[:, :rank].abs().max()
    if scales[rank - 1] <= 1e-6 * scales[0]:
        raise ConfigError(
            f"low-rank prompt: the initial prompt has a rank below {rank}, so there is nothing to project onto; lower "
            "rank, or begin from a prompt whose vectors differ"
        )
    return (right[:rank].T / scales[:rank] * small).float(), (scales[:rank, None] * right[:rank] / small).float()


def _check_shapes(left: Tensor, right: Tensor, initial: Tensor | None) -> None:
    shapes = [list(left.shape), list(right.shape), None if initial is None else list(initial.shape)]
    sound = left.ndim == right.ndim == 2 and left.shape[1] == right.shape[0]
    if sound and initial is not None:
        sound = initial.ndim == 2 and initial.shape[1] == left.shape[0] == right.shape[1]
    if not sound:
        raise ShapeError(
            f"a low-rank prompt is U [P, r] and V [r, H], or X0 [P, H], U [H, r] and V [r, H]; got {shapes}"
        )
