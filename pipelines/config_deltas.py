"""The config blocks of delta tuning: one block a method, which is all that the files in configs/delta/ differ in.

Which weights a delta covers is `targets`: all dense layers within the blocks, those of attention or of the feed-forward
layers, or endings of names such as [q_proj, v_proj]; where a delta may cover more, `blocks` is everything within the
blocks and `model` every parameter.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Discriminator, Field, field_validator

from pipelines.config_values import Block, Name, Positive, Rate

Endings = Annotated[list[str], Field(min_length=1)]
Dense = Literal["all", "attention", "feed_forward"] | Endings
Weights = Literal["model", "blocks", "all", "attention", "feed_forward"] | Endings
AboveZero = Annotated[float, Field(gt=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]


class DeltaBlock(Block):
    """What every delta has. `name` is the folder of the trained module in the workspace."""

    name: Name

    def sizes(self) -> dict[str, Any]:
        """What the method's `create` takes, by name."""
        return self.model_dump(exclude={"kind", "name"})

    def rates(self, learning_rate: float) -> dict[str, float]:
        """Parameters that learn at a rate of their own, as multiples of the run's."""
        return {}


class LoRA(DeltaBlock):
    """LoRA (arXiv 2106.09685), rsLoRA (2312.03732) or DoRA (2402.09353), by `peft`. Without `targets` queries and
    values."""

    kind: Literal["lora", "rslora", "dora"]
    rank: Positive = 8
    alpha: Rate = 16
    dropout: BelowOne = 0.0
    targets: Dense | None = None

    def sizes(self) -> dict[str, Any]:
        """By peft's names."""
        named = {"r": self.rank, "lora_alpha": self.alpha, "lora_dropout": self.dropout}
        return {"method": self.kind, "targets": self.targets, **named}


class KroneckerOrHadamard(DeltaBlock):
    """LoHa (arXiv 2108.06098) or LoKr (2309.14859), by `peft`."""

    kind: Literal["loha", "lokr"]
    rank: Positive = 8
    alpha: Rate = 8
    targets: Dense | None = None

    def sizes(self) -> dict[str, Any]:
        """By peft's names."""
        return {"method": self.kind, "targets": self.targets, "r": self.rank, "alpha": self.alpha}


class VeRA(DeltaBlock):
    """VeRA (arXiv 2310.11454), by `peft`."""

    kind: Literal["vera"]
    rank: Positive = 256
    targets: Dense | None = None

    def sizes(self) -> dict[str, Any]:
        """By peft's names."""
        return {"method": self.kind, "targets": self.targets, "r": self.rank}


class IA3(DeltaBlock):
    """(IA)3 (arXiv 2205.05638), by `peft`."""

    kind: Literal["ia3"]

    def sizes(self) -> dict[str, Any]:
        """By peft's names."""
        return {"method": self.kind}


class Adapter(DeltaBlock):
    """Adapters: `houlsby` (arXiv 1902.00751), `pfeiffer` (2005.00247) or `parallel` (2110.04366) of `width` units."""

    kind: Literal["adapter"]
    form: Literal["houlsby", "pfeiffer", "parallel"] = "pfeiffer"
    width: Positive = 16
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    scale: Rate | None = None
    cross: bool = False


class BitFit(DeltaBlock):
    """BitFit (arXiv 2106.10199): offsets of biases. `extra` gives dense layers without a bias one."""

    kind: Literal["bitfit"]
    which: Literal["all", "query_and_intermediate"] | Endings = "all"
    norms: bool = True
    extra: bool = False


class RandomNumbers(Block):
    """A prefix that begins at numbers drawn from N(0, `scale`^2)."""

    kind: Literal["random"]
    scale: Rate = 0.02


class Zeros(Block):
    """A prefix that begins at keys and values of 0, which is not the same as no prefix."""

    kind: Literal["zeros"]


class AttentionPrefix(DeltaBlock):
    """What prefix tuning and P-tuning v2 have: `length` keys and values in front of every layer's own, at `places` (all
    that the model has: of an encoder-decoder its encoder, its decoder and the cross-attention between them), which
    begin at those of `init`, a text, or at numbers that are random or zeros."""

    length: Positive = 20
    position_offset: bool = True
    init: Annotated[str, Field(min_length=1)] | Annotated[RandomNumbers | Zeros, Discriminator("kind")] | None = None
    # Left out where nothing is chosen, as in what runs and comparisons remember of configs without it.
    places: Annotated[list[Literal["encoder", "decoder", "cross"]], Field(min_length=1)] | None = Field(
        None, exclude_if=lambda places: places is None
    )

    @field_validator("places")
    @classmethod
    def _each_once(cls, places: list[str] | None) -> list[str] | None:
        if places is not None and len(set(places)) < len(places):
            raise ValueError(f"places are {', '.join(places)}; name each once")
        return places

    def sizes(self) -> dict[str, Any]:
        """With `init` as an initialiser."""
        return super().sizes() | {"init": _initializer(self.init)}


