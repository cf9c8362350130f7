"""What a training says of itself when it is done."""

from __future__ import annotations

from typing import Any

from frozenlm.training import FitResult
from pipelines.build import Log
from pipelines.build_deltas import lower_states_counts
from pipelines.training.kept_bytes import KeptBytes


def of_loop(result: FitResult) -> dict[str, Any]:
    """What every training says of its loop."""
    return {
        "steps": result.steps,
        "best_step": result.best_step,
        "best_score": result.best_score,
        "seconds": result.seconds,
        "already_trained": result.already_trained,
    }


def summary(result: FitResult) -> dict[str, Any]:
    """`of_loop`, around a frozen LM."""
    verification = result.verification
    return of_loop(result) | {"lm_weights_changed": verification.changed if verification is not None else None}


def of_steps(result: FitResult, kept: KeptBytes, module: Any, log: Log) -> dict[str, Any]:
    """What a step took of time and memory, and what each evaluation found."""
    return {
        "seconds_per_step": result.step_seconds / max(1, result.steps),
        "saved_bytes": kept.most,
        "lower_states": lower_states_counts(module, log),
        "history": result.history,
    }
