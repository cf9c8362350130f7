"""The kind of config with one frozen LM for a mixture of tasks, its mixture and its routes."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, model_validator

from pipelines.config_deltas import Delta
from pipelines.config_job import Job
from pipelines.config_prompts import IDPG, FrozenEncoder, InputDependent, Prompt
from pipelines.config_reading import LM, Generation, Surface
from pipelines.config_tasks import TaskBlock, TaskEvaluation, TaskInput, TaskTraining
from pipelines.config_text import PromptPretraining, check_pretraining
from pipelines.config_values import Block, Name, Positive, Rate

Module = Annotated[Prompt | Delta, Discriminator("kind")]


class Mixture(Block):
    """How often a task is drawn: in proportion to min(its rows, `cap`) to the power 1 / `temperature`, times its weight
    (T5, arXiv 1910.10683, section 3.5.2)."""

    cap: Positive | None = None
    temperature: Rate = 1.0


class Route(Block):
    """Inputs that begin with these words are answered with this module; `module: null` leaves the LM as it is. `task`
    is for prompts that go by the task."""

    starts_with: Annotated[str, Field(min_length=1)]
    module: Name | None
    task: Name | None = None


class Multitask(Job):
    """`kind: multitask`: one frozen LM for a mixture of tasks. `prompt` or `delta` is what this config trains and,
    unless a route or the caller says otherwise, what serves; `modules` are further trained ones that it serves. With a
    `pretraining` block the prompt's training begins from what `frozenlm pretrain` made."""

    kind: Literal["multitask"]
    lm: LM
    encoder: FrozenEncoder | None = None
    prompt: Prompt | None = None
    delta: Delta | None = None
    modules: list[Module] = []
    routes: list[Route] = []
    tasks: list[TaskBlock] = []
    mixture: Mixture = Mixture()
    input: TaskInput = TaskInput()
    generation: Generation = Generation()
    surface: Surface = Surface()
    pretraining: PromptPretraining | None = None
    training: TaskTraining | None = None
    evaluation: TaskEvaluation = TaskEvaluation()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.prompt is not None and self.delta is not None:
            raise ValueError("a config trains a prompt or a delta; move one of them to another config")
        check_pretraining(self.pretraining, self.prompt, self.delta, self.modules)
        check_multitask([*self._own, *self.modules], self.encoder, self.routes, self.tasks)
        return self

    @property
    def _own(self) -> list[Any]:
        return [block for block in (self.prompt, self.delta) if block is not None]

    @property
    def trained(self) -> Any:
        """The block of what this config trains; None for the LM as it is."""
        return next(iter(self._own), None)


def check_multitask(
    prompts: list[Any], encoder: FrozenEncoder | None, routes: list[Route], tasks: list[TaskBlock]
) -> None:
    """What no block can check alone.

    Raises:
        ValueError: a prompt without its encoder, two things of one name, weights that are all 0, or a route to nowhere.
    """
    for prompt in prompts:
        if isinstance(prompt, InputDependent | IDPG) and encoder is None:
            raise ValueError(f"prompt {prompt.name!r} of kind {prompt.kind} needs an encoder block")
    for what, names in (("prompts", [p.name for p in prompts]), ("tasks", [t.name for t in tasks])):
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two {what} are called {twice[0]!r}; give each a name of its own")
    seen = [task for task in tasks if task.seen]
    if seen and not any(task.weight for task in seen):
        raise ValueError("no task of the mixture has a weight above 0; give at least one")
    known = {prompt.name for prompt in prompts}
    if lost := [route.module for route in routes if route.module is not None and route.module not in known]:
        raise ValueError(f"a route leads to the module {lost[0]!r}; the prompts here are {sorted(known)}")
