"""Training in one run, or with DiffPruning (arXiv 2012.07463, section 3.2) in two: with gates, and then pruned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from frozenlm.train_settings import TrainSettings
from frozenlm.training import FitResult
from pipelines import config as c

RUNS = ("run", "pruned.run")  # endings of the runs' folders
Fitted = Callable[[TrainSettings, str, Mapping[str, float]], FitResult]
"""(settings, ending of the run's folder, rates by parameter) -> what the run did."""


def fit_in_phases(fitted: Fitted, settings: TrainSettings, block: Any, prune: Callable[[], None]) -> FitResult:
    """Fit what the block describes.

    prune: puts the pruned module in the place of the one that has been trained
    """
    rates = block.rates(settings.learning_rate) if isinstance(block, c.DeltaBlock) else {}
    result = fitted(settings, RUNS[0], rates)
    if not isinstance(block, c.DiffPruning):
        return result
    prune()
    steps = max(1, round(block.retrain * settings.steps))
    again = replace(settings, steps=steps, warmup_steps=min(settings.warmup_steps, steps))
    return _both(result, fitted(again, RUNS[1], {}))


def _both(first: FitResult, second: FitResult) -> FitResult:
    """Two runs, one after the other, as one; the second decides."""
    moved = [entry | {"step": entry["step"] + first.steps} for entry in second.history]
    return replace(
        second,
        steps=first.steps + second.steps,
        best_step=first.steps + second.best_step,
        history=[*first.history, *moved],
        seconds=first.seconds + second.seconds,
        step_seconds=first.step_seconds + second.step_seconds,
        already_trained=first.already_trained and second.already_trained,
    )
