"""What prefix tuning and P-tuning v2 have in common: making prefixes, keeping them in a folder, reading them once.

Shapes: P prefix, L attention layers of a place, K key-value heads, D head size.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import torch
from torch import Tensor

from frozenlm.attention import Place
from frozenlm.attention_places import Layers, places
from frozenlm.backbone import DecoderOnly
from frozenlm.checkpoint import load_module, save_module
from frozenlm.deltas.prefix_initializers import PrefixInitializer, from_real_text
from frozenlm.errors import CheckpointError, ConfigError, ShapeError
from frozenlm.memory import Memory

if TYPE_CHECKING:
    from frozenlm.lm import FrozenLM

Prefixes = Mapping[Place, Tensor]
"""[L, 2, P, K, D] a place."""


def started_prefixes(
    host: Any, length: int, init: PrefixInitializer | None, where: Sequence[Place] | None, seed: int
) -> dict[Place, Tensor]:
    """Where the prefixes begin, at the places asked for (None: all that the model has).

    Raises:
        ConfigError: a length below 1, a place that the model does not have, what the initialiser raises.
        ShapeError: the initialiser made another shape.
    """
    if type(length) is not int or length < 1:
        raise ConfigError(f"a prefix has at least 1 key a layer, got length {length!r}")
    sizes = chosen_places(places(host.model), where)
    made = (init or from_real_text())(host, length, torch.Generator().manual_seed(seed))
    for place in sizes:
        if place not in made or tuple(made[place].shape) != sizes[place].shape(length):
            got = list(made[place].shape) if place in made else "nothing"
            raise ShapeError(f"the initialiser made {got} for {place}; expected {list(sizes[place].shape(length))}")
    return {place: made[place] for place in sizes}


def chosen_places(sizes: Mapping[Place, Layers], where: Sequence[Place] | None) -> dict[Place, Layers]:
    """Of a model's places those asked for, in their order (None: all).

    Raises:
        ConfigError: none, or one that the model does not have.
    """
    if where is not None and (not where or isinstance(where, str) or not set(where) <= set(sizes)):
        raise ConfigError(f"places is {where!r}; this model has {', '.join(sizes)}")
    return {place: sizes[place] for place in where or tuple(sizes)}


def checked_prefixes(prefixes: Prefixes) -> dict[Place, Tensor]:
    """The prefixes as float32 copies.

    Raises:
        ConfigError: no prefix, an unknown place, or values that are not finite.
        ShapeError: not [L, 2, P, K, D], or of different lengths.
    """
    if not prefixes or not set(prefixes) <= set(get_args(Place)):
        raise ConfigError(f"prefixes for {sorted(prefixes)}; expected at least one of {', '.join(get_args(Place))}")
    shapes = {place: tuple(prefix.shape) for place, prefix in prefixes.items()}
    if any(len(shape) != 5 or shape[1] != 2 or 0 in shape for shape in shapes.values()):
        raise ShapeError(f"a prefix is [L, 2, P, K, D], got {shapes}")
    if len({shape[2] for shape in shapes.values()}) > 1:
        raise ShapeError(f"the prefixes of all places have one length, got {shapes}")
    for place, prefix in prefixes.items():
        if not bool(torch.isfinite(prefix).all()):
            raise ConfigError(f"the {place} prefix holds NaN or Inf; check the initialiser or the file")
    return {place: prefix.detach().to(torch.float32, copy=True) for place, prefix in prefixes.items()}


def prefix_numbers(sizes: Mapping[Place, Layers], length: int) -> int:
    """How many numbers prefixes of that length hold: P x 2 L K D a place."""
    return sum(2 * layers.count * length * layers.heads * layers.head_size for layers in sizes.values())


def holds_prefixes(lm: "FrozenLM") -> bool:
    """Whether a memory of this LM may hold a prefix: it is decoder-only, and no layer slides a window over the text."""
    return isinstance(lm.engine.body, DecoderOnly) and lm.engine.body.sliding is None


def prefix_memory(lm: "FrozenLM", prefixes: Prefixes, *, position_offset: bool) -> Memory:
    """A decoder-only LM's memory of one row that holds the prefix.

    Rows that go on from it compute what they would with the prefix attached, and rows with different prefixes, or with
    none, can stand in one batch (`Memory.concatenate`). An LM with a sliding window would forget it, and so is refused.

    Raises: ConfigError for an encoder-decoder, an LM with a sliding window or one with something attached.
    """
    if not holds_prefixes(lm) or lm.is_changed:
        reason = (
            "is changed" if lm.is_changed else "is an encoder-decoder" if lm.kind != "decoder" else "slides a window"
        )
        raise ConfigError(
            f"a prefix is a memory of a plain decoder-only LM; this one {reason}; attach the prefix instead"
        )
    prefix = prefixes["decoder"].detach().to(device=lm.device, dtype=lm.dtype)
    length = prefix.shape[2]
    layers = prefix.transpose(2, 3).unsqueeze(2)  # [L, 2, 1, K, P, D]
    return Memory(
        tuple(layers[:, 0]),
        tuple(layers[:, 1]),
        torch.ones(1, length, dtype=torch.long, device=lm.device),
        torch.tensor([length if position_offset else 0], device=lm.device),
        lm.fingerprint,
    )


def save_prefixes(folder: Path | str, prefixes: Prefixes, host: Any, *, position_offset: bool, kind: str) -> None:
    """Writes the prefixes with the fingerprint of the model they belong to.

    Raises: CheckpointError when they hold non-finite or huge numbers, or the folder cannot be written.
    """
    tensors = {f"prefixes.{place}": prefix for place, prefix in prefixes.items()}
    save_module(folder, tensors, {"position_offset": position_offset}, lm_fingerprint=host.fingerprint, kind=kind)


def load_prefixes(
    folder: Path | str, host: Any, *, allow_other_lm: bool, kind: str
) -> tuple[dict[Place, Tensor], bool]:
    """Reads what `save_prefixes` wrote: the prefixes, and position_offset.

    Raises: CheckpointError when it is missing, damaged, unsafe, or does not fit the model.
    """
    tensors, config = load_module(folder, kind=kind, lm_fingerprint=host.fingerprint, allow_other_lm=allow_other_lm)
    sizes, offset = places(host.model), config.get("position_offset")
    prefixes = {name.removeprefix("prefixes."): tensor for name, tensor in tensors.items()}
    fits = all(
        place in sizes and prefix.ndim == 5 and tuple(prefix.shape) == sizes[place].shape(prefix.shape[2])
        for place, prefix in prefixes.items()
    )
    if not fits or not prefixes or type(offset) is not bool or any(not n.startswith("prefixes.") for n in tensors):
        found = {name: list(tensor.shape) for name, tensor in tensors.items()}
        raise CheckpointError(
            f"{folder} holds {found} and {config}; this model takes prefixes [L, 2, P, K, D] for {sizes}; "
            "load the LM it was trained for"
        )
    return {cast(Place, place): prefix for place, prefix in prefixes.items()}, offset
