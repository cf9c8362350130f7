"""The four stages of a frozen reader (arXiv 2204.10019, section 3): retrieve, re-rank, pack, read. Each is one
function over a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipelines.components import Components
from pipelines.config import ClosedBook, FrozenReader
from pipelines.errors import ConfigError, FrozenLMError, RetrieverError, retrieval_errors
from pipelines.limits import MAX_QUESTION_CHARACTERS
from pipelines.packing import Packed, pack
from pipelines.surface import clean
from retrievers.check import check_hits, check_reranked, name_of
from retrievers.errors import RetrievalError
from retrievers.types import Hit

if TYPE_CHECKING:
    from frozenlm.rows import Row


def check_questions(questions: Sequence[str], names: Sequence[str] | None = None) -> None:
    """Refuse what cannot be asked.

    Args:
        names: what the errors call the questions; None counts them from 0.

    Raises:
        ConfigError: a question that is no string, is blank, is longer than `MAX_QUESTION_CHARACTERS`, or is no Unicode.
    """
    for i, question in zip(names or range(len(questions)), questions, strict=True):
        if not isinstance(question, str):
            raise ConfigError(f"question {i} is {type(question).__name__}, expected a string")
        if not question.strip():
            raise ConfigError(f"question {i} is empty; ask something")
        if len(question) > MAX_QUESTION_CHARACTERS:
            raise ConfigError(
                f"question {i} has {len(question):,} characters, at most {MAX_QUESTION_CHARACTERS:,} are taken"
            )
        try:
            question.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"question {i} is not Unicode text: character {error.start}; write it in UTF-8"
            ) from error


def retrieve(parts: Components, questions: Sequence[str], k: int) -> list[list[Hit]]:
    """At most `k` hits a question; the retriever's contract is checked."""
    with retrieval_errors():
        retriever = parts.retriever
        try:
            found = retriever.retrieve(list(questions), k)
        except (FrozenLMError, RetrievalError, MemoryError):
            raise
        except (Exception, SystemExit) as error:  # a plug-in may raise anything; the user should hear whose fault it is
            raise RetrieverError(f"{name_of(retriever)}: retrieve raised {type(error).__name__}: {error}") from error
        check_hits(name_of(retriever), questions, found, k)
    return [list(hits) for hits in found]


def rerank(parts: Components, questions: Sequence[str], hits: Sequence[Sequence[Hit]]) -> list[list[Hit]]:
    """The re-ranker's order of the first `rerank_depth` hits, cut to `rerank_k`; without a re-ranker the hits as they
    are."""
    ranker = parts.reranker
    if ranker is None:
        return [list(ranked) for ranked in hits]
    config = parts.config
    depth, k = getattr(config, "rerank_depth", 100), getattr(config, "rerank_k", None)
    offered = [list(found[:depth]) for found in hits]
    with retrieval_errors():
        ranked = ranker.rerank(list(questions), offered, k or depth)
        check_reranked(type(ranker).__name__, questions, offered, ranked, k or depth)
    return [list(r) for r in ranked]


def pack_all(parts: Components, questions: Sequence[str], hits: Sequence[Sequence[Hit]]) -> list[Packed]:
    """One filled window a question."""
    config, lm = parts.config, parts.lm
    settings = config.packing
    if lm.kind == "decoder" and config.generation.max_new_tokens > settings.answer_reserve:
        raise ConfigError(
            f"generation.max_new_tokens is {config.generation.max_new_tokens}, but packing.answer_reserve keeps only "
            f"{settings.answer_reserve} tokens of the window for the answer; raise the one or lower the other"
        )
    window = min(lm.window or settings.max_tokens or 0, settings.max_tokens or lm.window or 0)
    if window == 0:
        raise ConfigError(
            "this LM has no window of its own; set packing.max_tokens (tokens, question and answer included)"
        )
    opening = [*lm.bos_ids, *lm.encode(settings.opening)]
    extra = len(lm.close_ids) + (parts.prompt.length if parts.prompt is not None else 0)
    extra += getattr(config, "reserved_tokens", 0)  # what another pass reads beside the passages
    return [
        pack(
            question,
            ranked,
            encode=lm.encode,
            passage=settings.passage,
            question_template=settings.question,
            opening=settings.opening,
            opening_ids=opening,
            soft_tokens=extra,
            window=window,
            answer_reserve=settings.answer_reserve,
            overflow=settings.overflow,
            order=settings.order,
            deduplicate=settings.deduplicate,
            per_title_cap=settings.per_title_cap,
            max_passages=settings.max_passages,
        )
        for question, ranked in zip(questions, hits, strict=True)
    ]


def row(parts: Components, context_ids: Sequence[int]) -> Row:
    """What the LM reads for one packed window: its tokens, and the learned prompt where it belongs."""
    from frozenlm.rows import Tokens

    context = Tokens.of([*context_ids, *parts.lm.close_ids])
    return [context] if parts.prompt is None else parts.prompt.place([context])


def read(parts: Components, packed: Sequence[Packed]) -> list[tuple[str, float]]:
    """The frozen LM's answer to each packed window and its summed log-probability (nats)."""
    config: FrozenReader | ClosedBook = parts.config
    settings = config.generation
    generations = parts.lm.generate(
        [row(parts, window.context_ids) for window in packed],
        max_new_tokens=settings.max_new_tokens,
        do_sample=settings.do_sample,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        num_beams=settings.num_beams,
        length_penalty=settings.length_penalty,
        stop=tuple(settings.stop),
        batch_tokens=settings.batch_tokens,
        seed=config.seed,
    )
    answers = []
    for window, generation in zip(packed, generations, strict=True):
        texts = [kept.text for kept in window.kept]
        text = clean(
            generation.text,
            texts,
            join_digits=config.surface.join_digits,
            as_in_passage=config.surface.as_in_passage,
        )
        answers.append((text, generation.logprob))
    return answers
