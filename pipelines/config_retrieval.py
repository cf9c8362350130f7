"""The config blocks between a question and its ranked passages: corpus, retrievers, re-rankers; and the kinds of config
that end there."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from pipelines.config_job import Job
from pipelines.config_training import Evaluation, RerankerTraining
from pipelines.config_values import (
    Block,
    Device,
    LocalPath,
    ModelName,
    Name,
    Params,
    Positive,
    Questions,
    Share,
)
from pipelines.errors import ConfigError
from pipelines.plugins import BUILT_IN_RETRIEVERS, check_kind


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
    retrieval_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0


Reranker = Annotated[CrossEncoder | LMLikelihood, Discriminator("kind")]


def needs_corpus(retriever: Any) -> bool:
    """Whether building or serving this retriever reads the config's corpus. A plug-in brings its own passages."""
    if isinstance(retriever, Hybrid):
        return any(needs_corpus(member) for member in retriever.members.values())
    return isinstance(retriever, BM25 | Dense) or (isinstance(retriever, Precomputed) and retriever.format == "trec")


def retrieves(config: Any) -> bool:
    """Whether a config's pipeline looks passages up."""
    return getattr(config, "retriever", None) is not None


def check_corpus(retriever: Any, corpus: Corpus | None) -> None:
    """Raises ValueError for a retriever whose corpus is not named."""
    if corpus is None and needs_corpus(retriever):
        raise ValueError(f"a retriever of kind {retriever.kind} needs a corpus block")


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
        check_corpus(self.retriever, self.corpus)
        return self


class RerankerJob(Retrieval):
    """`kind: reranker`: trains and measures a re-ranker over a retriever."""

    kind: Literal["reranker"]  # type: ignore[assignment]
    reranker: Reranker
    rerank_depth: Positive = 100
    rerank_k: Positive | None = None
    training: RerankerTraining | None = None
