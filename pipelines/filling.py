"""The walk of the packer down a list of ranked passages: keep, cut or drop each, and know why (see `packing.py`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import regex

from pipelines.delimiters import Delimiters, split_template
from pipelines.errors import ShapeError
from retrievers.types import Hit

Encode = Callable[[str], list[int]]
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_CUT_POINT = regex.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")


@dataclass(frozen=True, slots=True)
class Dropped:
    """One passage that the LM does not read. `tokens` is None where it was refused before it was encoded."""

    hit: Hit
    reason: str
    tokens: int | None = None


@dataclass(frozen=True)
class Templates:
    """The parsed templates of passage and question, and their delimiters."""

    passage: tuple[tuple[str, str | None], ...]
    question: tuple[tuple[str, str | None], ...]
    delimiters: Delimiters


@lru_cache(maxsize=64)
def templates(passage: str, question: str, opening: str) -> Templates:
    """Parse once for each set of templates.

    Raises:
        ConfigError: unbalanced braces or an unknown slot.
    """
    of_passage = split_template(passage, frozenset({"title", "text"}))
    of_question = split_template(question, frozenset({"question"}))
    literals = [literal for literal, _ in of_passage + of_question]
    return Templates(tuple(of_passage), tuple(of_question), Delimiters.of([opening, *literals]))


def fill(template: Sequence[tuple[str, str | None]], values: dict[str, str]) -> str:
    """Texts are joined in, never formatted: braces in them mean nothing."""
    return "".join(literal + (values[slot] if slot else "") for literal, slot in template)


@dataclass(frozen=True, slots=True)
class Chosen:
    """A kept passage: its shown text and ids, the tokens of the whole passage, whether it was cut."""

    rank: int
    hit: Hit
    text: str
    ids: list[int]
    whole: int
    cut: bool
    neutralised: int


class Greedy:
    """The packer on its walk down the hits. `room`: tokens that passages may take, None for no limit."""

    def __init__(
        self,
        templates: Templates,
        encode: Encode,
        *,
        room: int | None,
        overflow: str,
        deduplicate: bool,
        per_title_cap: int | None,
        max_passages: int | None,
    ) -> None:
        self.kept: list[Chosen] = []
        self.dropped: list[Dropped] = []
        self._templates, self._encode, self._overflow = templates, encode, overflow
        self._deduplicate, self._per_title_cap, self._max_passages = deduplicate, per_title_cap, max_passages
        self._room = self._left = room
        self._full = False
        self._texts: set[str] = set()
        self._titles: dict[str, int] = {}

    def offer(self, rank: int, hit: Hit) -> None:
        """Keep the hit, or drop it with its reason.

        Raises:
            ShapeError: it does not fit, and overflow is `error`.
        """
        reason = self._refusal(hit)
        if reason is not None:
            self.dropped.append(Dropped(hit, reason))
            return
        title, in_title = self._templates.delimiters.neutralise(hit.title)
        text, in_text = self._templates.delimiters.neutralise(hit.text)
        ids = self._render(title, text)
        whole, cut = len(ids), False
        if self._left is not None and whole > self._left:
            text, ids = self._overflowing(rank, hit, title, text, whole)
            cut = True
            if not ids:
                self.dropped.append(Dropped(hit, "window", whole))
                return
        self.kept.append(Chosen(rank, hit, text, ids, whole, cut, in_title + in_text))
        self._texts.add(_same_text(hit))
        self._titles[hit.title] = self._titles.get(hit.title, 0) + 1
        if self._left is not None:
            self._left -= len(ids)

    def _refusal(self, hit: Hit) -> str | None:
        if self._max_passages is not None and len(self.kept) >= self._max_passages:
            return "max_passages"
        if self._full:
            return "window"
        if self._deduplicate and _same_text(hit) in self._texts:
            return "duplicate"
        cap = self._per_title_cap
        if cap is not None and hit.title and self._titles.get(hit.title, 0) >= cap:
            return "title_cap"
        return None

    def _overflowing(self, rank: int, hit: Hit, title: str, text: str, whole: int) -> tuple[str, list[int]]:
        """What is kept of a passage that does not fit: nothing ("", []), or its beginning."""
        if self._overflow == "error":
            raise ShapeError(
                f"passage {hit.passage_id!r} (rank {rank + 1}) takes {whole} tokens, {self._left} are left of the "
                f"{self._room} for passages; lower max_passages, raise the window, or set overflow to drop or "
                "truncate_last"
            )
        if self._overflow == "truncate_last":
            self._full = True
            return self._cut(title, text)
        self._full = self._room is not None and whole <= self._room
        return "", []

    def _render(self, title: str, text: str) -> list[int]:
        return list(self._encode(fill(self._templates.passage, {"title": title, "text": text})))

    def _cut(self, title: str, text: str) -> tuple[str, list[int]]:
        """The longest run of whole words from the start of `text` that fits; of characters in unspaced scripts."""
        ends = [match.end() for match in _CUT_POINT.finditer(text)]
        best: tuple[str, list[int]] = ("", [])
        low, high = 1, len(ends)
        while low <= high:
            middle = (low + high) // 2
            shown = text[: ends[middle - 1]]
            ids = self._render(title, shown)
            if len(ids) <= (self._left or 0):
                best, low = (shown, ids), middle + 1
            else:
                high = middle - 1
        return best


def _same_text(hit: Hit) -> str:
    return " ".join(hit.text.casefold().split())
