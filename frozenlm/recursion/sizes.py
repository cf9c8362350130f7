"""What a connector (`connector.py`) is made of and what it can stand on, checked before anything is built."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

from frozenlm.errors import ConfigError

if TYPE_CHECKING:
    from frozenlm.lm import FrozenLM

HEAD_WIDTH = 64

NormKind = Literal["rms", "layer"]
GateKind = Literal["channel", "scalar"]


@dataclass(frozen=True, kw_only=True)
class ConnectorSizes:
    """What a connector is made of.

    passes: how often the LM runs, at least 2
    shared: one connector after every pass, or one for each; the same thing with two passes
    depth: Transformer blocks
    width: W; None for H', the LM's own
    heads: of the attention; None for W / 64
    feed_forward: F; None for 4 W
    dropout: on the output of each attention and feed-forward part, while training
    norm: "rms" or "layer"
    gate: one number a channel, or one scalar

    Raises: ConfigError for a value out of range.
    """

    passes: int = 2
    shared: bool = True
    depth: int = 1
    width: int | None = None
    heads: int | None = None
    feed_forward: int | None = None
    dropout: float = 0.0
    norm: NormKind = "rms"
    gate: GateKind = "channel"

    def __post_init__(self) -> None:
        _require(self.passes >= 2, "passes", self.passes, "at least 2, since one pass is the LM without a connector")
        for name in ("depth", "width", "heads", "feed_forward"):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, value, "at least 1")
        _require(0 <= self.dropout < 1, "dropout", self.dropout, "a number in [0, 1)")
        _require(self.norm in get_args(NormKind), "norm", self.norm, f"one of {get_args(NormKind)}")
        _require(self.gate in get_args(GateKind), "gate", self.gate, f"one of {get_args(GateKind)}")

    def filled(self, state_size: int) -> "ConnectorSizes":
        """The same with every default worked out for an LM with states of that width.

        Raises: ConfigError for a width that the heads do not divide.
        """
        width = self.width or state_size
        heads = self.heads or max(1, width // HEAD_WIDTH)
        _require(width % heads == 0, "heads", heads, f"a divisor of the width {width}")
        return replace(self, width=width, heads=heads, feed_forward=self.feed_forward or 4 * width)


def require_decoder(lm: "FrozenLM") -> None:
    """Refuses an LM that neural recursion cannot run.

    Raises: ConfigError.
    """
    if lm.kind != "decoder":
        raise ConfigError(
            f"neural recursion needs a decoder-only LM, in which output i of one pass can be input i of the next; this "
            f"one ({type(lm.model).__name__}) is an {lm.kind}; use a decoder-only LM, or textual recursion"
        )


def _require(ok: bool, name: str, got: object, expected: str) -> None:
    if not ok:
        raise ConfigError(f"connector {name} is {got!r}; expected {expected}")
