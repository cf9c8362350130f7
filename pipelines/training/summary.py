"""What a training says of itself when it is done."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch import nn

from frozenlm.checkpoint import is_module, verify_module
from frozenlm.deltas.masking import KIND as MASKING
from frozenlm.saved_parts import verify_parts
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


def trained_parameters(module: nn.Module) -> int:
    """The numbers that the optimizer moves; asked before training, those of DiffPruning's gates among them."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def kept_parameters(folder: Path, module: nn.Module | None = None) -> int:
    """The numbers that serve what was trained: those of its file, or of its collapsed form where they are fewer.

    A mask is one number a weight, though it takes one bit. Where values belong is no number of its own.

    Args:
        folder: of a saved module, or of several parts.
        module: what was saved; only one that has a `collapse` matters.

    Raises:
        CheckpointError: missing or damaged.
    """
    if not is_module(folder):
        return sum(kept_parameters(folder / part) for part in verify_parts(folder))
    info = verify_module(folder)
    if info.kind == MASKING:
        return int(info.config["weights"])
    saved = sum(math.prod(shape) for name, shape in info.shapes.items() if name != "index")
    if hasattr(module, "collapse"):
        return min(saved, trained_parameters(module.collapse()))  # type: ignore[union-attr, operator]
    return saved


def of_steps(result: FitResult, kept: KeptBytes, module: Any, log: Log) -> dict[str, Any]:
    """What a step took of time and memory, and what each evaluation found."""
    return {
        "seconds_per_step": result.step_seconds / max(1, result.steps),
        "saved_bytes": kept.most,
        "lower_states": lower_states_counts(module, log),
        "history": result.history,
    }
