"""What a config file may say. One pydantic model a block, unknown keys refused; `loader.py` reads, `build.py` builds.

Paths in a YAML file are relative to that file; `workspace`, below which everything that is built goes, is relative to
the current directory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    TypeAdapter,
    field_validator,
    model_validator,
)

from pipelines.assets import SourcedStr
from pipelines.errors import ConfigError
from pipelines.plugins import BUILT_IN_RETRIEVERS, check_kind


def _path(value: Any) -> Any:
    if isinstance(value, Path):
        return value.expanduser().absolute()
    if not isinstance(value, str) or not value:
        return value
    base = value.base if isinstance(value, SourcedStr) and value.base else Path.cwd()
    try:
        return Path(base, Path(value).expanduser()).resolve()
    except (OSError, RuntimeError) as error:  # no such user, a circle of links, too long
        raise ValueError(f"not a usable path: {error}") from error


def _model(value: Any) -> Any:
    """A local folder becomes an absolute path; anything else stays as it is: the id of a model on a hub."""
    if isinstance(value, Path):
        return str(value.absolute())
    if not isinstance(value, str) or not value:
        return value
    path = _path(value)
    try:
        local = value.startswith((".", "/", "~")) or path.is_dir()
    except OSError as error:
        raise ValueError(f"neither a folder nor a model's id: {error}") from error
    return str(path) if local else str(value)


def _param(value: Any) -> Any:
    """A value for a plug-in: plain data; text that begins with `./` or `../` is a path, relative to the YAML file."""
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise ValueError("the keys of params are text")
        return {str(key): _param(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_param(inner) for inner in value]
    if isinstance(value, str):
        return str(_path(value)) if value.startswith(("./", "../")) else str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    raise ValueError(
        f"params hold plain data, got an object of type {type(value).__name__}; pass objects by keyword in Python"
    )


LocalPath = Annotated[Path, BeforeValidator(_path)]
ModelName = Annotated[str, Field(min_length=1), BeforeValidator(_model)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
Positive = Annotated[int, Field(ge=1, le=2**53)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Params = Annotated[dict[str, Any], BeforeValidator(_param)]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")]
DType = Literal["auto", "float32", "bfloat16", "float16"]


class Block(BaseModel):
    """A part of a config: no unknown keys, no silent conversions of type."""

    model_config = ConfigDict(
        extra="forbid", strict=True, protected_namespaces=(), validate_default=True, populate_by_name=True
    )


class Corpus(Block):
    """Where the passages come from."""

    path: LocalPath
    format: Literal["auto", "psgs_w100", "beir", "jsonl", "hf"] = "auto"
    limit: Positive | None = None


class BM25(Block):
    """Lexical retrieval. k1 and b as in Anserini's baseline for passages."""

    kind: Literal["bm25"]
    k1: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.9
    b: Share = 0.4
    method: Literal["lucene", "robertson", "atire", "bm25+", "bm25l", "okapi"] | None = None
    fields: Literal["title_text", "text"] = "title_text"
    stemmer: Literal["porter", "english"] | None = "porter"
    stopwords: Literal["lucene", "none"] | list[str] = "lucene"
    backend: Literal["bm25s", "rank_bm25"] = "bm25s"


class Encoder(Block):
    """What turns questions and passages into vectors. `model` of a DPR encoder is the passages' side,
    `question_model` the questions'."""

    kind: Literal["sentence_transformers", "dpr", "spider"] = "sentence_transformers"
    model: ModelName
    question_model: ModelName | None = None
    revision: str | None = None
    max_length: Positive = 256
    batch_tokens: Positive | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: Device = "auto"

    @model_validator(mode="after")
    def _two_sides(self) -> Self:
        if (self.question_model is None) == (self.kind == "dpr"):
            need = "needs" if self.kind == "dpr" else "has no"
            raise ValueError(f"an encoder of kind {self.kind} {need} question_model")
        return self


class Dense(Block):
    """Retrieval by inner product of vectors."""

    kind: Literal["dense"]
    encoder: Encoder
    index: Literal["exact", "flat", "ivf", "hnsw"] = "exact"
    storage: Literal["float32", "bfloat16"] = "float32"


class Precomputed(Block):
    """Retrieval results that the user brings: a DPR JSON file, or a TREC run over the config's corpus."""

    kind: Literal["precomputed"]
    file: LocalPath
    format: Literal["dpr", "trec"] = "dpr"
    questions: Questions | None = None

    @model_validator(mode="after")
    def _a_run_needs_its_questions(self) -> Self:
        if self.format == "trec" and self.questions is None:
            raise ValueError("a TREC run names questions by id only; give the block questions with their texts")
        return self


class Hybrid(Block):
    """Several retrievers joined: Spider's linear rule over lexical and dense, or weighted reciprocal ranks."""

    kind: Literal["hybrid"]
    members: Annotated[dict[str, Retriever], Field(min_length=2)]
    rule: Literal["spider", "rrf"] = "spider"
    lam: Annotated[float, Field(alias="lambda", ge=0, allow_inf_nan=False)] = 1.0
    weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = {}
    depth: Positive = 1000
    rrf_k: Positive = 60

    @model_validator(mode="after")
    def _members_fit_the_rule(self) -> Self:
        if unknown := set(self.weights) - set(self.members):
            raise ValueError(f"weights name {sorted(unknown)}, but the members are {sorted(self.members)}")
        if self.rule == "spider" and set(self.members) != {"bm25", "dense"}:
            raise ValueError(
                f"rule spider joins members named bm25 and dense, got {sorted(self.members)}; use rule rrf for others"
            )
        return self


