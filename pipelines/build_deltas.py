"""From the config block of a delta to the module it names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.build import Log
from pipelines.config_deltas import AttentionPrefix as PrefixBlock
from pipelines.config_deltas import PartialLayers
from pipelines.errors import CheckpointError

if TYPE_CHECKING:
    from frozenlm.deltas.attach import Delta, Host
    from pipelines.config import DeltaBlock

_ONLY_TRAINING = ("lora_dropout", "init")
_IN_CONFIGS = {"r": "rank", "lora_alpha": "alpha", "method": "kind"}  # by peft's names


def delta_class(kind: str) -> Any:
    """The class of a method, by its kind in configs; the forms of adapters are one class."""
    from frozenlm.deltas.catalogue import method

    return method("adapter_pfeiffer" if kind == "adapter" else kind).module_class


def new_delta(block: DeltaBlock, host: Host, seed: int) -> Delta:
    """A delta before training.

    Raises:
        ConfigError: a size out of range, or a method that is not defined for this model.
    """
    made: Any = delta_class(block.kind).create(host, seed=seed, **block.sizes())  # type: ignore[attr-defined]
    if isinstance(block, PartialLayers) and block.lower_states.kept:
        made.keep_lower_states(host, max_bytes=block.lower_states.byte_budget)
    delta: Delta = made
    return delta


def lower_states_counts(delta: Any, log: Log) -> dict[str, int] | None:
    """What a delta has kept of the blocks below it while it was trained, for the log and the summary; None without."""
    states = getattr(delta, "lower_states", None)
    if states is None:
        return None
    counts: dict[str, int] = states.counts
    line = f"states below: {counts['rows']} rows kept in {counts['nbytes']:,} bytes, {counts['hits']:,} times read"
    log(line + (f"; {counts['refused']:,} times no room in the byte budget" if counts["refused"] else ""))
    return counts


def trained_delta(folder: Path, block: DeltaBlock, host: Host) -> Delta:
    """A delta from the workspace, in eval mode.

    Raises:
        CheckpointError: not trained yet, damaged, of another LM, or not what the config asks for.
    """
    if not folder.exists():
        raise CheckpointError(
            f"no trained delta at {folder}; run `frozenlm train CONFIG` from this directory, or set delta=null to use "
            "the LM as it is"
        )
    module: Any = delta_class(block.kind).load(folder, host)  # type: ignore[attr-defined]
    check_asked_for(module, block, host, folder)
    found: Delta = module.eval()
    return found


def check_asked_for(module: Any, block: DeltaBlock, host: Host, where: Path) -> None:
    """Compare what a delta was made with and what the config asks for.

    Args:
        where: the folder that it comes from: a module's of ours, or of `peft`.

    Raises:
        CheckpointError: they differ; names the first setting that does.
    """
    asked = _asked(block, host)
    held = _held(module, where, asked)
    for name in asked:
        if name in held and held[name] != asked[name]:
            raise CheckpointError(
                f"{where} was trained with {_IN_CONFIGS.get(name, name)} {_short(held[name])}, the config asks for "
                f"{_short(asked[name])}; set it back, train it again with --restart, or give it another name"
            )


def _asked(block: DeltaBlock, host: Host) -> dict[str, Any]:
    """What decides how the trained numbers are read, with what `create` chooses for itself filled in."""
    from frozenlm.attention_places import places
    from frozenlm.deltas.adapter import usual_scale
    from frozenlm.deltas.lora import PeftDelta
    from frozenlm.deltas.peft_methods import choose_targets

    asked = {name: value for name, value in block.sizes().items() if name not in _ONLY_TRAINING}
    if delta_class(block.kind) is PeftDelta:  # type: ignore[attr-defined]
        asked["targets"] = sorted(choose_targets(host.model, asked["method"], asked.get("targets")))
    if isinstance(block, PrefixBlock):
        asked["places"] = sorted(block.places or places(host.model))
    if asked.get("scale", 0) is None:
        asked["scale"] = usual_scale(asked["form"])
    return asked


def _held(module: Any, where: Path, asked: Mapping[str, Any]) -> dict[str, Any]:
    from frozenlm.checkpoint import MODULE_FILE
    from frozenlm.deltas.attention_prefix import AttentionPrefix
    from frozenlm.deltas.intrinsic_dimension import IntrinsicDimension
    from frozenlm.deltas.lora import PeftDelta

    if isinstance(module, PeftDelta):
        settings = module.peft_config()
        of_peft = {name: getattr(settings, name) for name in asked if hasattr(settings, name)}
        return of_peft | {"method": module.method, "targets": sorted(module.layers)}
    card = where / MODULE_FILE
    held: dict[str, Any] = json.loads(card.read_bytes())["config"] if card.exists() else {}
    held |= {name: getattr(module, name) for name in ("length", "position_offset") if hasattr(module, name)}
    if isinstance(module, AttentionPrefix):
        held["places"] = sorted(module())
    if isinstance(module, IntrinsicDimension):
        held["dimension"] = sum(p.numel() for p in module.parameters())
    return held


def _short(value: Any) -> str:
    """A long list of layers by its ends."""
    if isinstance(value, list) and len(value) > 3:
        return f"[{value[0]}, ..., {value[-1]}] ({len(value)})"
    return repr(value)
