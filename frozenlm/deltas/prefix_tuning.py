"""Prefix tuning: Li & Liang 2021, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", arXiv 2101.00190.

Every attention layer of a frozen model gets P trained keys and values before those of the text. As in the paper they
come out of a small network while they are trained (section 4.3), or are trained themselves with `reparametrise=False`;
either way only the prefix is kept: `collapse` computes it once, and `save` writes no more. An encoder-decoder gets one
in its encoder, one in its decoder and one in the attention between them, each with a network of its own.

Our choices: it begins at the real keys and values of a text (`prefix_initializers.py`); the text's positions begin at P
(`position_offset`), so that a prefix that has just begun does what that text in front would do; the numbers are float32
whatever the model's dtype.
Shapes: P prefix, L attention layers of a place, K key-value heads, D head size.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from frozenlm.attention import Place
from frozenlm.attention_places import Layers, prefixed
from frozenlm.deltas.prefix_initializers import PrefixInitializer
from frozenlm.deltas.prefix_network import PrefixNetwork, network_numbers
from frozenlm.deltas.prefix_parameters import (
    checked_prefixes,
    load_prefixes,
    prefix_memory,
    prefix_numbers,
    save_prefixes,
    started_prefixes,
)
from frozenlm.memory import Memory

if TYPE_CHECKING:
    from frozenlm.lm import FrozenLM

KIND = "prefix_tuning"
MIDDLE = 512  # the network's width in the paper's table-to-text tasks


class PrefixTuning(nn.Module):
    """Trained keys and values before those of the text.

    prefixes: [L, 2, P, K, D] a place, trained themselves; copied
    networks: instead, what puts them out
    position_offset: whether the text's positions begin at P

    Raises: ConfigError, ShapeError for what cannot be a prefix.
    """

    def __init__(
        self,
        prefixes: Mapping[Place, Tensor] | None = None,
        *,
        networks: Mapping[Place, PrefixNetwork] | None = None,
        position_offset: bool = True,
    ) -> None:
        super().__init__()
        self.position_offset = position_offset
        if networks is None:
            free = checked_prefixes(prefixes or {})
            self.prefixes = nn.ParameterDict({place: nn.Parameter(prefix) for place, prefix in free.items()})
        else:
            self.networks = nn.ModuleDict({str(place): network for place, network in networks.items()})

    @classmethod
    def create(
        cls,
        host: Any,
        length: int = 20,
        *,
        init: PrefixInitializer | None = None,
        places: Sequence[Place] | None = None,
        reparametrise: bool = True,
        embedding_size: int | None = None,
        middle_size: int = MIDDLE,
        position_offset: bool = True,
        seed: int = 0,
    ) -> "PrefixTuning":
        """A new prefix for an LM or an encoder; the same seed gives the same one.

        length: P
        init: from `prefix_initializers`; the real keys and values of a short text by default
        places: "encoder", "decoder", "cross"; None for all that the model has
        embedding_size, middle_size: d' (None: the width of the model's embeddings) and m of the network

        Raises: ConfigError for a model whose attention takes no prefix, a size below 1, a place that is not there.
        """
        start = started_prefixes(host, length, init, places, seed)
        if not reparametrise:
            return cls(start, position_offset=position_offset)
        generator = torch.Generator().manual_seed(seed + 1)
        width = embedding_size if embedding_size is not None else host.model.get_input_embeddings().embedding_dim
        networks = {
            place: PrefixNetwork(prefix, embedding_size=width, middle_size=middle_size, generator=generator)
            for place, prefix in checked_prefixes(start).items()
        }
        return cls(networks=networks, position_offset=position_offset)

    @property
    def length(self) -> int:
        """P."""
        if hasattr(self, "networks"):
            return int(next(iter(self.networks.values())).shape[2])  # type: ignore[index]
        return int(next(iter(self.prefixes.values())).shape[2])

    @property
    def positions_taken(self) -> int:
        """How many of the model's positions are no longer the text's."""
        return self.length if self.position_offset else 0

    def forward(self) -> dict[Place, Tensor]:
        """[L, 2, P, K, D] a place."""
        if hasattr(self, "networks"):
            return {cast(Place, place): network() for place, network in self.networks.items()}
        return {cast(Place, place): prefix for place, prefix in self.prefixes.items()}

    def attached(self, model: nn.Module) -> AbstractContextManager[None]:
        """Inside, the model reads every text behind the prefix."""
        return prefixed(model, self(), position_offset=self.position_offset)

    @torch.no_grad()
    def collapse(self) -> "PrefixTuning":
        """The same prefix without the network: what it puts out now, trained itself from here on."""
        return PrefixTuning(self(), position_offset=self.position_offset)

    def as_memory(self, lm: "FrozenLM") -> Memory:
        """The prefix as a memory of one row, for batches whose rows have different prefixes.

        Raises: ConfigError unless the LM is decoder-only, without a sliding window and with nothing attached.
        """
        return prefix_memory(lm, self(), position_offset=self.position_offset)

    def save(self, folder: Path | str, lm: Any) -> None:
        """Writes the prefix, never the network.

        Raises: CheckpointError when it holds non-finite or huge numbers, or the folder cannot be written.
        """
        save_prefixes(folder, self(), lm, position_offset=self.position_offset, kind=KIND)

    @classmethod
    def load(cls, folder: Path | str, host: Any, *, allow_other_lm: bool = False) -> "PrefixTuning":
        """Reads what `save` wrote.

        Raises: CheckpointError when it is missing, damaged, unsafe, or was trained for another LM.
        """
        prefixes, offset = load_prefixes(folder, host, allow_other_lm=allow_other_lm, kind=KIND)
        return cls(prefixes, position_offset=offset)


def parameter_count(
    layers: Mapping[Place, Layers],
    length: int,
    *,
    reparametrise: bool = True,
    embedding_size: int = 0,
    middle_size: int = MIDDLE,
) -> int:
    """How many numbers are trained: P x 2 L K D a place, or the networks that put those out.

    layers: the places with a prefix, from `frozenlm.attention_places.places`
    """
    if not reparametrise:
        return prefix_numbers(layers, length)
    return sum(
        network_numbers(length, embedding_size, middle_size, 2 * one.count * one.heads * one.head_size)
        for one in layers.values()
    )