class Custom(Block):
    """A retriever of the user's own: an entry point's name in the group `frozenlm.retrievers`, or `module:Class`."""

    kind: Annotated[str, Field(min_length=1, max_length=300)]
    params: Params = {}

    @field_validator("kind")
    @classmethod
    def _is_known(cls, kind: str) -> str:
        try:
            check_kind(kind)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return kind


def _retriever_kind(value: Any) -> str | None:
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    if not isinstance(kind, str):
        return None
    return str(kind) if kind in BUILT_IN_RETRIEVERS else "custom"


Retriever = Annotated[
    Annotated[BM25, Tag("bm25")]
    | Annotated[Dense, Tag("dense")]
    | Annotated[Hybrid, Tag("hybrid")]
    | Annotated[Precomputed, Tag("precomputed")]
    | Annotated[Custom, Tag("custom")],
    Discriminator(
        _retriever_kind,
        custom_error_type="missing_kind",
        custom_error_message="a retriever needs a kind: bm25, dense, hybrid, precomputed, a plug-in, or module:Class",
    ),
]


class CrossEncoder(Block):
    """Question and passage read jointly. `checkpoint` names a re-ranker trained into the workspace;
    without it `model` must be a trained one. With `retrieval_weight` the model learns what to add to so many times the
    retriever's score, which takes far fewer questions than learning to rank from nothing (our choice)."""

    kind: Literal["cross_encoder"]
    model: ModelName
    checkpoint: Name | None = None
    revision: str | None = None
    retrieval_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    max_length: Positive = 256
    batch_tokens: Positive | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: Device = "auto"


class LMLikelihood(Block):
    """UPR (arXiv 2204.07496): passages ranked by the frozen LM's log p(question | passage)."""

    kind: Literal["lm_likelihood"]
    prompt: str = "text : {passage} question :"
    continuation: str = " {question}"
    per_token: bool = True


Reranker = Annotated[CrossEncoder | LMLikelihood, Discriminator("kind")]


class LM(Block):
    """The frozen language model: a local folder or an id on a hub. `window` lowers the model's own limit, in tokens."""

    model: ModelName
    revision: str | None = None
    dtype: DType = "auto"
    device: Device = "auto"
    window: Positive | None = None


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


Init = Annotated[FromText | FromVocabulary | FromUniform | FromLabels, Discriminator("kind")]


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


class Questions(Block):
    """A file of questions with answers. `qrels` (BEIR) adds the gold passages, and leaves only the questions that it
    judges. Of these the first `skip` are passed over and at most `limit` taken; `sample` draws that many of them,
    always the same ones."""

    path: LocalPath
    format: Literal["auto", "nq_open", "dpr_csv", "squad", "beir", "jsonl"] = "auto"
    qrels: LocalPath | None = None
    skip: Count = 0
    limit: Positive | None = None
    sample: Positive | None = None


class Training(Block):
    """One training run. `questions` train; `dev` picks the best step and is never reported."""

    questions: Annotated[list[Questions], Field(min_length=1)]
    dev: list[Questions] = []
    dev_limit: Positive = 200
    steps: Positive = 500
    batch_size: Positive = 8
    gradient_accumulation: Positive = 1
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    learning_rate: Rate = 0.01
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup_steps: Count = 20
    clip_norm: Rate | None = 1.0
    precision: Literal["no", "bf16"] = "no"
    eval_every: Positive = 100
    patience: Positive | None = None
    save_every: Positive = 100
    trackers: list[Literal["tensorboard"]] = []


class PromptTraining(Training):
    """Training of the reader's prompt on packed contexts. Questions whose packed context lacks every answer are left
    out unless `unanswerable` is `keep`; with `add_gold` the gold passage is put first among the hits
    where retrieval missed it."""

    unanswerable: Literal["skip", "keep"] = "skip"
    add_gold: bool = False
    context_cache: Literal["off", "memory", "disk"] = "memory"
    context_cache_bytes: Positive = 2_000_000_000


class RerankerTraining(Training):
    """Listwise training: one positive against `negatives` drawn from the retriever's first `depth` hits
    (our choice of loss and counts)."""

    learning_rate: Rate = 3e-5
    negatives: Positive = 7
    depth: Positive = 100


class Evaluation(Block):
    """What is measured. `questions` may be given on the command line instead."""

    questions: Questions | None = None
    recall_at: Annotated[list[Positive], Field(min_length=1)] = [1, 5, 20, 100]
    matcher: Literal["dpr", "substring"] = "dpr"
    chunk: Positive = 64


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


Config = Annotated[Retrieval | RerankerJob | FrozenReader | ClosedBook, Discriminator("kind")]
CONFIG: TypeAdapter[Retrieval | RerankerJob | FrozenReader | ClosedBook] = TypeAdapter(Config)


def needs_corpus(retriever: Any) -> bool:
    """Whether building or serving this retriever reads the config's corpus. A plug-in brings its own passages."""
    if isinstance(retriever, Hybrid):
        return any(needs_corpus(member) for member in retriever.members.values())
    return isinstance(retriever, BM25 | Dense) or (isinstance(retriever, Precomputed) and retriever.format == "trec")


def json_schema() -> dict[str, Any]:
    """The JSON Schema of every config file, for editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "frozenlm config",
        **CONFIG.json_schema(),
    }
