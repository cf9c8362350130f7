"""From the config block of a delta to the module it names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import CheckpointError

if TYPE_CHECKING:
    from frozenlm.deltas.attach import Delta, Host
    from pipelines.config import DeltaBlock


def delta_class(kind: str) -> Any:
    """The class of a method, by its kind in configs; the forms of adapters are one class."""
    from frozenlm.deltas.catalogue import method

    return method("adapter_pfeiffer" if kind == "adapter" else kind).module_class


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
