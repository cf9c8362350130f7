"""The config of a comparison of methods: each on each task, with several seeds, beside full fine-tuning."""

from __future__ import annotations

from itertools import product
from typing import Any, Literal, Self

from pydantic import model_validator

from pipelines.config_classification import Classification
from pipelines.config_deltas import Delta
from pipelines.config_job import Job
from pipelines.config_multitask import Multitask
from pipelines.config_prompting import Prompting, PromptingInput, PromptingJob, check_prompting
from pipelines.config_prompts import FrozenEncoder, Prompt
from pipelines.config_reading import LM, Generation, Surface
from pipelines.config_tasks import TaskBlock, TaskEvaluation, TaskInput, TaskTraining
from pipelines.config_values import Block, Name, Positive, Rate

ZERO_SHOT = "zero_shot"  # what the results of the LM as it is go by


class ComparedMethod(Block):
    """One method and what it is trained with: a prompt, a delta, or on an encoder a head alone (`head`: its name). Of
    several `learning_rates` a task takes the one with the best dev score with the first seed, for all seeds. A
    `prompting` that learns nothing has neither rates nor steps; seeds draw its demonstrations, and one that draws none
    is run once a task, with the first seed."""

    prompt: Prompt | None = None
    delta: Delta | None = None
    head: Name | None = None
    prompting: Prompting | None = None
    learning_rates: list[Rate] = []
    steps: Positive | None = None

    @model_validator(mode="after")
    def _is_one_method(self) -> Self:
        if sum(one is not None for one in (self.prompt, self.delta, self.head, self.prompting)) != 1:
            raise ValueError("a method is either a prompt, a delta, a head alone, or a prompting")
        if not self.trains and (self.learning_rates or self.steps is not None):
            raise ValueError(f"method {self.name!r} is not trained; leave out learning_rates and steps")
        if self.trains and not self.learning_rates:
            raise ValueError(f"method {self.name!r} needs learning_rates, at least one")
        if len({f"{rate:g}" for rate in self.learning_rates}) < len(set(self.learning_rates)):
            raise ValueError(f"method {self.name!r} has two learning_rates that are the same in six digits; keep one")
        return self

    @property
    def block(self) -> Any:
        """What is trained; None for a head alone, and for a prompting."""
        return self.prompt if self.prompt is not None else self.delta

    @property
    def name(self) -> str:
        """What its results go by."""
        if self.prompting is not None:
            return self.prompting.name
        return self.head if self.head is not None else str(self.block.name)

    @property
    def kind(self) -> str:
        """The method."""
        if self.prompting is not None:
            return "prompting"
        return "head" if self.head is not None else str(self.block.kind)

    @property
    def trains(self) -> bool:
        """Whether anything is trained."""
        return self.prompting is None or self.prompting.learns

    def runs(self, seeds: int) -> int:
        """With how many of the seeds a task is run."""
        return seeds if self.trains or (self.prompting is not None and self.prompting.draws) else 1


def check_comparison(methods: list[ComparedMethod], tasks: list[Any], *, encoder: bool, pairs: dict[str, str]) -> None:
    """What no block can check alone.

    Args:
        encoder: whether the methods stand around an encoder.
        pairs: see `MethodComparison`.

    Raises:
        ValueError: nothing to compare, two of one name or with one folder, a method for another kind of host, or pairs
            of no task.
    """
    if wrong := [one.name for one in methods if (one.head is None and one.delta is None if encoder else one.head)]:
        host = "an encoder takes deltas and heads" if encoder else "an LM takes prompts, deltas and promptings"
        raise ValueError(f"method {wrong[0]!r} does not fit: {host}; name an lm block to compare prompts")
    if lost := sorted(set(pairs) - {task.name for task in tasks}) or (sorted(pairs) if not encoder else []):
        raise ValueError(f"pairs has {lost[0]!r}; expected names of tasks, and an encoder to read them")
    if not methods or not tasks:
        raise ValueError("a comparison needs at least one method and one task")
    for what, names in (("methods", [m.name for m in methods]), ("tasks", [t.name for t in tasks])):
        if ZERO_SHOT in names and what == "methods":
            raise ValueError(f"a method is called {ZERO_SHOT!r}, as the LM without one is; give it another name")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two {what} are called {twice[0]!r}; give each a name of its own")
    folders: dict[str, str] = {}
    for method, task in product([one for one in methods if one.trains], tasks):
        pair = f"method {method.name!r} on task {task.name!r}"
        other = folders.setdefault(f"{method.name}-{task.name}", pair)
        if other != pair:
            raise ValueError(f"{other} and {pair} would train into the same folder; give one another name")


