"""One soft prompt a task, in one module: prompt tuning (arXiv 2104.08691) done for each task of a mixture.

It is what ID-PT (arXiv 2204.10019, section 2) is measured against: it knows the task of each input and nothing else of
it. T x P x H numbers are trained; a row moves only its own task's prompt.

Our choices: all tasks start from the same vectors, so that whatever tells them apart was learned; a task that nothing
was trained for is refused, or, with `unseen="mean"`, given the mean of all prompts.
Shapes: B rows, T tasks, P soft tokens, H hidden size.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from frozenlm.errors import CheckpointError, ConfigError, ShapeError
from frozenlm.prompts.initializers import Initializer
from frozenlm.prompts.interface import Position, PromptInput
from frozenlm.prompts.saved import SavedPrompt
from frozenlm.prompts.soft_prompt import SoftPrompt, check_width
from frozenlm.rows import Soft

if TYPE_CHECKING:
    from frozenlm.lm import FrozenLM

KIND = "task_prompts"
Unseen = Literal["error", "mean"]


class TaskPrompts(SavedPrompt):
    """A prompt of P trained vectors for each task, chosen by `PromptInput.task`.

    prompts: task -> [P, H] where it begins; copied. Prompts that were trained one by one can be joined here
    position: "prefix" or "suffix"
    unseen: what an input of another task, or of none, gets: an error, or the mean of all prompts

    Raises: ConfigError without a task, for an unknown setting or values that are not finite; ShapeError for prompts
        that are not matrices of one shape.
    """

    KIND = KIND

    def __init__(
        self, prompts: Mapping[str, Tensor], *, position: Position = "suffix", unseen: Unseen = "error"
    ) -> None:
        super().__init__()
        if not prompts or not all(isinstance(task, str) and task for task in prompts):
            raise ConfigError(f"tasks are {list(prompts)}; expected at least one name, none of them empty")
        if unseen not in get_args(Unseen):
            raise ConfigError(f"unseen is {unseen!r}; expected one of {get_args(Unseen)}")
        shapes = {task: list(vectors.shape) for task, vectors in prompts.items()}
        if len({tuple(shape) for shape in shapes.values()}) > 1:
            raise ShapeError(f"prompts of one module have one shape [P, H], got {shapes}")
        self.tasks = tuple(prompts)
        self.prompts = nn.ParameterList([SoftPrompt(v, position=position).vectors for v in prompts.values()])
        self.position: Position = position
        self.unseen: Unseen = unseen

    @classmethod
    def create(
        cls,
        lm: "FrozenLM",
        tasks: Sequence[str],
        length: int = 20,
        *,
        init: Initializer | None = None,
        position: Position = "suffix",
        unseen: Unseen = "error",
        seed: int = 0,
    ) -> "TaskPrompts":
        """New prompts for an LM, all alike; the same seed gives the same ones.

        tasks: names, each once
        init: from `frozenlm.prompts.initializers`; sampled vocabulary by default

        Raises: ConfigError for no task, a name given twice, or a length below 1; what the initialiser raises.
        """
        if isinstance(tasks, str) or len(set(tasks)) != len(tasks):
            raise ConfigError(f"tasks are {tasks!r}; expected a list of names, each once")
        start = SoftPrompt.create(lm, length, init=init, seed=seed)
        return cls(dict.fromkeys(tasks, start.vectors), position=position, unseen=unseen)

    @staticmethod
    def parameter_count(*, tasks: int, length: int, hidden_size: int) -> int:
        """T x P x H."""
        return tasks * length * hidden_size

    @property
    def length(self) -> int:
        """P."""
        return self.prompts[0].shape[0]

    @property
    def hidden_size(self) -> int:
        """H."""
        return self.prompts[0].shape[1]

    def vectors(self, task: str | None) -> Tensor:
        """[P, H] of one task.

        Raises: ConfigError for a task without a prompt, unless `unseen` is "mean".
        """
        if task in self.tasks:
            return self.prompts[self.tasks.index(task)]
        if self.unseen == "mean":
            return torch.stack(list(self.prompts)).mean(dim=0)
        raise ConfigError(
            f"no prompt for task {task!r}; there is one for {', '.join(map(repr, self.tasks))}; "
            'set PromptInput.task to one of them, or make the prompts with unseen="mean"'
        )

    def forward(self, inputs: Sequence[PromptInput]) -> Tensor:
        """B inputs -> [B, P, H]"""
        if not inputs:
            return self.prompts[0].new_zeros(0, self.length, self.hidden_size)
        return torch.stack([self.vectors(one.task) for one in inputs])

    def segments(self, inputs: Sequence[PromptInput]) -> list[Soft]:
        """Each input's prompt as a piece of its row."""
        return [Soft(self.vectors(one.task)) for one in inputs]

    def extra_repr(self) -> str:
        """What `print(prompts)` shows."""
        return f"tasks={len(self.tasks)}, length={self.length}, position={self.position!r}, unseen={self.unseen!r}"

    def settings(self) -> dict[str, Any]:
        """Tasks, position, what unseen tasks get, and sizes."""
        sizes = {"length": self.length, "hidden_size": self.hidden_size}
        return {"tasks": list(self.tasks), "position": self.position, "unseen": self.unseen, **sizes}

    @classmethod
    def from_saved(
        cls, tensors: Mapping[str, Tensor], config: Mapping[str, Any], lm: "FrozenLM", where: Path | str
    ) -> Self:
        """As `SavedPrompt.from_saved`."""
        tasks = config.get("tasks")
        names = tasks if isinstance(tasks, list) and all(isinstance(task, str) and task for task in tasks) else []
        keys = [f"prompts.{number}" for number in range(len(names))]
        settings = {name: config.get(name) for name in ("position", "unseen")}
        sound = settings["position"] in get_args(Position) and settings["unseen"] in get_args(Unseen)
        alike = len({tensor.shape for tensor in tensors.values()}) == 1
        if not keys or set(tensors) != set(keys) or len(set(names)) != len(names) or not (sound and alike):
            raise CheckpointError(
                f"{where} holds {sorted(tensors)} with {dict(config)}; expected one prompts.<number>, "
                "all of one shape, for each of its tasks, a position and what unseen tasks get"
            )
        for key in keys:
            check_width(tensors[key], lm, where)
        return cls({name: tensors[key] for name, key in zip(names, keys, strict=True)}, **settings)  # type: ignore[arg-type]
