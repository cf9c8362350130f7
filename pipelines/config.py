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

from pipelines.config_comparison import ComparedMethod, check_comparison
from pipelines.config_deltas import Delta, DeltaBlock, DiffPruning
from pipelines.config_prompting import MaskedLM, Prompting, PromptingInput, check_prompting
from pipelines.config_reading import (
    LM,
    Evaluation,
    FromLabels,
    FromModule,
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
from pipelines.config_recursion import (
    AnswerBy,
    Candidates,
    Connector,
    FirstPassCache,
    LastPassPrompt,
    NeuralTraining,
    PlainPrompt,
    Pretraining,
    SecondPass,
    TextualTraining,
    When,
    WhenOrRule,
    check_prompts,
    check_rates,
    check_retrieval,
    check_textual,
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
    AutoEncoder,
    FrozenEncoder,
    InputDependent,
    Intrinsic,
    LowRank,
    Mixture,
    OnePrompt,
    Prompt,
    PromptPerTask,
    PTuning,
    Records,
    Route,
    TaskBlock,
    TaskEvaluation,
    TaskInput,
    TaskTraining,
    check_multitask,
)
from pipelines.config_text import PromptPretraining, check_pretraining
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


class Recursion(Job):
    """What both forms of recursion have. With a retriever the LM reads passages in every pass, as a frozen reader does;
    without one the book is closed."""

    corpus: Corpus | None = None
    retriever: Retriever | None = None
    retrieve_k: Positive = 100
    build_index: Literal["command", "on_first_use"] = "command"
    cache_retrieval: bool = False
    reranker: Reranker | None = None
    rerank_depth: Positive = 100
    rerank_k: Positive | None = None
    lm: LM
    packing: Packing = Packing()
    generation: Generation = Generation()
    surface: Surface = Surface()
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="after")
    def _passages_where_needed(self) -> Self:
        check_retrieval(self.retriever, self.reranker)
        if self.retriever is not None and self.corpus is None and needs_corpus(self.retriever):
            raise ValueError(f"a retriever of kind {self.retriever.kind} needs a corpus block")
        return self


class TextualRecursion(Recursion):
    """`kind: textual_recursion`: the frozen LM samples candidates, reads them with the question and answers. `prompt`
    is that of pass 1. `answer_by` majority or best_score chooses among the candidates without a second pass."""

    kind: Literal["textual_recursion"]
    prompt: SoftPrompt | None = None
    candidates: Candidates = Candidates()
    second_pass: SecondPass = SecondPass()
    when: WhenOrRule = When()
    answer_by: AnswerBy = "second_pass"
    training: TextualTraining | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        check_textual(self.generation, self.second_pass, self.when, self.answer_by, self.prompt)
        return self

    @property
    def reserved_tokens(self) -> int:
        """Tokens that packing leaves free beside the prompt: the candidates' among passages."""
        return self.second_pass.reserve if self.retriever is not None else 0


class NeuralRecursion(Recursion):
    """`kind: neural_recursion`: the frozen LM, a trained connector, and the same LM again. `prompt` stands in the last
    pass, `plain_prompt` in the plain one that answers first with `when` below_confidence; its answer is greedy."""

    kind: Literal["neural_recursion"]
    prompt: LastPassPrompt | None = None
    connector: Connector = Connector()
    when: WhenOrRule = When()
    plain_prompt: PlainPrompt | None = None
    pretraining: Pretraining | None = None
    first_pass_cache: FirstPassCache = FirstPassCache()
    training: NeuralTraining | None = None

    @model_validator(mode="after")
    def _prompts_apart(self) -> Self:
        check_prompts([block.name for block in (self.prompt, self.plain_prompt) if block is not None])
        check_rates(self.training, self.prompt)
        return self

    @property
    def reserved_tokens(self) -> int:
        """Tokens that packing leaves free beside the prompt: what the plain pass's has more, whether it runs or not, so
        that both rules read the same passages."""
        lengths = [block.length if block is not None else 0 for block in (self.prompt, self.plain_prompt)]
        return max(0, lengths[1] - lengths[0])


Module = Annotated[Prompt | Delta, Discriminator("kind")]


class Multitask(Job):
    """`kind: multitask`: one frozen LM for a mixture of tasks. `prompt` or `delta` is what this config trains and,
    unless a route or the caller says otherwise, what serves; `modules` are further trained ones that it serves. With a
    `pretraining` block the prompt's training begins from what `frozenlm pretrain` made."""

    kind: Literal["multitask"]
    lm: LM
    encoder: FrozenEncoder | None = None
    prompt: Prompt | None = None
    delta: Delta | None = None
    modules: list[Module] = []
    routes: list[Route] = []
    tasks: list[TaskBlock] = []
    mixture: Mixture = Mixture()
    input: TaskInput = TaskInput()
    generation: Generation = Generation()
    surface: Surface = Surface()
    pretraining: PromptPretraining | None = None
    training: TaskTraining | None = None
    evaluation: TaskEvaluation = TaskEvaluation()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.prompt is not None and self.delta is not None:
            raise ValueError("a config trains a prompt or a delta; move one of them to another config")
        check_pretraining(self.pretraining, self.prompt, self.delta, self.modules)
        check_multitask([*self._own, *self.modules], self.encoder, self.routes, self.tasks)
        return self

    @property
    def _own(self) -> list[Any]:
        return [block for block in (self.prompt, self.delta) if block is not None]

    @property
    def trained(self) -> Any:
        """The block of what this config trains; None for the LM as it is."""
        return next(iter(self._own), None)


