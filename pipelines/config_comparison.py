"""The config blocks of a comparison of methods: each on each task, with several seeds, beside full fine-tuning."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from pipelines.config_deltas import Delta
from pipelines.config_tasks import Prompt
from pipelines.config_values import Block, Positive, Rate

Rates = Annotated[list[Rate], Field(min_length=1)]


class ComparedMethod(Block):
    """One method, a prompt or a delta, and what it is trained with. Of several `learning_rates` the one with the best
    dev score on the first task with the first seed is taken for all runs."""

    prompt: Prompt | None = None
    delta: Delta | None = None
    learning_rates: Rates
    steps: Positive | None = None

    @model_validator(mode="after")
    def _is_one_method(self) -> Self:
        if (self.prompt is None) == (self.delta is None):
            raise ValueError("a method is either a prompt or a delta")
        return self

    @property
    def block(self) -> Any:
        """The prompt or the delta."""
        return self.prompt if self.prompt is not None else self.delta


def check_comparison(methods: list[ComparedMethod], tasks: list[Any]) -> None:
    """What no block can check alone.

    Raises:
        ValueError: nothing to compare, or two of one name.
    """
    if not methods or not tasks:
        raise ValueError("a comparison needs at least one method and one task")
    for what, names in (("methods", [m.block.name for m in methods]), ("tasks", [t.name for t in tasks])):
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two {what} are called {twice[0]!r}; give each a name of its own")
