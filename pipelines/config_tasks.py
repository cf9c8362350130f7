"""The config blocks of a mixture of tasks: the tasks, the frozen encoder, the prompt methods, their training."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, model_validator

from pipelines.config_reading import FromVocabulary, Init, Loop
from pipelines.config_values import (
    AttnImplementation,
    Block,
    Count,
    Device,
    DType,
    LocalPath,
    ModelName,
    Name,
    Positive,
    Rate,
)
from pipelines.errors import ConfigError
from pipelines.tasks.records import RecordSource
from pipelines.tasks.spec import TaskSpec

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


def _path_alone(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


class Records(Block):
    """Where the records of a split come from: a file (`path`: jsonl, CSV, TSV), or a Hugging Face `dataset` (a folder
    or an id on the hub). A path alone may be written without the braces. Of these the first `skip` are passed over and
    at most `limit` taken; `sample` draws that many of them, always the same ones."""

    path: LocalPath | None = None
    dataset: ModelName | None = None
    format: Literal["auto", "jsonl", "csv", "tsv", "tsv_unquoted"] = "auto"
    split: str = "train"
    subset: str | None = None
    revision: str | None = None
    skip: Count = 0
    limit: Positive | None = None
    sample: Positive | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("records come from either a path or a dataset")
        return self


RecordsOrPath = Annotated[Records, BeforeValidator(_path_alone)]


class PromptSource(Block):
    """A template of a promptsource `templates.yaml`, by its name or id; `all` makes a task of every template that asks
    for what the data set was made for, and shares the task's weight among them."""

    file: LocalPath
    template: Annotated[str, Field(min_length=1)]


Prompt = Annotated[
    OnePrompt | PromptPerTask | InputDependent | IDPG | Attempt | PTuning | LowRank | AutoEncoder | Intrinsic,
    Discriminator("kind"),
]


class TaskBlock(Block):
    """One task: records, how an input is worded, what may be answered. The wording is a `template` with a `verbalizer`
    (label -> what the LM is to say: classification), a `target` template or a `references` field (free text), or a
    `promptsource` template, which brings its own. `fields` maps names in the template to names in the records. `metric:
    auto` is accuracy where there are choices, else rouge. A task with `seen: false` is evaluated, never trained on."""

    name: Name
    train: RecordsOrPath | None = None
    dev: RecordsOrPath | None = None
    test: RecordsOrPath | None = None
    template: Annotated[str, Field(min_length=1)] | None = None
    promptsource: PromptSource | None = None
    fields: dict[str, str] = {}
    label: str = "label"
    labels: list[str] = []
    verbalizer: dict[str, str] | None = None
    target: str | None = None
    references: str | None = None
    metric: Literal["accuracy", "rouge", "bleu", "em_f1", "auto"] = "accuracy"
    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    seen: bool = True

    @model_validator(mode="after")
    def _can_be_meant(self) -> Self:
        try:
            task_spec(self)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return self


def task_spec(block: TaskBlock) -> TaskSpec:
    """The task that a block describes; nothing is read.

    Raises:
        ConfigError: parts that are missing, in conflict or of no use.
    """
    sources: dict[str, RecordSource] = {}
    for split in ("train", "dev", "test"):
        records: Records | None = getattr(block, split)
        if records is not None:
            sources[split] = RecordSource(
                path=records.path or str(records.dataset),
                format=records.format if records.path is not None else "hf",
                **records.model_dump(include={"split", "subset", "revision", "skip", "limit", "sample"}),
            )
    free_text = block.target is not None or (block.promptsource is None and block.references is not None)
    auto: Literal["rouge", "accuracy"] = "rouge" if free_text else "accuracy"
    return TaskSpec(
        name=block.name,
        records=sources,
        metric=auto if block.metric == "auto" else block.metric,
        promptsource=block.promptsource.file if block.promptsource is not None else None,
        promptsource_template=block.promptsource.template if block.promptsource is not None else None,
        labels=tuple(block.labels),
        **block.model_dump(include={"template", "verbalizer", "target", "references", "label", "fields"}),
    )


class Mixture(Block):
    """How often a task is drawn: in proportion to min(its rows, `cap`) to the power 1 / `temperature`, times its weight
    (T5, arXiv 1910.10683, section 3.5.2)."""

    cap: Positive | None = None
    temperature: Rate = 1.0


class TaskInput(Block):
    """How an input becomes tokens of the LM. One longer than `max_tokens` keeps its beginning and its last `keep_end`
    tokens, where the question stands (our choice); such inputs are counted."""

    max_tokens: Positive = 256
    keep_end: Count = 48
    answer: str = " {answer}"
    answer_tokens: Positive = 96


class TaskTraining(Loop):
    """Training on the mixture. `dev_limit` rows of each task's dev split choose the best step by the mean score.
    `loss_unit: example` gives a long answer the weight of a label (our choice)."""

    batch_size: Positive = 32
    dev_limit: Positive = 50
    loss_unit: Literal["token", "example"] = "example"


class TaskEvaluation(Block):
    """What `frozenlm evaluate` measures: `limit` rows of each task's `split`. `normalize: tokens` divides a candidate's
    log-probability by its length."""

    split: Literal["train", "dev", "test"] = "test"
    limit: Positive | None = None
    normalize: Literal["none", "tokens"] = "none"
    chunk: Positive = 256


class Route(Block):
    """Inputs that begin with these words are answered with this module; `module: null` leaves the LM as it is. `task`
    is for prompts that go by the task."""

    starts_with: Annotated[str, Field(min_length=1)]
    module: Name | None
    task: Name | None = None


def check_multitask(
    prompts: list[Any], encoder: FrozenEncoder | None, routes: list[Route], tasks: list[TaskBlock]
) -> None:
    """What no block can check alone.

    Raises:
        ValueError: a prompt without its encoder, two things of one name, weights that are all 0, or a route to nowhere.
    """
    for prompt in prompts:
        if isinstance(prompt, InputDependent | IDPG) and encoder is None:
            raise ValueError(f"prompt {prompt.name!r} of kind {prompt.kind} needs an encoder block")
    for what, names in (("prompts", [p.name for p in prompts]), ("tasks", [t.name for t in tasks])):
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two {what} are called {twice[0]!r}; give each a name of its own")
    seen = [task for task in tasks if task.seen]
    if seen and not any(task.weight for task in seen):
        raise ValueError("no task of the mixture has a weight above 0; give at least one")
    known = {prompt.name for prompt in prompts}
    if lost := [route.module for route in routes if route.module is not None and route.module not in known]:
        raise ValueError(f"a route leads to the module {lost[0]!r}; the prompts here are {sorted(known)}")
