"""The config blocks of delta tuning: one block a method, which is all that the files in configs/delta/ differ in.

Which layers a delta changes is `targets`: all dense layers within the LM's blocks, those of attention or of the
feed-forward layers, or endings of names such as [q_proj, v_proj].
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field

from pipelines.config_values import Block, Name, Positive, Rate

Targets = Literal["all", "attention", "feed_forward"] | Annotated[list[str], Field(min_length=1)]
AboveZero = Annotated[float, Field(gt=0, le=1)]
Dropout = Annotated[float, Field(ge=0, lt=1)]


class DeltaBlock(Block):
    """What every delta has. `name` is the folder of the trained module in the workspace."""

    name: Name

    def sizes(self) -> dict[str, Any]:
        """What the method's `create` takes, by name."""
        return self.model_dump(exclude={"kind", "name"})


class LoRA(DeltaBlock):
    """LoRA (arXiv 2106.09685) and its relatives, by `peft`."""

    kind: Literal["lora"]
    rank: Positive = 8
    alpha: Rate = 16
    dropout: Dropout = 0.0
    targets: Targets = "attention"
    variant: Literal["lora", "rslora", "dora"] = "lora"


class IA3(DeltaBlock):
    """(IA)3 (arXiv 2205.05638), by `peft`."""

    kind: Literal["ia3"]


class Adapter(DeltaBlock):
    """Adapters: `houlsby` (arXiv 1902.00751), `pfeiffer` (2005.00247) or `parallel` (2110.04366)."""

    kind: Literal["adapter"]
    form: Literal["houlsby", "pfeiffer", "parallel"] = "houlsby"
    bottleneck: Positive = 32


class BitFit(DeltaBlock):
    """BitFit (arXiv 2106.10199): offsets of biases. `extra` gives a model without biases some."""

    kind: Literal["bitfit"]
    extra: bool = False


class PrefixTuning(DeltaBlock):
    """Prefix tuning (arXiv 2101.00190): keys and values in front of every layer's own."""

    kind: Literal["prefix_tuning"]
    length: Positive = 10


class DiffPruning(DeltaBlock):
    """DiffPruning (arXiv 2012.07463): a sparse difference, found by gates and then pruned to `share`."""

    kind: Literal["diff_pruning"]
    share: AboveZero = 0.005


class Masking(DeltaBlock):
    """Masking (arXiv 2004.12406): weights left out, one bit each."""

    kind: Literal["masking"]
    targets: Targets = "all"


class PartialLayers(DeltaBlock):
    """The last `blocks` blocks, as differences from the frozen ones."""

    kind: Literal["partial_layers"]
    blocks: Positive = 1


class RandomSubset(DeltaBlock):
    """A random share of the weights."""

    kind: Literal["random_subset"]
    share: AboveZero = 0.005


class IntrinsicDimension(DeltaBlock):
    """Intrinsic dimension (arXiv 2012.13255): all weights move within a random subspace of `dimension` numbers."""

    kind: Literal["intrinsic_dimension"]
    dimension: Positive = 1000


class FullCopy(DeltaBlock):
    """Full fine-tuning of a copy: the yardstick of a comparison."""

    kind: Literal["full_copy"]


Delta = Annotated[
    LoRA
    | IA3
    | Adapter
    | BitFit
    | PrefixTuning
    | DiffPruning
    | Masking
    | PartialLayers
    | RandomSubset
    | IntrinsicDimension
    | FullCopy,
    Discriminator("kind"),
]
