"""From the pieces that a tokenizer decodes to the text that a reader expects. Our choice; the paper says nothing of it.

A lower-casing WordPiece tokenizer cannot give back what it was given: "1,350" comes out as "1, 350", "Jean-Paul" as
"jean - paul", "Wilhelm Röntgen" as "wilhelm rontgen". Exact match takes the lost case and commas in its stride, but not
a gap or an accent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import regex

from pipelines.folding import fold

_UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}]")
_DIGIT_GAPS = (
    (regex.compile(r"(?<![\d.,])(\d{1,3})((?:\s*,\s*\d{3})+)(?!\d)"), lambda m: m[1] + regex.sub(r"\s+", "", m[2])),
    (regex.compile(r"(?<=\d)\s*([.:])\s+(?=\d)|(?<=\d)\s+([.:])\s*(?=\d)"), lambda m: m[1] or m[2]),
    (regex.compile(r"(?<=\d)\s+([-–])\s+(?=\d)"), lambda m: m[1]),
    (regex.compile(r"(?<=[$€£¥])\s+(?=\d)|(?<=\d)\s+(?=%)"), lambda _: ""),
)


def clean(text: str, context_texts: Iterable[str] = (), *, join_digits: bool = True, as_in_passage: bool = True) -> str:
    """A decoded answer made readable: white space squeezed, then its spelling in the context, else its numbers closed.

    Args:
        text: what the LM generated, decoded.
        context_texts: the passages that the LM read; the first that has the answer decides the spelling.
        join_digits: see `close_numbers`.
        as_in_passage: see `spelling_in`.
    """
    text = " ".join(text.split())
    if as_in_passage:
        for context in context_texts:
            if (spelled := spelling_in(context, text)) is not None:
                return spelled
    return close_numbers(text) if join_digits else text


def close_numbers(text: str) -> str:
    """Close the gaps inside numbers: `1, 350` `3. 5` `10 : 30` `1990 - 91` `$ 12` `5 %`.

    A comma is closed only where it groups thousands, that is between one to three digits and exactly three: "in 1990,
    200 men" and "1, 2" stay as they are. A list such as "3, 400" is taken for a number: its tokens are the same.
    """
    for pattern, joined in _DIGIT_GAPS:
        text = pattern.sub(joined, text)
    return text


def spelling_in(context: str, answer: str) -> str | None:
    """The first whole-word occurrence of `answer` in `context` as it is written there, or None.

    Case, accents, width of characters, and white space beside punctuation are ignored, as is white space in scripts
    that use none. White space between two words is not: "a way" is not found in "away".
    """
    wanted, _ = _canonical(answer)
    if not wanted:
        return None
    folded, origin = _canonical(context)
    at = folded.find(wanted)
    while at >= 0:
        end = at + len(wanted)
        first, last = origin[at], origin[end - 1]
        cuts_a_character = (at > 0 and origin[at - 1] == first) or (end < len(origin) and origin[end] == last)
        if not cuts_a_character and _edge(context, first - 1, first) and _edge(context, last, last + 1):
            return " ".join(_with_marks(context, first, last).split())
        at = folded.find(wanted, at + 1)
    return None


def _canonical(text: str) -> tuple[str, Sequence[int]]:
    """Folded, with white space only where it parts two words; and where each character came from."""
    folded, origin = fold(text)
    kept: list[int] = []
    gap: int | None = None
    for i, character in enumerate(folded):
        if character.isspace():
            gap = i if gap is None else gap
            continue
        if gap is not None and kept and _spaced(folded[kept[-1]]) and _spaced(character):
            kept.append(gap)
        gap = None
        kept.append(i)
    return "".join(" " if folded[i].isspace() else folded[i] for i in kept), [origin[i] for i in kept]


def _spaced(character: str) -> bool:
    return character.isalnum() and not _UNSPACED.match(character)


def _edge(text: str, left: int, right: int) -> bool:
    """Whether a word may begin or end between two neighbouring places of `text`."""
    if left < 0:
        return True
    while right < len(text) and regex.match(r"[\p{M}\p{Cf}]", text[right]):
        right += 1
    return right >= len(text) or not (_spaced(text[left]) and _spaced(text[right]))


def _with_marks(text: str, first: int, last: int) -> str:
    """`text[first..last]` with the combining marks that follow its last character."""
    while last + 1 < len(text) and regex.match(r"\p{M}", text[last + 1]):
        last += 1
    return text[first : last + 1]
