"""The sizes of an ID-PT module (`input_dependent.py`), how many numbers they train, and the paper's.

Of its module the paper (arXiv 2204.10019, section 2) is known to say 330K trained numbers in the encoder prompt; about
25M in all comes from a secondary source. How they are spent is our choice. Shapes: P soft tokens, H hidden size of the
LM, E of the encoder, Pe soft tokens of the encoder, W width of the network.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, get_args

from frozenlm.errors import ConfigError
from frozenlm.prompts.resampler import Norm

PAPER: Mapping[str, Any] = MappingProxyType(
    {"length": 100, "encoder_prompt": 430, "width": 768, "depth": 3, "heads": 12, "feed_forward": 3072}
)
"""Sizes for `create(lm, encoder, **PAPER)` with T5-base and an LM of hidden size 4096: 25.2M trained parameters."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """All that decides the shapes of what is trained.

    hidden_size: H of the LM
    encoder_size: E of the encoder
    length: P, soft tokens that the LM reads
    encoder_prompt: Pe, learned vectors in front of what the encoder reads; may be 0
    width: W of the network, a multiple of heads
    depth: blocks
    heads: of every attention
    feed_forward: width inside a block's feed-forward part; None is four times W
    self_attention: whether the queries look at each other
    norm: "layer" or "rms"
    dropout: share of every residual branch, while training
    anchor: whether there is a part of the prompt that does not depend on the input

    Raises: ConfigError for a size out of range.
    """

    hidden_size: int
    encoder_size: int
    length: int = 20
    encoder_prompt: int = 20
    width: int = 256
    depth: int = 2
    heads: int = 4
    feed_forward: int | None = None
    self_attention: bool = False
    norm: Norm = "layer"
    dropout: float = 0.0
    anchor: bool = True

    def __post_init__(self) -> None:
        for name in ("hidden_size", "encoder_size", "length", "width", "depth", "heads"):
            _check_whole(name, getattr(self, name), least=1)
        _check_whole("feed_forward", self.inner, least=1)
        _check_whole("encoder_prompt", self.encoder_prompt, least=0)
        if self.width % self.heads:
            raise ConfigError(f"width is {self.width}; expected a multiple of the {self.heads} heads")
        if self.norm not in get_args(Norm):
            raise ConfigError(f"norm is {self.norm!r}; expected one of {get_args(Norm)}")
        if isinstance(self.dropout, bool) or not isinstance(self.dropout, int | float) or not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout!r}; expected a number from 0 up to, not including, 1")
        for name in ("self_attention", "anchor"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} is {getattr(self, name)!r}; expected true or false")

    @property
    def inner(self) -> int:
        """Width inside a block's feed-forward part."""
        return 4 * self.width if self.feed_forward is None else self.feed_forward

    @property
    def parameters(self) -> int:
        """Trained numbers."""
        norm = 2 if self.norm == "layer" else 1  # numbers for each of what it normalises
        block = 2 * self.width * (self.width + self.encoder_size + self.inner + norm)
        if self.self_attention:
            block += self.width * (4 * self.width + norm)
        network = self.length * self.width + norm * (self.encoder_size + self.width) + self.depth * block
        written = self.hidden_size * (self.width + (self.length if self.anchor else 0))
        return self.encoder_prompt * self.encoder_size + network + written


def _check_whole(name: str, value: object, *, least: int) -> None:
    if type(value) is not int or value < least:
        raise ConfigError(f"{name} is {value!r}; expected a whole number of at least {least}")
