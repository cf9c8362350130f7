"""What a config file may say. One pydantic model a block, unknown keys refused; `loader.py` reads, `build.py` builds.

Paths in a YAML file are relative to that file; `workspace`, below which everything that is built goes, is relative to
the current directory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Discriminator,
    Field,
    PrivateAttr,
    TypeAdapter,
    model_validator,
)

from pipelines.config_reading import (
    LM,
    Evaluation,
    FromLabels,
    FromText,
    FromUniform,
    FromVocabulary,
    Generation,
    Init,
    Loop,
    Packing,
    PromptTraining,
    RerankerTraining,
    SoftPrompt,
    Surface,
    Training,
)
from pipelines.config_retrieval import (
    BM25,
    Corpus,
    CrossEncoder,
    Custom,
    Dense,
    Encoder,
    Hybrid,
    LMLikelihood,
    Precomputed,
    Reranker,
    Retriever,
    needs_corpus,
)
from pipelines.config_tasks import (
    IDPG,
    Attempt,
    FrozenEncoder,
    InputDependent,
    Mixture,
    OnePrompt,
    Prompt,
    PromptPerTask,
    Records,
    Route,
    TaskBlock,
    TaskEvaluation,
    TaskInput,
    TaskTraining,
    check_multitask,
)
from pipelines.config_values import (
    Block,
    Count,
    Device,
    DType,
    LocalPath,
    ModelName,
    Name,
    Params,
    Positive,
    Questions,
    Rate,
    Share,
)


class Job(Block):
    """What every config has."""

    extends: str | None = None
    seed: Count = 0
    workspace: Annotated[str, Field(min_length=1)] = "runs/default"
    _source: Any = PrivateAttr(
        default=None
    )  # what `loader.py` read; `as_written` needs it to keep secrets out of results

    @property
    def workspace_path(self) -> Path:
        """The folder below which everything that is built goes, absolute."""
        return Path(self.workspace).expanduser().absolute()


class Retrieval(Job):
    """`kind: retrieval`: a corpus and a retriever; what `frozenlm index` needs."""

    kind: Literal["retrieval"]
    corpus: Corpus | None = None
    retriever: Retriever
    retrieve_k: Positive = 100
    build_index: Literal["command", "on_first_use"] = "command"
    cache_retrieval: bool = False
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="after")
    def _corpus_where_needed(self) -> Self:
        if self.corpus is None and needs_corpus(self.retriever):
            raise ValueError(f"a retriever of kind {self.retriever.kind} needs a corpus block")
        return self


class RerankerJob(Retrieval):
    """`kind: reranker`: trains and measures a re-ranker over a retriever."""

    kind: Literal["reranker"]  # type: ignore[assignment]
    reranker: Reranker
    rerank_depth: Positive = 100
    rerank_k: Positive | None = None
    training: RerankerTraining | None = None


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


class Multitask(Job):
    """`kind: multitask`: one frozen LM for a mixture of tasks. `prompt` is what this config trains and, unless a route
    or the caller says otherwise, what serves; `modules` are further trained prompts that it serves."""

    kind: Literal["multitask"]
    lm: LM
    encoder: FrozenEncoder | None = None
    prompt: Prompt | None = None
    modules: list[Prompt] = []
    routes: list[Route] = []
    tasks: list[TaskBlock] = []
    mixture: Mixture = Mixture()
    input: TaskInput = TaskInput()
    generation: Generation = Generation()
    surface: Surface = Surface()
    training: TaskTraining | None = None
    evaluation: TaskEvaluation = TaskEvaluation()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        prompts = [*([self.prompt] if self.prompt is not None else []), *self.modules]
        check_multitask(prompts, self.encoder, self.routes, self.tasks)
        return self


Config = Annotated[Retrieval | RerankerJob | FrozenReader | ClosedBook | Multitask, Discriminator("kind")]
CONFIG: TypeAdapter[Retrieval | RerankerJob | FrozenReader | ClosedBook | Multitask] = TypeAdapter(Config)


def json_schema() -> dict[str, Any]:
    """The JSON Schema of every config file, for editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "frozenlm config",
        **CONFIG.json_schema(),
    }


__all__ = [
    "Attempt",
    "BM25",
    "Block",
    "CONFIG",
    "ClosedBook",
    "Config",
    "Corpus",
    "Count",
    "CrossEncoder",
    "Custom",
    "DType",
    "Dense",
    "Device",
    "Encoder",
    "Evaluation",
    "FromLabels",
    "FromText",
    "FromUniform",
    "FromVocabulary",
    "FrozenEncoder",
    "FrozenReader",
    "Generation",
    "Hybrid",
    "IDPG",
    "Init",
    "InputDependent",
    "Job",
    "LM",
    "LMLikelihood",
    "LocalPath",
    "Loop",
    "Mixture",
    "ModelName",
    "Multitask",
    "Name",
    "OnePrompt",
    "Packing",
    "Params",
    "Positive",
    "Precomputed",
    "Prompt",
    "PromptPerTask",
    "PromptTraining",
    "Questions",
    "Rate",
    "Records",
    "Reranker",
    "RerankerJob",
    "RerankerTraining",
    "Retrieval",
    "Retriever",
    "Route",
    "Share",
    "SoftPrompt",
    "Surface",
    "TaskBlock",
    "TaskEvaluation",
    "TaskInput",
    "TaskTraining",
    "Training",
    "json_schema",
    "needs_corpus",
]
