"""Where an attention prefix begins: one function a way, each named like a sentence.

Prefix tuning (arXiv 2101.00190, section 7.4) found that a prefix begun from the activations of real words is by far the
best with little data, random numbers the worst. A prefix of zeros is not the same as no prefix: it takes its share of
every softmax.

Our choices, where the paper is silent:
- A text shorter than the prefix is repeated, a longer one is cut. An encoder reads it with the tokens around a text.
- An encoder-decoder's encoder and cross prefixes come from reading the text, its decoder's from writing it.

Each function returns a `PrefixInitializer`, which is called once, when the prefix is made.
Shapes: P prefix, L attention layers of a place, K key-value heads, D head size.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from frozenlm.attention import Place
from frozenlm.attention_places import keys_values, places
from frozenlm.errors import ConfigError

PrefixInitializer = Callable[[Any, int, torch.Generator], Mapping[Place, Tensor]]
"""(a FrozenLM or FrozenEncoder, P, source of randomness) -> [L, 2, P, K, D] float32 on the CPU, by place."""

TEXT = "Read the text and give the answer:"


def from_real_text(text: str = TEXT) -> PrefixInitializer:
    """What the model's own attention would hold of a text.

    Raises (when called): ConfigError when the text has no token, or the prefix is longer than the model can read.
    """

    def read(host: Any, length: int, generator: torch.Generator) -> Mapping[Place, Tensor]:
        ids = host.encode(text) if hasattr(host, "encode") else host.tokens([text])[0]
        if not ids or not text:
            raise ConfigError(f"from_real_text: {text!r} has no token; give at least one word")
        limit = getattr(host, "positions", None) or getattr(host, "window", None)
        if limit is not None and length > limit:
            raise ConfigError(
                f"a prefix of {length} is to begin as a text of so many tokens, and the model has {limit} positions; "
                "shorten it"
            )
        ids = (list(ids) * (length // len(ids) + 1))[:length]
        started = [*getattr(host, "start_ids", ()), *ids][:length]
        return {place: kv.float().cpu() for place, kv in keys_values(host.model, ids, started).items()}

    return read


def random_numbers(scale: float = 0.02) -> PrefixInitializer:
    """Every number drawn from N(0, scale^2); 0.02 is what GPT-2's own weights were begun with.

    Raises: ConfigError for a scale that is not above 0.
    """
    if not scale > 0:
        raise ConfigError(f"random_numbers: scale is {scale!r}; expected a number above 0")

    def draw(host: Any, length: int, generator: torch.Generator) -> Mapping[Place, Tensor]:
        sizes = places(host.model)
        return {at: torch.randn(layers.shape(length), generator=generator) * scale for at, layers in sizes.items()}

    return draw


def zeros() -> PrefixInitializer:
    """Keys and values of 0, which every query sees alike; not the same as no prefix."""

    def make(host: Any, length: int, generator: torch.Generator) -> Mapping[Place, Tensor]:
        return {at: torch.zeros(layers.shape(length)) for at, layers in places(host.model).items()}

    return make
