"""The config blocks of the prompt methods, one a method, and of the frozen encoder that some of them read with."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, model_validator

from pipelines.config_reading import FromVocabulary, Init
from pipelines.config_values import AttnImplementation, Block, Count, Device, DType, ModelName, Name, Positive, Rate

Position = Literal["prefix", "suffix"]
Unseen = Literal["error", "mean"]


class FrozenEncoder(Block):
    """The frozen text encoder that a prompt generator reads the input with: any T5 or BERT-like model.
    `max_length` is in its tokens; a longer input keeps its beginning, and is counted."""

    model: ModelName
    revision: str | None = None
    dtype: DType = "auto"
    device: Device = "auto"
    attn_implementation: AttnImplementation = "auto"
    max_length: Positive | None = None
    architecture: dict[str, Any] | None = None


class _Prompt(Block):
    """What every prompt method has. `name` is the folder of the trained module in the workspace."""

    name: Name
    length: Positive = 20
    position: Position = "suffix"
    init: Init = FromVocabulary(kind="sampled_vocabulary")


class OnePrompt(_Prompt):
    """One soft prompt for all tasks (arXiv 2104.08691)."""

    kind: Literal["soft_prompt"]


class PromptPerTask(_Prompt):
    """One soft prompt a task. A task that was not trained on is refused, or with `unseen: mean` gets the mean of all
    prompts."""

    kind: Literal["task_prompts"]
    unseen: Unseen = "error"


class InputDependent(_Prompt):
    """ID-PT (arXiv 2204.10019, section 2). `encoder_prompt` counts the learned vectors in the encoder's input; the
    sizes are our choice."""

    kind: Literal["input_dependent"]
    encoder_prompt: Count = 20
    width: Positive = 256
    depth: Positive = 2
    heads: Positive = 4
    feed_forward: Positive | None = None
    self_attention: bool = False
    norm: Literal["layer", "rms"] = "layer"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    anchor: bool = True

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width is {self.width}; expected a multiple of the {self.heads} heads")
        return self


class IDPG(_Prompt):
    """IDPG (arXiv 2204.04497): a generator over a frozen sentence vector."""

    kind: Literal["idpg"]
    bottleneck: Positive = 16
    phm: Positive = 1


class Attempt(_Prompt):
    """ATTEMPT (arXiv 2205.11961): attention over trained soft prompts, named as `sources`. `unseen` is as for one
    prompt a task, and without `per_task` of no use."""

    kind: Literal["attempt"]
    sources: Annotated[list[Name], Field(min_length=1)]
    width: Positive = 100
    temperature: Rate | None = None
    per_task: bool = True
    unseen: Unseen = "error"


class PTuning(_Prompt):
    """P-tuning (arXiv 2103.10385): an encoder writes the soft tokens. With `position: around`, `before` of them stand
    before the input (half, if not said) and the others behind it. `anchor: false` is the authors' form, which begins
    wherever the encoder writes."""

    kind: Literal["p_tuning"]
    position: Literal["prefix", "suffix", "around"] = "suffix"  # type: ignore[assignment]
    before: Positive | None = None
    form: Literal["lama", "fewshot", "mlp"] = "lama"
    anchor: bool = True

    @property
    def slots(self) -> tuple[int, int]:
        """Soft tokens before the input and behind it."""
        own = self.length // 2 if self.before is None else self.before
        before = {"prefix": self.length, "suffix": 0, "around": own}[self.position]
        return before, self.length - before

    @model_validator(mode="after")
    def _stands_somewhere(self) -> Self:
        if self.before is not None and self.position != "around":
            raise ValueError(f"before is for position around, this one is {self.position}; leave it out")
        if self.position == "around" and not all(n > 0 for n in self.slots):
            raise ValueError(f"before is {self.slots[0]} of length {self.length}; expected some on either side")
        if not self.anchor and self.init != FromVocabulary(kind="sampled_vocabulary"):
            raise ValueError("init is of no use without an anchor; leave one of the two out")
        return self


class LowRank(_Prompt):
    """LoPT (arXiv 2406.19486): a prompt of low rank, as two `factors` or as a `projection` of its start."""

    kind: Literal["low_rank"]
    rank: Positive = 4
    form: Literal["factors", "projection"] = "factors"

    @model_validator(mode="after")
    def _of_that_rank(self) -> Self:
        if self.rank > self.length:
            raise ValueError(f"rank is {self.rank}; a prompt of length {self.length} has at most that rank")
        return self


class _OverPrompts(_Prompt):
    """A method over trained prompts, which say where it begins."""

    @model_validator(mode="after")
    def _begins_elsewhere(self) -> Self:
        if self.init != FromVocabulary(kind="sampled_vocabulary"):
            raise ValueError(f"init is of no use for {self.name!r}, which begins at trained prompts; leave it out")
        return self


class AutoEncoder(_OverPrompts):
    """The first stage of intrinsic prompt tuning (arXiv 2110.07867): an auto-encoder of the module `prompts`, trained
    before as one prompt a task. `weight` is that of the mean squared error."""

    kind: Literal["prompt_autoencoder"]
    prompts: Name
    dimension: Positive = 250
    hidden: Positive | None = None
    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 200.0


class Intrinsic(_OverPrompts):
    """The second stage of intrinsic prompt tuning (arXiv 2110.07867): `dimension` numbers are trained, of which the
    decoder of the trained `autoencoder` makes the prompt. `start: random` is the paper's."""

    kind: Literal["intrinsic"]
    autoencoder: Name
    dimension: Positive = 250
    start: Literal["centre", "random"] = "centre"


Prompt = Annotated[
    OnePrompt | PromptPerTask | InputDependent | IDPG | Attempt | PTuning | LowRank | AutoEncoder | Intrinsic,
    Discriminator("kind"),
]
