"""Packing of the frozen reader (Levine et al. 2022, arXiv 2204.10019, section 3): passages are added greedily in descending order
until the LM's window is full.

Each piece (opening, passage, question) is encoded alone and the ids are joined, so counts are exact by construction and nothing is ever cut
from a finished prompt. Whole passages only, unless `overflow: truncate_last`. Our choice, where the paper is silent: packing stops at the
first passage that does not fit into what is left, so that no worse passage takes a better one's place; a passage that would not even fit
into an empty window never can, and is passed over. Orders, duplicate removal and caps are ours too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import regex

from pipelines.config import Packing
from pipelines.delimiters import Delimiters, split_template
from pipelines.errors import ConfigError, ShapeError
from retrievers.types import Hit

REASONS = ("window", "duplicate", "title_cap", "max_passages")
Encode = Callable[[str], list[int]]


@dataclass(frozen=True, slots=True)
class KeptPassage:
    """One passage as it stands in the LM's window.

    Attributes:
        hit: as it was offered.
        start, end: its tokens are `context_ids[start:end]`.
        tokens: how many these are.
        truncated: tokens that were cut off its end, 0 for a whole passage.
        text: the passage's text that the LM really reads: delimiters neutralised, cut where it was cut. Recall@context is measured on it.
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
class Dropped:
    """One passage that the LM does not read. `tokens` is None where packing had stopped before it and it was never encoded."""

    hit: Hit
    reason: str
    tokens: int | None = None


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
        budget: the most that `tokens` may be; None where neither window nor `max_tokens` bounds it.
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
    """One question's context. The ids of the row are `opening_ids + passage ids + question_ids`; soft tokens are not among them.

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


@dataclass(frozen=True)
class _Templates:
    passage: tuple[tuple[str, str | None], ...]
    question: tuple[tuple[str, str | None], ...]
    delimiters: Delimiters


@lru_cache(maxsize=64)
def _templates(passage: str, question: str, opening: str) -> _Templates:
    of_passage = split_template(passage, frozenset({"title", "text"}))
    of_question = split_template(question, frozenset({"question"}))
    literals = [literal for literal, _ in of_passage + of_question]
    return _Templates(tuple(of_passage), tuple(of_question), Delimiters.of([opening, *literals]))


def _fill(template: Sequence[tuple[str, str | None]], values: dict[str, str]) -> str:
    """Texts are joined in, never formatted: braces in them mean nothing."""
    return "".join(literal + (values[slot] if slot else "") for literal, slot in template)


def pack(
    question: str,
    hits: Sequence[Hit],
    *,
    encode: Encode,
    packing: Packing | None = None,
    opening_ids: Sequence[int] = (),
    soft_tokens: int = 0,
    window: int | None = None,
) -> Packed:
    """Fill the window with passages, best first.

    Args:
        question: as asked; its delimiters are neutralised, it is never cut.
        hits: passages in descending order of worth.
        encode: the LM's tokenizer without special tokens, special tokens in a text read as plain text.
        packing: templates, limits and order; the defaults of `pipelines.config.Packing` without it.
        opening_ids: the first ids of the row: the LM's `bos_ids` and the encoded `packing.opening`.
        soft_tokens: soft tokens that will stand in the row beside these ids.
        window: the LM's window, tokens; None for no limit.

    Raises:
        ConfigError: answer reserve and soft tokens leave no window; a template has an unknown slot.
        ShapeError: opening and question alone exceed the budget; with `overflow: error`, a passage does not fit.
    """
    packing = packing or Packing()
    templates = _templates(packing.passage, packing.question, packing.opening)
    budget = _budget(packing, soft_tokens, window)
    question_text, neutralised = templates.delimiters.neutralise(question)
    question_ids = encode(_fill(templates.question, {"question": question_text}))
    fixed = len(opening_ids) + len(question_ids)
    if budget is not None and fixed > budget:
        raise ShapeError(
            f"the question takes {len(question_ids)} tokens and the opening {len(opening_ids)}, but only {budget} are left of the "
            f"window after answer_reserve={packing.answer_reserve} and {soft_tokens} soft tokens; shorten the question or raise the window"
        )
    chosen = _Greedy(packing, templates, encode, None if budget is None else budget - fixed)
    for rank, hit in enumerate(hits):
        chosen.offer(rank, hit)
    kept: list[KeptPassage] = []
    at = len(opening_ids)
    reading_order = _reading_order(chosen.kept, packing.order)
    for one in reading_order:
        end = at + len(one.ids)
        cut = one.whole - len(one.ids)
        kept.append(KeptPassage(one.hit, at, end, len(one.ids), truncated=cut, text=one.text, rank=one.rank))
        at = end
    report = PackingReport(
        offered=len(hits),
        kept=len(kept),
        dropped={reason: sum(one.reason == reason for one in chosen.dropped) for reason in REASONS},
        truncated=sum(one.truncated > 0 for one in kept),
        truncated_tokens=sum(one.truncated for one in kept),
        tokens=at + len(question_ids),
        passage_tokens=at - len(opening_ids),
        budget=budget,
        neutralised=neutralised + sum(one.neutralised for one in reading_order),
    )
    return Packed(list(opening_ids), [one.ids for one in reading_order], question_ids, kept, chosen.dropped, report)


def _budget(packing: Packing, soft_tokens: int, window: int | None) -> int | None:
    limits = [limit for limit in (window, packing.max_tokens) if limit is not None]
    if not limits:
        return None
    budget = min(limits) - packing.answer_reserve - soft_tokens
    if budget <= 0:
        raise ConfigError(
            f"a window of {min(limits)} tokens leaves {budget} for passages and question after answer_reserve="
            f"{packing.answer_reserve} and {soft_tokens} soft tokens; raise max_tokens or lower the other two"
        )
    return budget


@dataclass(frozen=True, slots=True)
class _Chosen:
    rank: int
    hit: Hit
    text: str
    ids: list[int]
    whole: int
    neutralised: int


class _Greedy:
    """The packer's state while it walks down the list of hits. `room` is what passages may take, tokens; None for no limit."""

    def __init__(self, packing: Packing, templates: _Templates, encode: Encode, room: int | None) -> None:
        self.kept: list[_Chosen] = []
        self.dropped: list[Dropped] = []
        self._packing, self._templates, self._encode = packing, templates, encode
        self._room = self._left = room
        self._full = False
        self._texts: set[str] = set()
        self._titles: dict[str, int] = {}

    def offer(self, rank: int, hit: Hit) -> None:
        reason = self._refusal(hit)
        if reason is not None:
            self.dropped.append(Dropped(hit, reason))
            return
        neutralise = self._templates.delimiters.neutralise
        title, in_title = neutralise(hit.title)
        text, in_text = neutralise(hit.text)
        ids = self._render(title, text)
        whole = len(ids)
        if self._left is not None and whole > self._left:
            if self._packing.overflow == "error":
                raise ShapeError(
                    f"passage {hit.passage_id!r} (rank {rank + 1}) takes {whole} tokens, {self._left} are left of the {self._room} for "
                    "passages; lower max_passages, raise the window, or use overflow drop or truncate_last"
                )
            fits_alone = self._room is not None and whole <= self._room
            self._full = fits_alone or self._packing.overflow == "truncate_last"
            text, ids = self._cut(title, text) if self._packing.overflow == "truncate_last" else ("", [])
            if not ids:
                self.dropped.append(Dropped(hit, "window", whole))
                return
        self.kept.append(_Chosen(rank, hit, text, ids, whole, in_title + in_text))
        self._texts.add(_same_text(hit))
        self._titles[hit.title] = self._titles.get(hit.title, 0) + 1
        if self._left is not None:
            self._left -= len(ids)

    def _refusal(self, hit: Hit) -> str | None:
        packing = self._packing
        if packing.max_passages is not None and len(self.kept) >= packing.max_passages:
            return "max_passages"
        if self._full:
            return "window"
        if packing.deduplicate and _same_text(hit) in self._texts:
            return "duplicate"
        if packing.per_title_cap is not None and hit.title and self._titles.get(hit.title, 0) >= packing.per_title_cap:
            return "title_cap"
        return None

    def _render(self, title: str, text: str) -> list[int]:
        return self._encode(_fill(self._templates.passage, {"title": title, "text": text}))

    def _cut(self, title: str, text: str) -> tuple[str, list[int]]:
        """The longest run of whole words from the start of `text` that fits into what is left; ("", []) where not one does."""
        ends = [match.end() for match in regex.finditer(r"\S+", text)]
        room = self._left or 0
        low, high = 0, len(ends)
        while low < high:
            middle = (low + high + 1) // 2
            if len(self._render(title, text[: ends[middle - 1]])) <= room:
                low = middle
            else:
                high = middle - 1
        if low == 0:
            return "", []
        shown = text[: ends[low - 1]]
        return shown, self._render(title, shown)


def _same_text(hit: Hit) -> str:
    return " ".join(hit.text.casefold().split())


def _reading_order(kept: list[_Chosen], order: str) -> list[_Chosen]:
    """`best_ends` puts rank 1 first, rank 2 last, rank 3 second, and so on: the middle is read worst (arXiv 2307.03172)."""
    if order == "best_last":
        return kept[::-1]
    if order == "best_ends":
        return kept[::2] + kept[1::2][::-1]
    return list(kept)