class PrefixTuning(AttentionPrefix):
    """Prefix tuning (arXiv 2101.00190): keys and values that come out of a network while they are trained, or with
    `reparametrise: false` are trained themselves."""

    kind: Literal["prefix_tuning"]
    reparametrise: bool = True
    embedding_size: Positive | None = None
    middle_size: Positive = 512


class PTuningV2(AttentionPrefix):
    """P-tuning v2 (arXiv 2110.07602): prefix tuning without a network around it."""

    kind: Literal["p_tuning_v2"]


class DiffPruning(DeltaBlock):
    """DiffPruning (arXiv 2012.07463): a difference whose gates learn to close; then only the largest `share` of it
    stays and is trained for `retrain` times the steps again."""

    kind: Literal["diff_pruning"]
    share: AboveZero = 0.005
    structured: Literal["tensor", "layer"] | None = "tensor"
    penalty: Rate = 1.25e-7
    gate_learning_rate: Rate = 0.1
    retrain: AboveZero = 0.5
    targets: Weights = "model"

    def sizes(self) -> dict[str, Any]:
        """Without what only training needs."""
        return self.model_dump(exclude={"kind", "name", "gate_learning_rate", "retrain"})

    def rates(self, learning_rate: float) -> dict[str, float]:
        """Gates have a rate of their own."""
        gates = ["alpha", *(["group_alpha"] if self.structured is not None else [])]
        return dict.fromkeys(gates, self.gate_learning_rate / learning_rate)


class Masking(DeltaBlock):
    """Masking (arXiv 2004.12406): which weights are left out, one bit each; `masked` is their share at the start."""

    kind: Literal["masking"]
    targets: Dense = "all"
    masked: BelowOne = 0.05
    threshold: float = 0.01


class LowerStates(Block):
    """What the frozen blocks below make of a row is the same in every step. `memory` computes it once a row, each row
    by itself, and keeps it as it is; rows beyond `byte_budget` are computed anew, and counted. Results differ in the
    last bits from those of `off`; the budget changes nothing. Not for encoder-decoders and T5's encoder."""

    kind: Literal["off", "memory"] = "off"
    byte_budget: Positive = 2_000_000_000

    @property
    def kept(self) -> bool:
        """Whether anything is."""
        return self.kind != "off"


class PartialLayers(DeltaBlock):
    """The last `blocks` blocks, as offsets from the frozen ones. `lower_states` is for training alone."""

    kind: Literal["partial_layers"]
    blocks: Positive = 1
    final_norm: bool = False
    # Left out where nothing is kept, as in what runs and comparisons remember of configs without it.
    lower_states: LowerStates = Field(LowerStates(), exclude_if=lambda block: not block.kept)

    def sizes(self) -> dict[str, Any]:
        """Without what only training needs."""
        return self.model_dump(exclude={"kind", "name", "lower_states"})


class RandomSubset(DeltaBlock):
    """A random `share` of the weights."""

    kind: Literal["random_subset"]
    share: AboveZero = 0.005
    targets: Weights = "all"


class IntrinsicDimension(DeltaBlock):
    """Intrinsic dimension (arXiv 1804.08838; with `scales` SAID, 2012.13255): all weights move within a random subspace
    of `dimension` numbers."""

    kind: Literal["intrinsic_dimension"]
    dimension: Positive = 1000
    scales: Literal["tensor", "layer"] | None = "layer"
    projection: Literal["fastfood", "dense"] = "fastfood"
    targets: Weights = "model"


class FullCopy(DeltaBlock):
    """Full fine-tuning of a copy: the yardstick of a comparison."""

    kind: Literal["full_copy"]


def _initializer(init: str | RandomNumbers | Zeros | None) -> Any:
    if init is None:
        return None
    from frozenlm.deltas.prefix_initializers import from_real_text, random_numbers, zeros

    if isinstance(init, str):
        return from_real_text(init)
    return zeros() if isinstance(init, Zeros) else random_numbers(init.scale)


Delta = Annotated[
    LoRA
    | KroneckerOrHadamard
    | VeRA
    | IA3
    | Adapter
    | BitFit
    | PrefixTuning
    | PTuningV2
    | DiffPruning
    | Masking
    | PartialLayers
    | RandomSubset
    | IntrinsicDimension
    | FullCopy,
    Discriminator("kind"),
]
DELTA_KINDS: tuple[str, ...] = tuple(
    kind for block in get_args(get_args(Delta)[0]) for kind in get_args(block.model_fields["kind"].annotation)
)
