"""From a validated config block to the object it names. Explicit tables, no registry that fills itself on import."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import config as c
from pipelines.corpora import corpus_sha256, passages
from pipelines.errors import CheckpointError, ConfigError, IndexMismatchError, retrieval_errors
from pipelines.evaluation.questions import read_questions
from pipelines.index_progress import index_progress
from pipelines.limits import MAX_QUESTION_CHARACTERS
from pipelines.plugins import resolve_retriever
from retrievers.compute import resolve_model
from retrievers.corpus import estimate_passages
from retrievers.errors import IndexMismatchError as RetrievalMismatch
from retrievers.files import sha256_json
from retrievers.manifest import Manifest
from retrievers.passages import KIND
from retrievers.types import Reranker, Retriever

if TYPE_CHECKING:
    from frozenlm.encoder import FrozenEncoder
    from frozenlm.lm import FrozenLM
    from frozenlm.prompts.soft_prompt import SoftPrompt

Log = Callable[[str], None]
Indexed = c.BM25 | c.Dense | c.Precomputed


def module_folder(config: c.Job, name: str) -> Path:
    """Where a trained module of this workspace lies."""
    return config.workspace_path / "modules" / name


def index_folder(config: c.Retrieval, member: Indexed) -> Path:
    """Where the index of one retriever lies: another setting or another corpus is another folder, so nothing is
    overwritten. A TREC run needs the passages alone."""
    corpus = _corpus(config, member)
    if isinstance(member, c.Precomputed):
        return config.workspace_path / "index" / f"passages-{_corpus_key(corpus)[:12]}"
    settings = member.model_dump(mode="json", by_alias=True)
    if isinstance(member, c.Dense):
        settings["encoder"] = {k: v for k, v in settings["encoder"].items() if k not in ("batch_tokens", "device")}
    key = sha256_json({"retriever": settings, "corpus": corpus_sha256(corpus.path), "limit": corpus.limit})
    return config.workspace_path / "index" / f"{member.kind}-{key[:12]}"


def _corpus_key(corpus: c.Corpus) -> str:
    return sha256_json({"corpus": corpus_sha256(corpus.path), "limit": corpus.limit})


def encoder(block: c.Encoder) -> Any:
    """The encoder of a dense retriever."""
    from retrievers import dpr, encoders

    common: dict[str, Any] = block.model_dump(include={"batch_tokens", "dtype", "device", "max_length", "revision"})
    if block.kind == "dpr":
        return dpr.DPREncoder(str(block.question_model), block.model, **common)
    if block.kind == "spider":
        return dpr.SpiderEncoder(block.model, **common)
    return encoders.SentenceTransformerEncoder(block.model, **common)


def build_index(config: c.Retrieval, member: Indexed, *, rebuild: bool, log: Log) -> Path:
    """Build one index unless it is there already; an interrupted build goes on where it stopped."""
    folder = index_folder(config, member)
    if folder.exists() and not rebuild:
        with retrieval_errors(), _with_remedy():
            Manifest.open(folder, kind=KIND if isinstance(member, c.Precomputed) else member.kind)
        log(f"{member.kind}: index is there already: {folder}")
        return folder
    corpus = _corpus(config, member)
    with retrieval_errors(), index_progress(member.kind) as progress:
        expected = corpus.limit or estimate_passages(corpus.path, corpus.format)
        if isinstance(member, c.Precomputed):
            from retrievers.passage_writer import build_passages

            build_passages(passages(corpus), folder, overwrite=rebuild)
        elif isinstance(member, c.BM25):
            from retrievers.analysis import Analyzer
            from retrievers.bm25 import BM25Retriever

            stopwords = member.stopwords if isinstance(member.stopwords, str) else tuple(member.stopwords)
            BM25Retriever.build(
                passages(corpus),
                folder,
                analyzer=Analyzer(stemmer=member.stemmer, stopwords=stopwords),
                fields=member.fields,
                k1=member.k1,
                b=member.b,
                method=member.method,
                backend=member.backend,
                expected_passages=expected,
                overwrite=rebuild,
                log=log,
                progress=lambda stage, done, total: progress(stage, done, total or expected),
            )
        else:
            from retrievers.dense import DenseRetriever

            report = DenseRetriever.build(
                passages(corpus),
                folder,
                encoder(member.encoder),
                index=member.index,
                dtype=member.storage,
                expected=expected,
                overwrite=rebuild,
                log=log,
                progress=lambda done: progress("encode", done, expected),
            )
            log(str(report))
    return folder


def _corpus(config: c.Retrieval, member: Any) -> c.Corpus:
    if config.corpus is None:
        raise ConfigError(f"a retriever of kind {member.kind} needs a corpus block")
    return config.corpus


def indexed_members(retriever: Any) -> list[Indexed]:
    """The retrievers of a block that need an index folder."""
    if isinstance(retriever, c.Hybrid):
        return [found for member in retriever.members.values() for found in indexed_members(member)]
    return [retriever] if isinstance(retriever, c.BM25 | c.Dense) or _is_run(retriever) else []


def _is_run(block: Any) -> bool:
    return isinstance(block, c.Precomputed) and block.format == "trec"


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
        return _hybrid(config, block, allow_import=allow_import, log=log)
    if isinstance(block, c.Precomputed) and not _is_run(block):
        from retrievers.runs import PrecomputedRetriever

        return PrecomputedRetriever.from_dpr_json(block.file)
    folder = index_folder(config, block)
    if not folder.exists():
        if config.build_index == "command" and not isinstance(block, c.Precomputed):
            raise IndexMismatchError(
                f"no index of kind {block.kind} for this corpus and these settings: {folder} does not exist; run "
                "`frozenlm index CONFIG` from this directory, or set build_index: on_first_use"
            )
        build_index(config, block, rebuild=False, log=log)
    with _with_remedy():
        return _opened(config, block, folder)


@contextmanager
def _with_remedy() -> Iterator[None]:
    try:
        yield
    except RetrievalMismatch as error:
        raise IndexMismatchError(
            f"{str(error).rstrip('.')}; from the command line: frozenlm index CONFIG --rebuild"
        ) from error


def _opened(config: c.Retrieval, block: Indexed, folder: Path) -> Retriever:
    if isinstance(block, c.Precomputed):
        return _run(config, block, folder)
    if isinstance(block, c.BM25):
        from retrievers.bm25 import BM25Retriever

        return BM25Retriever.open(folder, max_query_characters=MAX_QUESTION_CHARACTERS)
    from retrievers.dense import DenseRetriever

    return DenseRetriever.open(folder, encoder(block.encoder))


def _hybrid(config: c.Retrieval, block: c.Hybrid, *, allow_import: bool, log: Log) -> Retriever:
    from retrievers.hybrid import HybridRetriever

    members = {name: _open(config, m, allow_import=allow_import, log=log) for name, m in block.members.items()}
    if block.rule == "spider":
        # dense + lambda * bm25: the first member weighs 1, the second lambda
        pair = {name: members[name] for name in ("dense", "bm25")}
        return HybridRetriever(pair, rule="spider", lambda_=block.lam, depth=block.depth)
    weights = {name: block.weights.get(name, 1.0) for name in members}
    return HybridRetriever(members, rule="rrf", weights=weights, depth=block.depth, rrf_k=block.rrf_k)


def _run(config: c.Retrieval, block: c.Precomputed, folder: Path) -> Retriever:
    from retrievers.passages import PassageStore
    from retrievers.runs import PrecomputedRetriever

    texts = {question.id: question.text for question in read_questions(block.questions)} if block.questions else {}
    store = PassageStore.open(folder)
    try:
        key = _corpus_key(_corpus(config, block))
        return PrecomputedRetriever.from_trec_run(block.file, questions=texts, passages=store, corpus_fingerprint=key)
    finally:
        store.close()  # the run's own passages are in memory


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
            count = (lambda text: len(model.encode(text))) if block.per_token else None
            return LikelihoodReranker(
                model,
                prompt=block.prompt,
                continuation=block.continuation,
                count_tokens=count,
                fits=_fits(model),
                retrieval_weight=block.retrieval_weight,
            )
        from retrievers.rerank import CrossEncoderReranker

        folder = block.model
        if block.checkpoint is not None:
            trained = module_folder(config, block.checkpoint)
            if not trained.is_dir():
                raise CheckpointError(
                    f"no trained re-ranker at {trained}; run `frozenlm train` on the re-ranker's config from this "
                    "directory, or set reranker.checkpoint=null to use reranker.model as it is"
                )
            folder = str(trained)
        return CrossEncoderReranker(
            folder,
            max_length=block.max_length,
            retrieval_weight=block.retrieval_weight,
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
        block.model,
        revision=block.revision,
        dtype=block.dtype,
        device=block.device,
        attn_implementation=block.attn_implementation,
        window=block.window,
    )


def frozen_encoder(block: c.FrozenEncoder) -> FrozenEncoder:
    """The frozen encoder of a config."""
    from frozenlm.encoder import FrozenEncoder

    return FrozenEncoder.load(
        resolve_model(block.model),
        revision=block.revision,
        dtype=block.dtype,
        device=block.device,
        attn_implementation=block.attn_implementation,
        max_length=block.max_length,
    )


def trained_prompt(config: Any, lm: FrozenLM) -> SoftPrompt | None:
    """The learned prompt of a config; see `soft_prompt`."""
    return soft_prompt(config, config.prompt, lm)


def soft_prompt(
    config: c.Job, block: c.SoftPrompt | c.PlainPrompt | None, lm: FrozenLM, *, key: str = "prompt"
) -> SoftPrompt | None:
    """A learned prompt of a config's workspace, or None where none is asked for, or none is trained and the block then
    reads zero-shot. `key` is the block's name in the config.

    Raises:
        CheckpointError: not trained yet and `missing: error`; damaged; trained for another LM.
    """
    if block is None:
        return None
    folder = module_folder(config, block.name)
    if not folder.exists():
        if block.missing == "zero_shot":
            return None
        raise CheckpointError(
            f"no trained prompt at {folder}; run `frozenlm train CONFIG` from this directory, or set {key}=null to "
            "read zero-shot"
        )
    from frozenlm.prompts.soft_prompt import SoftPrompt

    prompt = SoftPrompt.load(folder, lm)
    if (prompt.length, prompt.position) != (block.length, block.position):
        raise CheckpointError(
            f"{folder} holds a prompt of {prompt.length} tokens in {prompt.position} position, the config asks for "
            f"{block.length} in {block.position}; train it again with --restart, or give it another {key}.name"
        )
    return prompt
