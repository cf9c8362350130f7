"""Intrinsic prompt tuning, first stage: Qin et al. 2021, "Exploring Universal Intrinsic Task Subspace via Prompt
Tuning", arXiv 2110.07867, section 3.

An auto-encoder learns, over the trained prompts X_t [P, H] of many tasks, a space of d dimensions that holds them all:

    v_t = D x_t                          down: one linear layer, x_t being X_t as one vector of P x H numbers
    x'_t = W2 tanh(W1 v_t + b1) + b2     up: two layers

trained with the task's loss under the rebuilt prompt, plus `weight` (200) times the mean squared error of rebuilding
all prompts: `prompt_loss` plus `penalty`, which is `reconstruction_loss`.
`decoder()` is what the second stage keeps (`intrinsic.py`).

Our choices, where the paper could not be read in full: d is 250 by default; W1 is [d', d] with d' = d; D has a bias;
b2 begins at the mean of the prompts, so that training begins with the prompt that fits all tasks best.
Shapes: B rows, T tasks, P soft tokens, H hidden size, d size of a code, d' of the hidden layer.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from frozenlm.errors import CheckpointError, ConfigError, ShapeError
from frozenlm.lm_tasks import Example, Unit, prompt_loss
from frozenlm.prompts.interface import Position, PromptInput
from frozenlm.prompts.intrinsic import PromptDecoder
from frozenlm.prompts.saved import SavedPrompt, fill_exactly
from frozenlm.prompts.soft_prompt import check_width
from frozenlm.prompts.task_prompts import TaskPrompts

if TYPE_CHECKING:
    from frozenlm.lm import FrozenLM

KIND = "prompt_autoencoder"
DIMENSION = 250
WEIGHT = 200.0


class PromptAutoEncoder(SavedPrompt):
    """Rebuilds each task's prompt through d numbers; as a prompt method, it gives a row its task's rebuilt prompt.

    prompts: task -> trained [P, H], all of one shape; copied, and frozen
    dimension: d
    hidden: d'; None is d
    weight: of the mean squared error in the loss
    position: where the prompts stand

    Raises: ConfigError without a task, for a size or weight out of range or an unknown position; ShapeError for prompts
        that are not matrices of one shape.
    """

    KIND = KIND
    prompts: Tensor

    def __init__(
        self,
        prompts: Mapping[str, Tensor],
        *,
        dimension: int = DIMENSION,
        hidden: int | None = None,
        weight: float = WEIGHT,
        position: Position = "suffix",
        seed: int = 0,
    ) -> None:
        super().__init__()
        hidden = dimension if hidden is None else hidden
        if dimension < 1 or hidden < 1:
            raise ConfigError(f"prompt auto-encoder: dimension is {dimension}, hidden {hidden}; expected at least 1")
        if not 0 <= weight < math.inf:
            raise ConfigError(f"prompt auto-encoder: weight is {weight}; expected a finite number of at least 0")
        trained = TaskPrompts(prompts, position=position)  # checks them
        self.tasks, self.position, self.weight = trained.tasks, position, weight
        self.register_buffer("prompts", torch.stack([one.detach() for one in trained.prompts]))
        size = self.length * self.hidden_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.down = nn.Linear(size, dimension)
            self.hidden = nn.Linear(dimension, hidden)
            self.up = nn.Linear(hidden, size)
        with torch.no_grad():
            self.up.bias.copy_(self.prompts.mean(dim=0).flatten())

    @classmethod
    def create(
        cls,
        lm: "FrozenLM",
        prompts: TaskPrompts,
        *,
        dimension: int = DIMENSION,
        hidden: int | None = None,
        weight: float = WEIGHT,
        seed: int = 0,
    ) -> "PromptAutoEncoder":
        """A new auto-encoder over trained prompts of an LM; the same seed gives the same one.

        Raises: ShapeError for prompts of another LM's width; ConfigError for a size out of range.
        """
        if prompts.hidden_size != lm.hidden_size:
            raise ShapeError(f"prompts are {prompts.hidden_size} wide, the LM's embeddings {lm.hidden_size}")
        own = {task: prompts.vectors(task).detach() for task in prompts.tasks}
        return cls(own, dimension=dimension, hidden=hidden, weight=weight, position=prompts.position, seed=seed)

    @staticmethod
    def parameter_count(*, length: int, hidden_size: int, dimension: int, hidden: int | None = None) -> int:
        """D, W1, W2 and their biases; the prompts are not trained."""
        size, hidden = length * hidden_size, dimension if hidden is None else hidden
        return dimension * size + dimension + hidden * dimension + hidden + size * hidden + size

    @property
    def length(self) -> int:
        """P."""
        return self.prompts.shape[1]

    @property
    def hidden_size(self) -> int:
        """H."""
        return self.prompts.shape[2]

    @property
    def dimension(self) -> int:
        """d."""
        return self.down.out_features

    def encode(self, prompts: Tensor) -> Tensor:
        """[B, P, H] -> [B, d]"""
        return self.down(prompts.flatten(1)).float()

    def decode(self, codes: Tensor) -> Tensor:
        """[B, d] -> [B, P, H]"""
        return self.up(torch.tanh(self.hidden(codes))).float().view(-1, self.length, self.hidden_size)

    def forward(self, inputs: Sequence[PromptInput]) -> Tensor:
        """B inputs -> the rebuilt prompts of their tasks [B, P, H]"""
        places = [self._place(one.task) for one in inputs]
        distinct = sorted(set(places))
        rebuilt = self.decode(self.encode(self.prompts[distinct]))
        return rebuilt[[distinct.index(place) for place in places]]

    def penalty(self) -> Tensor:
        """What the training loss has a unit beside the task's own: weight x the mean squared error of rebuilding."""
        return self.weight * functional.mse_loss(self.decode(self.encode(self.prompts)), self.prompts)

    @torch.no_grad()
    def decoder(self) -> PromptDecoder:
        """A copy of what makes a prompt of a code, frozen, with the mean code of the tasks as where to begin."""
        tensors = {name: value for name, value in self.state_dict().items() if name.startswith(("hidden.", "up."))}
        centre = self.encode(self.prompts).mean(dim=0)
        return PromptDecoder({**tensors, "centre": centre}, length=self.length, position=self.position)

    def _place(self, task: str | None) -> int:
        if task not in self.tasks:
            raise ConfigError(
                f"no prompt for task {task!r}; the auto-encoder holds those of {', '.join(map(repr, self.tasks))}"
            )
        return self.tasks.index(task)

    def extra_repr(self) -> str:
        """What `print(module)` shows."""
        return f"tasks={len(self.tasks)}, length={self.length}, dimension={self.dimension}, position={self.position!r}"

    def settings(self) -> dict[str, Any]:
        """Tasks, position, weight and sizes."""
        sizes = {"dimension": self.dimension, "hidden": self.hidden.out_features}
        return {"tasks": list(self.tasks), "position": self.position, "weight": self.weight, **sizes}

    @classmethod
    def from_saved(
        cls, tensors: Mapping[str, Tensor], config: Mapping[str, Any], lm: "FrozenLM", where: Path | str
    ) -> Self:
        """As `SavedPrompt.from_saved`."""
        prompts, tasks, middle = tensors.get("prompts"), config.get("tasks"), tensors.get("hidden.weight")
        named = isinstance(tasks, list) and all(isinstance(task, str) and task for task in tasks)
        sound = named and prompts is not None and prompts.ndim == 3 and len(prompts) == len(set(tasks or []))
        if prompts is None or middle is None or middle.ndim != 2 or not sound:
            raise CheckpointError(f"{where} holds {sorted(tensors)} with {config}; expected a prompt auto-encoder")
        if config.get("position") not in get_args(Position) or not isinstance(config.get("weight"), int | float):
            raise CheckpointError(f"{where} holds {config}; expected a position of {get_args(Position)}, and a weight")
        check_width(prompts[0], lm, where)
        own, (hidden, dimension) = dict(zip(tasks or [], prompts, strict=True)), middle.shape
        module = cls(own, dimension=dimension, hidden=hidden, weight=config["weight"], position=config["position"])
        fill_exactly(module, tensors, where)
        return module


def reconstruction_loss(
    lm: "FrozenLM", module: PromptAutoEncoder, examples: Sequence[Example], *, unit: Unit = "token"
) -> tuple[Tensor, int]:
    """The first stage's loss for `frozenlm.training.fit`: its mean a unit is that of the task + weight x MSE.

    Raises: ConfigError for a task without a prompt; as `prompt_loss`.
    """
    total, units = prompt_loss(lm, module, examples, unit=unit)
    return total + units * module.penalty(), units
