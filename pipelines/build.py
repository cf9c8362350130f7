"""From a validated config block to the object it names. Explicit tables, no registry that fills itself on import."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import config as c
from pipelines.assets import model_path
from pipelines.errors import CheckpointError, ConfigError, IndexMismatchError, retrieval_errors
from pipelines.plugins import resolve_retriever
from retrievers.corpus import corpus_fingerprint, read_corpus
from retrievers.files import sha256_json
from retrievers.types import Reranker, Retriever

if TYPE_CHECKING:
    from collections.abc import Iterator

    from frozenlm.lm import FrozenLM
    from frozenlm.prompts.soft_prompt import SoftPrompt
    from retrievers.types import Passage

Log = Callable[[str], None]


def corpus(block: c.Corpus) -> Iterator[Passage]:
    """The passages of a corpus block, streamed."""
    return read_corpus(block.path, format=block.format, limit=block.limit)


def module_folder(config: c.Job, name: str) -> Path:
    """Where a trained module of this workspace lies."""
    return config.workspace_path / "modules" / name


def index_folder(config: c.Retrieval, member: c.BM25 | c.Dense) -> Path:
    """Where the index of one retriever lies: another setting or another corpus is another folder, so nothing is overwritten."""
    if config.corpus is None:
        raise ConfigError(f"a retriever of kind {member.kind} needs a corpus block")
    settings = member.model_dump(mode="json", by_alias=True)
    if isinstance(member, c.Dense):
        settings["encoder"] = {k: v for k, v in settings["encoder"].items() if k not in ("batch_tokens", "device")}
    with retrieval_errors():
        corpus_hash = corpus_fingerprint(config.corpus.path)
    key = sha256_json({"retriever": settings, "corpus": corpus_hash, "limit": config.corpus.limit})
    return config.workspace_path / "index" / f"{member.kind}-{key[:12]}"


def encoder(block: c.Encoder) -> Any:
    """The encoder of a dense retriever."""
    from retrievers import encoders

    common = {"batch_tokens": block.batch_tokens, "dtype": block.dtype, "device": block.device}
    common |= {"max_length": block.max_length, "revision": block.revision}
    if block.kind == "dpr":
        return encoders.DPREncoder(
            question_model=model_path(str(block.question_model)), passage_model=model_path(block.model), **common
        )
    kinds = {"sentence_transformers": encoders.SentenceTransformerEncoder, "spider": encoders.SpiderEncoder}
    return kinds[block.kind](model_path(block.model), **common)


def build_index(config: c.Retrieval, member: c.BM25 | c.Dense, *, rebuild: bool, log: Log) -> Path:
    """Build one index unless it is there already; an interrupted build goes on where it stopped."""
    from retrievers.bm25 import BM25Retriever

    folder = index_folder(config, member)
    if folder.exists() and not rebuild:
        log(f"{member.kind}: index is there already: {folder}")
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    assert_corpus = config.corpus
    if assert_corpus is None:
        raise ConfigError(f"a retriever of kind {member.kind} needs a corpus block")
    passages = corpus(assert_corpus)
    with retrieval_errors():
        if isinstance(member, c.BM25):
            options = member.model_dump(exclude={"kind"})
            BM25Retriever.build(passages, folder, **options, overwrite=rebuild, log=log)
        else:
            from retrievers.dense import DenseRetriever

            DenseRetriever.build(
                passages,
                folder,
                encoder(member.encoder),
                index=member.index,
                dtype=member.storage,
                overwrite=rebuild,
                log=log,
            )
    return folder


def indexed_members(retriever: Any) -> list[c.BM25 | c.Dense]:
    """The retrievers of a block that need an index folder."""
    if isinstance(retriever, c.Hybrid):
        return [found for member in retriever.members.values() for found in indexed_members(member)]
    return [retriever] if isinstance(retriever, c.BM25 | c.Dense) else []


def retriever(config: c.Retrieval, *, allow_import: bool = False, log: Log = lambda _: None) -> Retriever:
    """The retriever of a config, opened.

    Raises:
        IndexMismatchError: an index has not been built and the config does not allow building it on first use.
        RetrieverError, ConfigError: see `pipelines.plugins`.
    """
    with retrieval_errors():
        found = _open(config, config.retriever, allow_import=allow_import, log=log)
        if config.cache_retrieval:
            from retrievers.cache import CachedRetriever

            return CachedRetriever(found, config.workspace_path / "cache" / "retrieval")
        return found


def _open(config: c.Retrieval, block: Any, *, allow_import: bool, log: Log) -> Retriever:
    if isinstance(block, c.Custom):
        return resolve_retriever(block.kind, block.params, allow_import=allow_import)
    if isinstance(block, c.Hybrid):
        from retrievers.hybrid import HybridRetriever

        members = {name: _open(config, m, allow_import=allow_import, log=log) for name, m in block.members.items()}
        return HybridRetriever(
            members,
            rule=block.rule,
            lambda_=block.lam,
            weights=block.weights or None,
            depth=block.depth,
            rrf_k=block.rrf_k,
        )
    if isinstance(block, c.Precomputed):
        from retrievers.runs import PrecomputedRetriever

        passages = corpus(config.corpus) if block.format == "trec" and config.corpus is not None else None
        return PrecomputedRetriever.open(block.file, format=block.format, passages=passages)
    folder = index_folder(config, block)
    if not folder.exists():
        if config.build_index == "command":
            raise IndexMismatchError(
                f"no index of kind {block.kind} for this corpus and these settings: {folder} does not exist; run "
                "`frozenlm index CONFIG` from this directory, or set build_index: on_first_use"
            )
        build_index(config, block, rebuild=False, log=log)
    if isinstance(block, c.BM25):
        from retrievers.bm25 import BM25Retriever

        return BM25Retriever.open(folder)
    from retrievers.dense import DenseRetriever

    return DenseRetriever.open(folder, encoder(block.encoder))


def reranker(config: c.RerankerJob | c.FrozenReader, lm: Callable[[], FrozenLM]) -> Reranker | None:
    """The re-ranker of a config; `lm` is called only where the frozen LM itself ranks.

    Raises:
        CheckpointError: the block names a checkpoint that has not been trained.
    """
    block = config.reranker
    if block is None:
        return None
    with retrieval_errors():
        if isinstance(block, c.LMLikelihood):
            from retrievers.likelihood import LikelihoodReranker

            model = lm()
            return LikelihoodReranker(model, prompt=block.prompt, per_token=block.per_token, fits=_fits(model))
        from retrievers.rerank import CrossEncoderReranker

        folder = model_path(block.model)
        if block.checkpoint is not None:
            trained = module_folder(config, block.checkpoint)
            if not trained.is_dir():
                raise CheckpointError(
                    f"no trained re-ranker at {trained}; run `frozenlm train` on the re-ranker's config from this directory, "
                    "or set reranker.checkpoint=null to use reranker.model as it is"
                )
            folder = str(trained)
        return CrossEncoderReranker(
            folder,
            max_length=block.max_length,
            batch_tokens=block.batch_tokens,
            dtype=block.dtype,
            device=block.device,
            revision=block.revision if block.checkpoint is None else None,
        )


def _fits(model: FrozenLM) -> Callable[[str, str], bool]:
    def fits(prompt: str, continuation: str) -> bool:
        size = len(model.bos_ids) + len(model.encode(prompt)) + len(model.encode(continuation))
        return model.window is None or size <= model.window

    return fits


def frozen_lm(block: c.LM) -> FrozenLM:
    """The frozen language model of a config."""
    from frozenlm.lm import FrozenLM

    return FrozenLM.load(
        model_path(block.model), revision=block.revision, dtype=block.dtype, device=block.device, window=block.window
    )


def trained_prompt(config: c.FrozenReader | c.ClosedBook, lm: FrozenLM) -> SoftPrompt | None:
    """The learned prompt of a config, or None where none is asked for, or none is trained and the config then reads zero-shot.

    Raises:
        CheckpointError: not trained yet and `missing: error`; damaged; trained for another LM.
    """
    block = config.prompt
    if block is None:
        return None
    folder = module_folder(config, block.name)
    if not folder.exists():
        if block.missing == "zero_shot":
            return None
        raise CheckpointError(
            f"no trained prompt at {folder}; run `frozenlm train CONFIG` from this directory, or set prompt=null for zero-shot"
        )
    from frozenlm.prompts.soft_prompt import SoftPrompt

    prompt = SoftPrompt.load(folder, lm)
    if (prompt.length, prompt.position) != (block.length, block.position):
        raise CheckpointError(
            f"{folder} holds a prompt of {prompt.length} tokens in {prompt.position} position, the config asks for "
            f"{block.length} in {block.position}; train it again with --restart, or give it another prompt.name"
        )
    return prompt
