"""What a config file may say: every kind of config, and every block by one name. They stand in `config_*.py`, one
pydantic model a block, unknown keys refused; `loader.py` reads, `build.py` builds.

Paths in a YAML file are relative to that file; `workspace`, below which everything that is built goes, is relative to
the current directory.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, TypeAdapter

from pipelines.config_classification import Classification
from pipelines.config_comparison import ComparedMethod, MethodComparison
from pipelines.config_deltas import Delta, DeltaBlock, DiffPruning
from pipelines.config_job import Job
from pipelines.config_multitask import Mixture, Module, Multitask, Route
from pipelines.config_prompting import MaskedLM, Prompting, PromptingInput, PromptingJob
from pipelines.config_prompts import (
    IDPG,
    Attempt,
    AutoEncoder,
    FrozenEncoder,
    InputDependent,
    Intrinsic,
    LowRank,
    OnePrompt,
    Prompt,
    PromptPerTask,
    PTuning,
)
from pipelines.config_reading import (
    LM,
    ClosedBook,
    FromLabels,
    FromModule,
    FromText,
    FromUniform,
    FromVocabulary,
    FrozenReader,
    Generation,
    Init,
    Packing,
    SoftPrompt,
    Surface,
)
from pipelines.config_recursion import (
    AnswerBy,
    Candidates,
    Connector,
    FirstPassCache,
    LastPassPrompt,
    NeuralRecursion,
    NeuralTraining,
    PlainPrompt,
    Pretraining,
    Recursion,
    SecondPass,
    TextualRecursion,
    TextualTraining,
    When,
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
    RerankerJob,
    Retrieval,
    Retriever,
    needs_corpus,
    retrieves,
)
from pipelines.config_search import PromptSearch, ProposeTemplates, ProposeWords, Search
from pipelines.config_tasks import Records, TaskBlock, TaskEvaluation, TaskInput, TaskTraining
from pipelines.config_text import PromptPretraining
from pipelines.config_training import Evaluation, Loop, PromptTraining, RerankerTraining, Training
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

READS = (FrozenReader, ClosedBook, TextualRecursion, NeuralRecursion)
Config = Annotated[
    Retrieval
    | RerankerJob
    | FrozenReader
    | ClosedBook
    | TextualRecursion
    | NeuralRecursion
    | Multitask
    | Classification
    | PromptingJob
    | PromptSearch
    | MethodComparison,
    Discriminator("kind"),
]
CONFIG: TypeAdapter[Any] = TypeAdapter(Config)


def json_schema() -> dict[str, Any]:
    """The JSON Schema of every config file, for editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "frozenlm config",
        **CONFIG.json_schema(),
    }


__all__ = [
    "AnswerBy",
    "Attempt",
    "AutoEncoder",
    "BM25",
    "Block",
    "CONFIG",
    "Candidates",
    "Classification",
    "ClosedBook",
    "ComparedMethod",
    "Config",
    "Connector",
    "Corpus",
    "Count",
    "CrossEncoder",
    "Custom",
    "DType",
    "Delta",
    "DeltaBlock",
    "Dense",
    "Device",
    "DiffPruning",
    "Encoder",
    "Evaluation",
    "FirstPassCache",
    "FromLabels",
    "FromModule",
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
    "Intrinsic",
    "Job",
    "LM",
    "LMLikelihood",
    "LastPassPrompt",
    "LocalPath",
    "Loop",
    "LowRank",
    "MaskedLM",
    "MethodComparison",
    "Mixture",
    "ModelName",
    "Module",
    "Multitask",
    "Name",
    "NeuralRecursion",
    "NeuralTraining",
    "OnePrompt",
    "PTuning",
    "Packing",
    "Params",
    "PlainPrompt",
    "Positive",
    "Precomputed",
    "Pretraining",
    "Prompt",
    "PromptPerTask",
    "PromptPretraining",
    "PromptSearch",
    "PromptTraining",
    "Prompting",
    "PromptingInput",
    "PromptingJob",
    "ProposeTemplates",
    "ProposeWords",
    "Questions",
    "READS",
    "Rate",
    "Records",
    "Recursion",
    "Reranker",
    "RerankerJob",
    "RerankerTraining",
    "Retrieval",
    "Retriever",
    "Route",
    "Search",
    "SecondPass",
    "Share",
    "SoftPrompt",
    "Surface",
    "TaskBlock",
    "TaskEvaluation",
    "TaskInput",
    "TaskTraining",
    "TextualRecursion",
    "TextualTraining",
    "Training",
    "When",
    "json_schema",
    "needs_corpus",
    "retrieves",
]
