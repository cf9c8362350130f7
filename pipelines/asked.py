"""How every pipeline is used: called with one question or a list of them, and closed by a `with`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Self, TypeVar, overload

if TYPE_CHECKING:
    from pipelines.answer import Answer
    from retrievers.types import Hit

Input = TypeVar("Input")


class Asked(ABC, Generic[Input]):
    """What answers lists of questions, each a string or another `Input`."""

    @abstractmethod
    def answer(self, questions: Sequence[Input], hits: Sequence[Sequence[Hit]] | None = None) -> list[Answer]:
        """Answer a batch."""

    @abstractmethod
    def close(self) -> None:
        """Release what was loaded."""

    @overload
    def __call__(self, questions: str) -> Answer: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, questions: Sequence[Input]) -> list[Answer]: ...
    def __call__(self, questions: str | Sequence[Input]) -> Answer | list[Answer]:
        """One answer for one question, a list for a list. See `answer`."""
        return self.answer([questions])[0] if isinstance(questions, str) else self.answer(questions)  # type: ignore[list-item]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
