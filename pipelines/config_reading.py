"""The config blocks from passages to an answer: LM, prompt, packing, generation; and the kinds of config whose LM reads
once."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    Discriminator,
    Field,
    model_validator,
)

from pipelines.config_job import Job
from pipelines.config_retrieval import Reranker, Retrieval
from pipelines.config_training import Evaluation, PromptTraining
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


class LM(Block):
    """The frozen language model: a local folder or an id on a hub. `window` lowers the model's own limit, in tokens.
    `architecture` holds fields of its config.json, `model_type` among them: `frozenlm cost` and `frozenlm train
    --dry-run` use them where the model is not at hand, and nothing else does."""

    model: ModelName
    revision: str | None = None
    dtype: DType = "auto"
    device: Device = "auto"
    attn_implementation: AttnImplementation = "auto"
    window: Positive | None = None
    architecture: dict[str, Any] | None = None


class FromText(Block):
    kind: Literal["text"]
    text: Annotated[str, Field(min_length=1)]


class FromVocabulary(Block):
    kind: Literal["sampled_vocabulary"]
    top: Positive = 5000


class FromUniform(Block):
    kind: Literal["uniform"]
    scale: Rate = 0.5


class FromLabels(Block):
    kind: Literal["class_labels"]
    labels: Annotated[list[str], Field(min_length=1)]


class FromModule(Block):
    """A trained prompt as the start of another (SPoT, arXiv 2110.07904): a `folder`, or in a config of kind multitask
    the `name` of a module in the workspace. Of one prompt a task, `task` says whose."""

    kind: Literal["module"]
    name: Name | None = None
    folder: LocalPath | None = None
    task: str | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.name is None) == (self.folder is None):
            raise ValueError("a prompt to start from is either a name or a folder")
        return self


Init = Annotated[FromText | FromVocabulary | FromUniform | FromLabels | FromModule, Discriminator("kind")]


class SoftPrompt(Block):
    """The learned prompt. `missing` says what a pipeline does before it has been trained: refuse, or read
    zero-shot and say so."""

    kind: Literal["soft_prompt"] = "soft_prompt"
    name: Name = "reader_prompt"
    length: Positive = 20
    position: Literal["prefix", "suffix"] = "suffix"
    init: Init = FromVocabulary(kind="sampled_vocabulary")
    missing: Literal["error", "zero_shot"] = "error"


class Packing(Block):
    """How passages fill the window. Counts are tokens of the LM's tokenizer; `max_tokens` covers everything, answer and
    soft tokens too."""

    passage: str = "title : {title} text : {text} "
    question: str = "question : {question} answer :"
    answer: str = " {answer}"
    opening: str = ""
    max_tokens: Positive | None = None
    answer_reserve: Positive = 32
    overflow: Literal["drop", "truncate_last", "error"] = "drop"
    order: Literal["best_first", "best_last", "best_ends"] = "best_last"
    deduplicate: bool = True
    per_title_cap: Positive | None = None
    max_passages: Count | None = None

    @model_validator(mode="after")
    def _slots(self) -> Self:
        if "{text}" not in self.passage:
            raise ValueError(f"packing.passage needs the slot {{text}}, got {self.passage!r}")
        if "{question}" not in self.question:
            raise ValueError(f"packing.question needs the slot {{question}}, got {self.question!r}")
        if "{answer}" not in self.answer:
            raise ValueError(f"packing.answer needs the slot {{answer}}, got {self.answer!r}")
        return self


class Generation(Block):
    """How the answer is decoded. `batch_tokens` bounds rows x longest row of one call."""

    max_new_tokens: Positive = 24
    num_beams: Positive = 1
    do_sample: bool = False
    temperature: Rate = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Count = 0
    length_penalty: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    stop: list[str] = ["\n"]
    batch_tokens: Positive = 8192


class Surface(Block):
    """What is made of the decoded text. `join_digits` closes the gaps that WordPiece leaves in numbers; `as_in_passage`
    gives an answer that stands in the context its spelling there."""

    join_digits: bool = True
    as_in_passage: bool = True


class FrozenReader(Retrieval):
    """`kind: frozen_reader`: retrieve, re-rank, pack, answer."""

    kind: Literal["frozen_reader"]  # type: ignore[assignment]
    reranker: Reranker | None = None
    rerank_depth: Positive = 100
    rerank_k: Positive | None = None
    lm: LM
    prompt: SoftPrompt | None = None
    packing: Packing = Packing()
    generation: Generation = Generation()
    surface: Surface = Surface()
    training: PromptTraining | None = None


class ClosedBook(Job):
    """`kind: closed_book`: the frozen LM answers from what it knows."""

    kind: Literal["closed_book"]
    lm: LM
    prompt: SoftPrompt | None = None
    packing: Packing = Packing()
    generation: Generation = Generation()
    surface: Surface = Surface()
    training: PromptTraining | None = None
    evaluation: Evaluation = Evaluation()
