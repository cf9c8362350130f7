"""Deltas of a model without weights: modules of which only the shapes are known, for what they cost (`footprint.py`).

Most are the method's own, made on torch's meta device. Four look at values while they are made (prefixes at a text's
keys, subspaces and subsets at what they draw, a pruned difference at what is largest) and have a stand-in here, which
runs the same operations over tensors of the same shapes. Our choice: an index of n weights falls into the tensors
evenly, and a prefix leaves the text's positions as they are, since neither changes what is computed.
Shapes: N weights covered, n of them trained, d numbers of a subspace.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from frozenlm.attention_places import Layers, places, prefixed
from frozenlm.deltas.attach import replaced
from frozenlm.deltas.flat import Flat, base, count_of
from frozenlm.deltas.intrinsic_dimension import IntrinsicDimension
from frozenlm.deltas.lora import PeftDelta
from frozenlm.deltas.p_tuning_v2 import PTuningV2
from frozenlm.deltas.prefix_parameters import chosen_places
from frozenlm.deltas.prefix_tuning import MIDDLE, PrefixTuning
from frozenlm.deltas.projections import FACTOR_BITS, SMALLEST_BLOCK
from frozenlm.deltas.random_subset import RandomSubset

META = torch.device("meta")


@dataclass(frozen=True)
class Outline:
    """A host without weights."""

    model: Any
    fingerprint: str = ""

    def changed(self, name: str) -> AbstractContextManager[None]:
        """Nothing is kept that could be mistaken."""
        return nullcontext()


def outlined(method: type[Any], model: Any, sizes: dict[str, Any]) -> Any:
    """What `method.create` would make for a model from `architectures.meta_model`, on the meta device.

    Raises:
        ConfigError: a size out of range, or a method that is not defined for this model.
    """
    made = _STAND_INS.get(method)
    if made is not None:
        return made(model, **{name: value for name, value in sizes.items() if name not in _WITHOUT_SHAPE})
    with META, _Undrawn():
        delta = method.create(Outline(model), **sizes)
    # LoHa and LoKr draw whether to leave out a layer even where none ever is.
    return delta.eval() if method is PeftDelta and not sizes.get("lora_dropout") else delta


def on_cpu(module: nn.Module) -> None:
    """Put a delta of `outlined` beside an `architectures.pretended_model`, in its block; it is of use there alone."""
    inside = [module]
    for part in module.modules():
        inside += [part.tuner()] if isinstance(part, PeftDelta) else []
    stores = [store for one in inside for part in one.modules() for store in (part._parameters, part._buffers)]
    for store in stores:
        for leaf, tensor in store.items():
            if tensor is not None and tensor.device == META:
                made = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
                trained = isinstance(tensor, nn.Parameter)
                store[leaf] = nn.Parameter(made, tensor.requires_grad) if trained else made  # type: ignore[assignment]


class Subset(nn.Module):
    """n weights of N, trained as differences: a random subset, or a difference that has been pruned."""

    def __init__(self, flat: Flat, count: int) -> None:
        super().__init__()
        self.flat = flat
        self.values = nn.Parameter(torch.empty(count, device=META))

    def attached(self, model: nn.Module) -> AbstractContextManager[None]:
        """The differences added at indices of no value."""
        found, seen, before = {}, 0, 0
        for name, size in zip(self.flat.names, self.flat.sizes, strict=True):
            seen += size
            after = round(len(self.values) * seen / self.flat.total)
            if after > before:
                index = torch.empty(after - before, dtype=torch.long, device=self.values.device)
                weight = base(model, name)
                found[name] = weight.flatten().index_add(0, index, self.values[before:after]).view(weight.shape)
            before = after
        return replaced(model, found)


class Subspace(nn.Module):
    """An intrinsic dimension; see `projections.py` for what it computes."""

    def __init__(self, flat: Flat, dimension: int, groups: list[int], *, dense: bool) -> None:
        super().__init__()
        self.flat, self.groups, self.dense = flat, groups, dense
        count = max(groups) + 1 if groups else 0
        self.theta = nn.Parameter(torch.empty(dimension - count, device=META))
        self.scales = nn.Parameter(torch.empty(count, device=META)) if groups else None

    def attached(self, model: nn.Module) -> AbstractContextManager[None]:
        """The weights with a projection of no value added."""
        offsets = self._dense() if self.dense else self._fastfood()
        if self.scales is not None:
            parts = zip(offsets.split(self.flat.sizes), self.groups, strict=True)
            offsets = torch.cat([part * self.scales[group] for part, group in parts])
        return replaced(model, self.flat.added(model, offsets))

    def _dense(self) -> Tensor:
        return self.theta.new_empty(self.flat.total, len(self.theta)) @ self.theta

    def _fastfood(self) -> Tensor:
        projected: Tensor = _Fastfood.apply(self.theta, self.flat.total)
        return projected


class _Fastfood(torch.autograd.Function):
    """The projection's products, of which nothing is kept for the backward pass, as in `projections.py`."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, weights: int) -> Tensor:
        ctx.dimension, ctx.block = len(theta), fastfood_block(len(theta))
        count = -(-weights // ctx.block)
        return _hadamard(_hadamard(theta.new_empty(count, ctx.block))).flatten()[:weights]

    @staticmethod
    def backward(ctx: Any, *of_weights: Tensor) -> tuple[Tensor, None]:
        count = -(-len(of_weights[0]) // ctx.block)
        back = _hadamard(_hadamard(of_weights[0].new_empty(count, ctx.block)))
        return back.sum(0)[: ctx.dimension], None


def _hadamard(x: Tensor) -> Tensor:
    shape, after = x.shape, 1
    for width in hadamard_widths(shape[-1]):
        small = x.new_empty(width, width)
        x = x.reshape(-1, width) @ small if after == 1 else small @ x.reshape(-1, width, after)
        after *= width
    return x.reshape(shape)


class Prefix(nn.Module):
    """Prefixes at places of a model, trained themselves or put out by a network each."""

    def __init__(self, sizes: dict[Any, Layers], length: int, network: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.sizes, self.length = sizes, length
        self.parts = nn.ModuleDict()
        for place, one in sizes.items():
            part = nn.Module()
            if network is None:
                part.prefix = nn.Parameter(torch.empty(one.shape(length), device=META))
            else:
                width, middle = network
                part.embedding = nn.Parameter(torch.empty(length, width, device=META))
                part.widen = nn.Linear(width, middle, device=META)
                part.out = nn.Linear(middle, 2 * one.count * one.heads * one.head_size, device=META)
            self.parts[place] = part

    def attached(self, model: nn.Module) -> AbstractContextManager[None]:
        """Before the text, whose positions stay."""
        places_of(model)
        return prefixed(model, {place: self._prefix(place) for place in self.sizes})

    def _prefix(self, place: Any) -> Tensor:
        part: Any = self.parts[place]
        if hasattr(part, "prefix"):
            return part.prefix
        one = self.sizes[place]
        flat = part.out(torch.tanh(part.widen(part.embedding)))
        return flat.view(self.length, one.count, 2, one.heads, one.head_size).permute(1, 2, 0, 3, 4)


def places_of(model: Any, where: Sequence[Any] | None = None) -> dict[Any, Layers]:
    """Where prefixes can stand in a model without weights, or those of these places that are asked for.

    Raises:
        ConfigError: as `attention_places.places`, or a place that the model does not have.
    """
    with _NothingHidden():
        return chosen_places(places(model), where)


def fastfood_block(dimension: int) -> int:
    """Numbers of a block, as `projections.Fastfood` has it."""
    return max(SMALLEST_BLOCK, 2 ** (dimension - 1).bit_length())


def hadamard_widths(block: int) -> Iterator[int]:
    """Of the small matrices whose Kronecker product a Walsh-Hadamard transform is, as `projections.hadamard` has it."""
    left = block.bit_length() - 1
    while left:
        bits = min(FACTOR_BITS, left)
        yield 2**bits
        left -= bits


class _Undrawn(TorchFunctionMode):
    """On the meta device nothing is drawn, so there is no use for a generator, of which it would refuse a CPU's."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **{name: value for name, value in (kwargs or {}).items() if name != "generator"})


class _NothingHidden(TorchFunctionMode):
    """While attentions are found, some models look into the mask, which has no values; all of the text is seen."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return True if func in (Tensor.item, Tensor.__bool__) else func(*args, **(kwargs or {}))


def _subset(model: Any, *, share: float, targets: Any) -> Subset:
    flat = Flat.of(model, targets)
    return Subset(flat, count_of(share, flat.total))


def _subspace(model: Any, *, dimension: int, scales: Any, projection: str, targets: Any) -> Subspace:
    flat = Flat.of(model, targets)
    groups = [] if scales is None else flat.groups(model, scales)
    return Subspace(flat, dimension, groups, dense=projection == "dense")


def _prefix_tuning(
    model: Any,
    *,
    length: int,
    places: Sequence[Any] | None = None,
    reparametrise: bool = True,
    embedding_size: int | None = None,
    middle_size: int = MIDDLE,
) -> Prefix:
    width = embedding_size if embedding_size is not None else model.get_input_embeddings().embedding_dim
    return Prefix(places_of(model, places), length, (width, middle_size) if reparametrise else None)


def _p_tuning_v2(model: Any, *, length: int, places: Sequence[Any] | None = None) -> Prefix:
    return Prefix(places_of(model, places), length)


_WITHOUT_SHAPE = ("init", "position_offset")
_STAND_INS: dict[type[Any], Callable[..., nn.Module]] = {
    RandomSubset: _subset,
    IntrinsicDimension: _subspace,
    PrefixTuning: _prefix_tuning,
    PTuningV2: _p_tuning_v2,
}