class MethodComparison(Job):
    """`kind: method_comparison`: every method on every task, each trained alone, with `seeds` seeds, around `lm`, or
    without one around `encoder` (which beside an LM serves prompts that are written from it, and chooses
    demonstrations). A method may also be a `prompting`, trained or not. `reference` names the method that the
    others are held against; `transfer` also measures what was trained for one task on the others; `pairs` words the
    second texts of an encoder's tasks, by task."""

    kind: Literal["method_comparison"]
    lm: LM | None = None
    encoder: FrozenEncoder | None = None
    methods: list[ComparedMethod]
    reference: Name | None = None
    tasks: list[TaskBlock]
    pairs: dict[Name, str] = {}
    seeds: Positive = 3
    transfer: bool = False
    input: TaskInput = TaskInput()
    generation: Generation = Generation()
    surface: Surface = Surface()
    training: TaskTraining
    evaluation: TaskEvaluation = TaskEvaluation()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.lm is None and (self.encoder is None or self.transfer):
            raise ValueError("a comparison needs an lm or an encoder; transfer needs an lm: a head knows one task")
        check_comparison(self.methods, self.tasks, encoder=self.lm is None, pairs=self.pairs)
        names = [method.name for method in self.methods]
        if self.reference is not None and self.reference not in names:
            raise ValueError(f"reference is {self.reference!r}; the methods here are {names}")
        for method in self.methods:
            for task in self.tasks:
                if method.prompting is not None:
                    about: dict[str, Any] = {"encoder": self.encoder is not None, "evaluation": self.evaluation}
                    check_prompting(method.prompting, task, **about)
            self.one(method, self.tasks[0], self.seeds - 1)
        return self

    def one(
        self, method: ComparedMethod, task: TaskBlock, seed: int, learning_rate: float | None = None
    ) -> Multitask | Classification | PromptingJob:
        """The config of a single run: one method, one task. Without a learning rate it has the method's first."""
        common: dict[str, Any] = {"seed": self.seed + seed, "workspace": self.workspace}
        common |= {"evaluation": self.evaluation, "encoder": self.encoder}
        name = method.name
        if method.trains:
            rate = method.learning_rates[0] if learning_rate is None else learning_rate
            steps = method.steps or self.training.steps
            common["training"] = self.training.model_copy(update={"learning_rate": rate, "steps": steps})
            name = f"{method.name}-{task.name}-{rate:g}-{seed}".replace("+", "")
        if method.prompting is not None:
            asked = method.prompting.model_copy(update={"name": name})
            room = PromptingInput(max_tokens=self.input.max_tokens)
            return PromptingJob(kind="prompting", lm=self.lm, task=task, prompting=asked, input=room, **common)
        block = None if method.block is None else method.block.model_copy(update={"name": name})
        if self.lm is None:
            about: dict[str, Any] = {"name": name, "task": task, "text_b": self.pairs.get(task.name)}
            return Classification(kind="classification", delta=block, **about, **common)
        trained: dict[str, Any] = {"prompt" if method.prompt is not None else "delta": block}
        return self._of_lm(task, **trained, **common)

    def plain(self, task: TaskBlock) -> Multitask:
        """The config of the LM as it is, on one task."""
        common: dict[str, Any] = {"seed": self.seed, "workspace": self.workspace, "evaluation": self.evaluation}
        return self._of_lm(task, encoder=self.encoder, **common)

    def _of_lm(self, task: TaskBlock, **own: Any) -> Multitask:
        shared: dict[str, Any] = {key: getattr(self, key) for key in ("lm", "input", "generation", "surface")}
        return Multitask(kind="multitask", tasks=[task], **shared, **own)
