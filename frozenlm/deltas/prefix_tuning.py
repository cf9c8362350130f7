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
from typing import Any, cast

import torch
from torch import Tensor, nn

from frozenlm.attention import Place
from frozenlm.attention_places import Layers
from frozenlm.deltas.attention_prefix import AttentionPrefix
from frozenlm.deltas.prefix_initializers import PrefixInitializer
from frozenlm.deltas.prefix_network import PrefixNetwork, network_numbers
from frozenlm.deltas.prefix_parameters import checked_prefixes, prefix_numbers, started_prefixes

KIND = "prefix_tuning"
MIDDLE = 512  # the network's width in the paper's table-to-text tasks


class PrefixTuning(AttentionPrefix):
    """Trained keys and values before those of the text.

    prefixes: [L, 2, P, K, D] a place, trained themselves; copied
    networks: instead, what puts them out
    position_offset: whether the text's positions begin at P

    Raises: ConfigError, ShapeError for what cannot be a prefix.
    """

    KIND = KIND

    def __init__(
        self,
        prefixes: Mapping[Place, Tensor] | None = None,
        *,
        networks: Mapping[Place, PrefixNetwork] | None = None,
        position_offset: bool = True,
    ) -> None:
        if networks is None:
            super().__init__(prefixes or {}, position_offset=position_offset)
            return
        nn.Module.__init__(self)
        self.position_offset = position_offset
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
        """P; no network is run for it."""
        parts = self.networks if hasattr(self, "networks") else self.prefixes
        return int(next(iter(parts.values())).shape[2])

    def forward(self) -> dict[Place, Tensor]:
        """[L, 2, P, K, D] a place."""
        if hasattr(self, "networks"):
            return {cast(Place, place): network() for place, network in self.networks.items()}
        return super().forward()

    @torch.no_grad()
    def collapse(self) -> "PrefixTuning":
        """The same prefix without the network: what it puts out now, trained itself from here on."""
        return PrefixTuning(self(), position_offset=self.position_offset)


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
