"""The config blocks of a comparison of methods: each on each task, with several seeds, beside full fine-tuning."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from pipelines.config_deltas import Delta
from pipelines.config_tasks import Prompt
from pipelines.config_values import Block, Name, Positive, Rate

ZERO_SHOT = "zero_shot"  # what the results of the LM as it is go by
Rates = Annotated[list[Rate], Field(min_length=1)]


class ComparedMethod(Block):
    """One method and what it is trained with: a prompt, a delta, or on an encoder a head alone (`head`: its name). Of
    several `learning_rates` the one with the best dev score on the first task with the first seed is taken for all."""

    prompt: Prompt | None = None
    delta: Delta | None = None
    head: Name | None = None
    learning_rates: Rates
    steps: Positive | None = None

    @model_validator(mode="after")
    def _is_one_method(self) -> Self:
        if sum(one is not None for one in (self.prompt, self.delta, self.head)) != 1:
            raise ValueError("a method is either a prompt, a delta, or a head alone")
        return self

    @property
    def block(self) -> Any:
        """The prompt or the delta; None for a head alone."""
        return self.prompt if self.prompt is not None else self.delta

    @property
    def name(self) -> str:
        """What its results go by."""
        return self.head if self.head is not None else str(self.block.name)

    @property
    def kind(self) -> str:
        """The method."""
        return "head" if self.head is not None else str(self.block.kind)


def check_comparison(methods: list[ComparedMethod], tasks: list[Any], *, encoder: bool, pairs: dict[str, str]) -> None:
    """What no block can check alone.

    Args:
        encoder: whether the methods stand around an encoder.
        pairs: see `config.MethodComparison`.

    Raises:
        ValueError: nothing to compare, two of one name, a method for another kind of host, or pairs of no task.
    """
    if wrong := [m.name for m in methods if (m.prompt is not None and encoder) or (m.head is not None and not encoder)]:
        host = "an encoder takes deltas and heads" if encoder else "an LM takes prompts and deltas"
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
