"""The config blocks of tasks: their records and wording, inputs as tokens, training and measuring on them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from pipelines.config_training import Loop
from pipelines.config_values import (
    Block,
    Count,
    LocalPath,
    ModelName,
    Name,
    Positive,
)
from pipelines.errors import ConfigError
from pipelines.tasks.records import RecordSource
from pipelines.tasks.spec import TaskSpec


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
