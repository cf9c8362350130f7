"""From the config block of a delta to the module it names."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import CheckpointError

if TYPE_CHECKING:
    from frozenlm.deltas.attach import Delta, Host
    from pipelines.config import DeltaBlock

CLASSES = {
    **dict.fromkeys(("lora", "rslora", "dora", "loha", "lokr", "vera", "ia3"), ("lora", "PeftDelta")),
    "adapter": ("adapter", "Adapter"),
    "bitfit": ("bitfit", "BitFit"),
    "prefix_tuning": ("prefix_tuning", "PrefixTuning"),
    "p_tuning_v2": ("p_tuning_v2", "PTuningV2"),
    "diff_pruning": ("diff_pruning", "DiffPruning"),
    "masking": ("masking", "Masking"),
    "partial_layers": ("partial_layers", "PartialLayers"),
    "random_subset": ("random_subset", "RandomSubset"),
    "intrinsic_dimension": ("intrinsic_dimension", "IntrinsicDimension"),
    "full_copy": ("full_copy", "FullCopy"),
}


def delta_class(kind: str) -> Any:
    """The class of a method."""
    module, name = CLASSES[kind]
    return getattr(import_module(f"frozenlm.deltas.{module}"), name)


def new_delta(block: DeltaBlock, host: Host, seed: int) -> Delta:
    """A delta before training.

    Raises:
        ConfigError: a size out of range, or a method that is not defined for this model.
    """
    made: Delta = delta_class(block.kind).create(host, seed=seed, **block.sizes())  # type: ignore[attr-defined]
    return made


def trained_delta(folder: Path, block: DeltaBlock, host: Host) -> Delta:
    """A delta from the workspace, in eval mode.

    Raises:
        CheckpointError: not trained yet, damaged, or of another LM.
    """
    if not folder.exists():
        raise CheckpointError(
            f"no trained delta at {folder}; run `frozenlm train CONFIG` from this directory, or set delta=null to use "
            "the LM as it is"
        )
    module: Any = delta_class(block.kind).load(folder, host)  # type: ignore[attr-defined]
    found: Delta = module.eval()
    return found
