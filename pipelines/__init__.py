"""Frozen LM and retrievers composed into runnable jobs: `from pipelines import Pipeline`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.answer import Answer
    from pipelines.pipeline import Pipeline

__all__ = ["Answer", "Pipeline"]


def __getattr__(name: str) -> Any:
    """Load the public names on first use, so that `frozenlm --help` stays quick."""
    if name == "Pipeline":
        from pipelines.pipeline import Pipeline

        return Pipeline
    if name == "Answer":
        from pipelines.answer import Answer

        return Answer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
