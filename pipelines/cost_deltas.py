"""What a delta trains and what it adds to a pass, by its config block and a model without weights.

Some deltas compute within the pass: LoRA and its kin and adapters multiply by matrices of their own, prefixes are more
keys to attend to. Their FLOPs are counted in a pass with the delta attached, as this project runs them: LoHa, LoKr and
DoRA make matrices in every pass. All others only make other weights, once for all inputs of a call, and with those the
pass costs what it did: that is told apart (`making`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from frozenlm.deltas import adapter, bitfit, p_tuning_v2, peft_methods, prefix_tuning
from frozenlm.deltas.attach import blocks, target_modules
from frozenlm.deltas.diff_pruning import DiffPruning
from frozenlm.deltas.flat import Flat, count_of
from frozenlm.deltas.full_copy import FullCopy
from frozenlm.deltas.intrinsic_dimension import IntrinsicDimension
from frozenlm.deltas.masking import Masking
from frozenlm.deltas.outline import fastfood_block, hadamard_widths, outlined, places_of
from frozenlm.deltas.partial_layers import PartialLayers
from frozenlm.deltas.prefix_parameters import prefix_numbers
from frozenlm.deltas.random_subset import RandomSubset
from frozenlm.shapes import ModelShape
from pipelines import config_deltas as d
from pipelines.build_deltas import delta_class
from pipelines.cost_words import short
from pipelines.errors import ConfigError

PEFT = (d.LoRA, d.KroneckerOrHadamard, d.VeRA, d.IA3)
IN_THE_PASS = (*PEFT, d.Adapter, d.PrefixTuning, d.PTuningV2)


@dataclass(frozen=True)
class DeltaSizes:
    """Of a delta around one model.

    trained: numbers that are trained
    served: numbers that it adds to an input's computation once trained: a prefix without its network, what is pruned
    making: FLOPs of the matrix products that make the weights, once for all inputs of a call
    made: weights that it makes by other means than matrix products, a few operations each; those are not counted
    """

    trained: int
    served: int
    making: int = 0
    made: int = 0

    @property
    def not_counted(self) -> list[str]:
        """What figures of one input leave out."""
        products = [f"{short(self.making)} FLOPs in matrix products"] if self.making else []
        others = [f"a few operations for each of {short(self.made)} weights"] if self.made else []
        parts = " and ".join(products + others)
        return [f"making the delta's weights, once for all inputs of a call: {parts}"] if parts else []


def delta_sizes(block: d.DeltaBlock, model: Any) -> DeltaSizes:
    """Of a delta around a model from `architectures.meta_model`; each method's own formula.

    Raises:
        ConfigError: a size out of range, or a method that is not defined for this model.
    """
    return _SIZES[type(block)](block, model)


def outlined_delta(block: d.DeltaBlock, model: Any) -> Any:
    """The delta's module without weights.

    Raises:
        ConfigError: as `delta_sizes`.
    """
    return outlined(delta_class(block.kind), model, block.sizes())  # type: ignore[attr-defined]


def with_delta(block: d.DeltaBlock, model: Any, alone: ModelShape) -> ModelShape:
    """What the model computes with the delta attached.

    alone: what it computes by itself

    Raises:
        ConfigError: as `delta_sizes`.
    """
    if not isinstance(block, IN_THE_PASS):
        return alone
    delta = outlined_delta(block, model).eval()
    with delta.attached(model):
        return ModelShape.of_encoder(model) if alone.kind == "encoder" else ModelShape.of_lm(model)


def _peft(block: Any, model: Any) -> DeltaSizes:
    chosen = peft_methods.choose_targets(model, block.kind, getattr(block, "targets", None))
    shapes = [_in_and_out(model.get_submodule(name)) for name in chosen]
    inner = set(target_modules(model, "feed_forward")) if block.kind == "ia3" else set()
    rescaled = sum(name in inner for name in chosen)
    count = peft_methods.parameter_count(block.kind, shapes, r=getattr(block, "rank", 0), rescaled_inputs=rescaled)
    return DeltaSizes(count, count)


def _adapter(block: d.Adapter, model: Any) -> DeltaSizes:
    found = adapter.find_places(model, block.form, cross=block.cross)
    _, hidden = _in_and_out(model.get_submodule(found[0].after))
    count = adapter.parameter_count(len(found), hidden, block.width)
    return DeltaSizes(count, count)


def _bitfit(block: d.BitFit, model: Any) -> DeltaSizes:
    count = bitfit.parameter_count([offset.numel() for offset in outlined_delta(block, model).offsets.values()])
    return DeltaSizes(count, count, made=count)


def _prefix_tuning(block: d.PrefixTuning, model: Any) -> DeltaSizes:
    layers = places_of(model, block.places)
    width = block.embedding_size or model.get_input_embeddings().embedding_dim
    sizes = {"embedding_size": width, "middle_size": block.middle_size}
    trained = prefix_tuning.parameter_count(layers, block.length, reparametrise=block.reparametrise, **sizes)
    return DeltaSizes(trained, prefix_numbers(layers, block.length))


def _p_tuning_v2(block: d.PTuningV2, model: Any) -> DeltaSizes:
    count = p_tuning_v2.parameter_count(places_of(model, block.places), block.length)
    return DeltaSizes(count, count)


def _diff_pruning(block: d.DiffPruning, model: Any) -> DeltaSizes:
    flat = Flat.of(model, block.targets)
    groups = [] if block.structured is None else flat.groups(model, block.structured)
    trained = DiffPruning.parameter_count(flat.total, max(groups) + 1 if groups else 0)
    kept = count_of(block.share, flat.total)
    return DeltaSizes(trained, kept, made=kept)


def _masking(block: d.Masking, model: Any) -> DeltaSizes:
    count = Masking.parameter_count(Flat.of(model, block.targets).total)
    return DeltaSizes(count, count, made=count)


def _partial_layers(block: d.PartialLayers, model: Any) -> DeltaSizes:
    delta = outlined_delta(block, model)
    sizes = dict(zip(delta.flat.names, delta.flat.sizes, strict=True))
    last = f"{blocks(model)[-1][0]}."
    a_block = sum(size for name, size in sizes.items() if name.startswith(last))
    norm = delta.flat.total - a_block * block.blocks if block.final_norm else 0
    count = PartialLayers.parameter_count(a_block, block.blocks, norm)
    return DeltaSizes(count, count, made=count)


def _random_subset(block: d.RandomSubset, model: Any) -> DeltaSizes:
    count = RandomSubset.parameter_count(Flat.of(model, block.targets).total, block.share)
    return DeltaSizes(count, count, made=count)


def _intrinsic_dimension(block: d.IntrinsicDimension, model: Any) -> DeltaSizes:
    flat = Flat.of(model, block.targets)
    groups = [] if block.scales is None else flat.groups(model, block.scales)
    scales = max(groups) + 1 if groups else 0
    count = IntrinsicDimension.parameter_count(block.dimension)
    if not scales < count <= flat.total:
        raise ConfigError(
            f"dimension is {count}; expected more than the {scales} scales that count among them and at most "
            f"{flat.total}, the weights; scales=null goes down to 1"
        )
    return DeltaSizes(count, count, projection_flops(flat.total, count - scales, block.projection), flat.total)


def projection_flops(weights: int, dimension: int, form: str) -> int:
    """FLOPs of one random projection from d to N: 2 N d, or of Fastfood two Walsh-Hadamard transforms, N log b."""
    if form == "dense":
        return 2 * weights * dimension
    block = fastfood_block(dimension)
    numbers = -(-weights // block) * block
    return 2 * 2 * numbers * sum(hadamard_widths(block))


def _full_copy(block: d.FullCopy, model: Any) -> DeltaSizes:
    count = FullCopy.parameter_count(Flat.of(model, "model").total)
    return DeltaSizes(count, count)


_SIZES: dict[type[Any], Callable[[Any, Any], DeltaSizes]] = {
    **dict.fromkeys(PEFT, _peft),
    d.Adapter: _adapter,
    d.BitFit: _bitfit,
    d.PrefixTuning: _prefix_tuning,
    d.PTuningV2: _p_tuning_v2,
    d.DiffPruning: _diff_pruning,
    d.Masking: _masking,
    d.PartialLayers: _partial_layers,
    d.RandomSubset: _random_subset,
    d.IntrinsicDimension: _intrinsic_dimension,
    d.FullCopy: _full_copy,
}


def _in_and_out(layer: nn.Module) -> tuple[int, int]:
    """What a dense layer takes and gives."""
    first, second = layer.weight.shape  # type: ignore[misc]
    return (first, second) if isinstance(layer, Conv1D) else (second, first)
