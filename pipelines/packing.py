"""Packing of the frozen reader (Levine et al. 2022, arXiv 2204.10019, section 3): passages are added greedily in
descending order until the LM's window is full.

Each piece (opening, passage, question) is encoded alone and the ids are joined, so counts are exact by construction
and nothing is ever cut from a finished prompt. Whole passages only, unless `overflow: truncate_last`. Our choice, where
the paper is silent: packing stops at the first passage that does not fit into what is left, so that no worse passage
takes a better one's place; a passage that would not even fit into an empty window never can, and is passed over.
Orders, duplicate removal and caps are ours too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pipelines.errors import ConfigError, ShapeError
from pipelines.filling import Chosen, Dropped, Encode, Greedy, fill, templates
from retrievers.types import Hit

REASONS = ("window", "duplicate", "title_cap", "max_passages")
OVERFLOWS = ("drop", "truncate_last", "error")
ORDERS = ("best_first", "best_last", "best_ends")


@dataclass(frozen=True, slots=True)
class KeptPassage:
    """One passage as it stands in the LM's window.

    Attributes:
        hit: as it was offered.
        start, end: its tokens are `context_ids[start:end]`.
        tokens: how many these are.
        truncated: tokens that were cut off its end, 0 for a whole passage.
        text: the passage's text that the LM really reads, delimiters neutralised, cut where it was cut: recall@context
            is measured on it.
        rank: its place among the offered hits, from 0.
    """

    hit: Hit
    start: int
    end: int
    tokens: int
    truncated: int = 0
    text: str = ""
    rank: int = 0


@dataclass(frozen=True, slots=True)
class PackingReport:
    """What became of the offered passages; `kept + sum(dropped.values()) == offered` always.

    Attributes:
        offered, kept: passages.
        dropped: passages by reason: `window`, `duplicate`, `title_cap`, `max_passages`.
        truncated: passages that were cut, 0 or 1.
        truncated_tokens: tokens cut off.
        tokens: length of `context_ids`: opening, passages and question.
        passage_tokens: of these, the passages'.
        budget: the most that `tokens` may be; None without a window.
        neutralised: delimiters taken out of passages and question.
    """

    offered: int
    kept: int
    dropped: dict[str, int] = field(default_factory=dict)
    truncated: int = 0
    truncated_tokens: int = 0
    tokens: int = 0
    passage_tokens: int = 0
    budget: int | None = None
    neutralised: int = 0


@dataclass(frozen=True, slots=True)
class Packed:
    """One question's context: `context_ids` is opening, passages and question. Soft tokens are not among them.

    Attributes:
        opening_ids: as given.
        passage_ids: one list a kept passage, in reading order, parallel to `kept`.
        question_ids: the question with its template.
        kept: the passages in reading order.
        dropped: the others, in the order offered.
    """

    opening_ids: list[int]
    passage_ids: list[list[int]]
    question_ids: list[int]
    kept: list[KeptPassage]
    dropped: list[Dropped]
    report: PackingReport

    @property
    def context_ids(self) -> list[int]:
        """Every token id of the row, in order."""
        return [*self.opening_ids, *(i for ids in self.passage_ids for i in ids), *self.question_ids]


def pack(
    question: str,
    hits: Sequence[Hit],
    *,
    encode: Encode,
    passage: str = "title : {title} text : {text} ",
    question_template: str = "question : {question} answer :",
    opening: str = "",
    opening_ids: Sequence[int] = (),
    soft_tokens: int = 0,
    window: int | None = None,
    answer_reserve: int = 32,
    overflow: str = "drop",
    order: str = "best_last",
    deduplicate: bool = True,
    per_title_cap: int | None = None,
    max_passages: int | None = None,
) -> Packed:
    """Fill the window with passages, best first. The budget of ids is `window - answer_reserve - soft_tokens`.

    Args:
        question: as asked; its delimiters are neutralised, it is never cut.
        hits: passages in descending order of worth.
        encode: the LM's tokenizer without special tokens; special tokens in a text are read as plain text.
        passage: template of one passage, with the slots {title} and {text}.
        question_template: with the slot {question}.
        opening: text that opens the row; only its delimiters are looked at, its ids come in `opening_ids`.
        opening_ids: the first ids of the row: the LM's `bos_ids` and the encoded `opening`.
        soft_tokens: soft tokens that will stand in the row beside these ids.
        window: tokens that the row may take with soft tokens and answer: the LM's window, or less; None for no limit.
        answer_reserve: tokens kept free for the answer.
        overflow: of a passage that does not fit into what is left: `drop` leaves it out, `truncate_last` cuts it behind
            a word, `error` raises. A passage longer than an empty window is dropped, cut or raised for in the same way.
        order: how the kept passages are laid out: `best_first`, `best_last` (next to the question) or `best_ends`.
        deduplicate: leave out a text that is kept already, up to case and white space.
        per_title_cap: at most so many passages of one title; passages without a title are not counted.
        max_passages: keep at most so many.

    Raises:
        ConfigError: answer reserve and soft tokens leave no window; an unknown slot, overflow or order.
        ShapeError: opening and question alone exceed the budget; with `overflow: error`, a passage does not fit.
    """
    if overflow not in OVERFLOWS or order not in ORDERS:
        raise ConfigError(f"got overflow={overflow!r}, order={order!r}; expected one of {OVERFLOWS} and of {ORDERS}")
    parsed = templates(passage, question_template, opening)
    budget = _budget(window, answer_reserve, soft_tokens)
    question_text, neutralised = parsed.delimiters.neutralise(question)
    question_ids = list(encode(fill(parsed.question, {"question": question_text})))
    fixed = len(opening_ids) + len(question_ids)
    if budget is not None and fixed > budget:
        raise ShapeError(
            f"the question takes {len(question_ids)} tokens and the opening {len(opening_ids)}, but only {budget} "
            f"of the window's {window} are left after answer_reserve={answer_reserve} and {soft_tokens} soft tokens; "
            "shorten the question or raise the window"
        )
    greedy = Greedy(
        parsed,
        encode,
        room=None if budget is None else budget - fixed,
        overflow=overflow,
        deduplicate=deduplicate,
        per_title_cap=per_title_cap,
        max_passages=max_passages,
    )
    for rank, hit in enumerate(hits):
        greedy.offer(rank, hit)
    chosen = _reading_order(greedy.kept, order)
    kept: list[KeptPassage] = []
    at = len(opening_ids)
    for one in chosen:
        end, cut = at + len(one.ids), one.whole - len(one.ids)
        kept.append(KeptPassage(one.hit, at, end, len(one.ids), truncated=cut, text=one.text, rank=one.rank))
        at = end
    report = PackingReport(
        offered=len(hits),
        kept=len(kept),
        dropped={reason: sum(one.reason == reason for one in greedy.dropped) for reason in REASONS},
        truncated=sum(one.cut for one in chosen),
        truncated_tokens=sum(one.truncated for one in kept),
        tokens=at + len(question_ids),
        passage_tokens=at - len(opening_ids),
        budget=budget,
        neutralised=neutralised + sum(one.neutralised for one in chosen),
    )
    return Packed(list(opening_ids), [one.ids for one in chosen], question_ids, kept, greedy.dropped, report)


def _budget(window: int | None, answer_reserve: int, soft_tokens: int) -> int | None:
    if window is None:
        return None
    budget = window - answer_reserve - soft_tokens
    if budget <= 0:
        raise ConfigError(
            f"a window of {window} tokens leaves {budget} for passages and question after "
            f"answer_reserve={answer_reserve} and {soft_tokens} soft tokens; raise max_tokens or lower the other two"
        )
    return budget


def _reading_order(kept: list[Chosen], order: str) -> list[Chosen]:
    """`best_ends`: rank 1 first, rank 2 last, rank 3 second, and so on; the middle is read worst (arXiv 2307.03172)."""
    if order == "best_last":
        return kept[::-1]
    if order == "best_ends":
        return kept[::2] + kept[1::2][::-1]
    return list(kept)