class Classification(Job):
    """`kind: classification`: a frozen encoder with a linear head and a delta, or the head alone, for one task with
    choices (P-tuning v2, arXiv 2110.07602, section 3.3). `name` is the folder of what is trained; `text_b` words the
    second text of a pair, as the task's template words the first. `pool: first` reads the encoder's first token. The
    head learns at `head_rate` times the learning rate."""

    kind: Literal["classification"]
    encoder: FrozenEncoder
    name: Name
    delta: Delta | None = None
    pool: Literal["mean", "first"] = "mean"
    head_rate: Rate = 1.0
    task: TaskBlock
    text_b: Annotated[str, Field(min_length=1)] | None = None
    training: TaskTraining | None = None
    evaluation: TaskEvaluation = TaskEvaluation()


class PromptingJob(Job):
    """`kind: prompting`: the frozen LM as it is, asked for a label of one task; nothing is trained. It is an `lm` or a
    `masked_lm`; the `encoder` chooses demonstrations."""

    kind: Literal["prompting"]
    lm: LM | None = None
    masked_lm: MaskedLM | None = None
    encoder: FrozenEncoder | None = None
    task: TaskBlock
    prompting: Prompting
    input: PromptingInput = PromptingInput()
    evaluation: TaskEvaluation = TaskEvaluation()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.lm is None) == (self.masked_lm is None):
            got = "none" if self.lm is None else "both"
            raise ValueError(f"prompting asks either an lm or a masked_lm, got {got}; name one of them")
        check_prompting(self.prompting, self.task, encoder=self.encoder is not None, evaluation=self.evaluation)
        return self


class MethodComparison(Job):
    """`kind: method_comparison`: every method on every task, each trained alone, with `seeds` seeds, around `lm`, or
    without one around `encoder` (which beside an LM serves prompts that are written from it, and chooses
    demonstrations). A method may also be a `prompting`, which is not trained. `reference` names the method that the
    others are held against; `transfer` also measures what was trained for one task on the others; `pairs` words the
    second texts of an encoder's tasks, by task."""

    kind: Literal["method_comparison"]
    lm: LM | None = None
    encoder: FrozenEncoder | None = None
    methods: list[ComparedMethod]
    reference: Name | None = None
    tasks: list[TaskBlock]
    pairs: dict[Name, str] = {}
    seeds: Positive = 3
    transfer: bool = False
    input: TaskInput = TaskInput()
    generation: Generation = Generation()
    surface: Surface = Surface()
    training: TaskTraining
    evaluation: TaskEvaluation = TaskEvaluation()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.lm is None and (self.encoder is None or self.transfer):
            raise ValueError("a comparison needs an lm or an encoder; transfer needs an lm: a head knows one task")
        check_comparison(self.methods, self.tasks, encoder=self.lm is None, pairs=self.pairs)
        names = [method.name for method in self.methods]
        if self.reference is not None and self.reference not in names:
            raise ValueError(f"reference is {self.reference!r}; the methods here are {names}")
        for method in self.methods:
            for task in self.tasks:
                if method.prompting is not None:
                    about: dict[str, Any] = {"encoder": self.encoder is not None, "evaluation": self.evaluation}
                    check_prompting(method.prompting, task, **about)
            self.one(method, self.tasks[0], self.seeds - 1)
        return self

    def one(
        self, method: ComparedMethod, task: TaskBlock, seed: int, learning_rate: float | None = None
    ) -> Multitask | Classification | PromptingJob:
        """The config of a single run: one method, one task. Without a learning rate it has the method's first."""
        common: dict[str, Any] = {"seed": self.seed + seed, "workspace": self.workspace}
        common |= {"evaluation": self.evaluation, "encoder": self.encoder}
        if method.prompting is not None:
            room = PromptingInput(max_tokens=self.input.max_tokens)
            return PromptingJob(
                kind="prompting", lm=self.lm, task=task, prompting=method.prompting, input=room, **common
            )
        rate = method.learning_rates[0] if learning_rate is None else learning_rate
        steps = method.steps or self.training.steps
        common["training"] = self.training.model_copy(update={"learning_rate": rate, "steps": steps})
        name = f"{method.name}-{task.name}-{rate:g}-{seed}".replace("+", "")
        block = None if method.block is None else method.block.model_copy(update={"name": name})
        if self.lm is None:
            about: dict[str, Any] = {"name": name, "task": task, "text_b": self.pairs.get(task.name)}
            return Classification(kind="classification", delta=block, **about, **common)
        trained: dict[str, Any] = {"prompt" if method.prompt is not None else "delta": block}
        return self._of_lm(task, **trained, **common)

    def plain(self, task: TaskBlock) -> Multitask:
        """The config of the LM as it is, on one task."""
        common: dict[str, Any] = {"seed": self.seed, "workspace": self.workspace, "evaluation": self.evaluation}
        return self._of_lm(task, encoder=self.encoder, **common)

    def _of_lm(self, task: TaskBlock, **own: Any) -> Multitask:
        shared: dict[str, Any] = {key: getattr(self, key) for key in ("lm", "input", "generation", "surface")}
        return Multitask(kind="multitask", tasks=[task], **shared, **own)


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
    | MethodComparison,
    Discriminator("kind"),
]
CONFIG: TypeAdapter[Any] = TypeAdapter(Config)


def retrieves(config: Any) -> bool:
    """Whether a config's pipeline looks passages up."""
    return getattr(config, "retriever", None) is not None


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
    "PromptTraining",
    "Prompting",
    "PromptingInput",
    "PromptingJob",
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
