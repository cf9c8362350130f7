"""Passages and questions must not be able to forge the prompt's own delimiters ("answer :", "### Context").

What counts as a delimiter is read off the templates' literal parts: a label is a word followed by a colon, a mark is
a run without spaces that holds two or more signs ("###", "[INST]", "<|user|>"). Our choice of the cure: behind a label
the colon becomes a space, in a mark the signs do, and line breaks become spaces where the templates use line breaks.
The words stay. Look-alikes by case, accents, full-width forms and invisible characters are found too, since many
tokenizers fold them. This removes forged structure; it makes no model immune to instructions in a passage.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import regex

from pipelines.errors import ConfigError
from pipelines.folding import fold

_LABEL = regex.compile(r"(\w+)\s*:")
_MARK = regex.compile(r"\S*[^\w\s]\S*[^\w\s]\S*")
_SIGN = regex.compile(r"[^\w\s]")
_LINE_BREAKS = regex.compile(r"\s*[\n\r\v\f\x85\u2028\u2029]+\s*")
_LEADING_COLONS = regex.compile(r"^\s*[:：][\s:：]*")


def split_template(template: str, slots: frozenset[str]) -> list[tuple[str, str | None]]:
    """A template as (literal text, name of the slot behind it or None) pairs; `{{` and `}}` are braces.

    Raises:
        ConfigError: unbalanced braces, a slot that is not in `slots`, or a format or conversion inside a slot.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(f"template {template!r} cannot be read ({error}); write {{{{ and }}}} for braces") from error
    for _, slot, form, conversion in parts:
        if slot is not None and (slot not in slots or form or conversion):
            allowed = ", ".join(f"{{{name}}}" for name in sorted(slots))
            raise ConfigError(f"template {template!r} has the slot {{{slot}}}; allowed are {allowed}, nothing inside")
    return [(literal, slot) for literal, slot, _, _ in parts]


@dataclass(frozen=True)
class Delimiters:
    """The delimiters of one set of templates, and what takes their force away in a text that is not ours."""

    labels: frozenset[str]
    marks: frozenset[str]
    line_breaks: bool

    @classmethod
    def of(cls, literals: Iterable[str]) -> Delimiters:
        """Read them off the templates' literal parts."""
        literals = list(literals)
        folded = [fold(literal)[0] for literal in literals]
        labels = {label for literal in folded for label in _LABEL.findall(literal)}
        marks = {mark for literal in folded for mark in _MARK.findall(_LABEL.sub(" ", literal))}
        return cls(frozenset(labels), frozenset(marks), any("\n" in literal for literal in literals))

    @cached_property
    def _pattern(self) -> regex.Pattern[str] | None:
        options = [regex.escape(mark) for mark in sorted(self.marks, key=lambda mark: (-len(mark), mark))]
        if self.labels:
            words = "|".join(map(regex.escape, sorted(self.labels)))
            options.append(rf"(?<![\p{{L}}\p{{N}}])(?:{words})(?<colon>\s*:[\s:]*)")
        return regex.compile("|".join(options)) if options else None

    def neutralise(self, text: str) -> tuple[str, int]:
        """The text without a delimiter in it, and how many were taken out (line breaks are not counted).

        Colons at the very start go too: they could complete a label that stands before the slot.
        """
        if self.line_breaks:
            text = _LINE_BREAKS.sub(" ", text)
        count, more = 0, True
        while more:  # what is taken out may leave a delimiter behind: "##:" a leading colon
            more = False
            if self.labels and (stripped := _LEADING_COLONS.sub("", text)) != text:
                text, count, more = stripped, count + 1, True
            folded, origin = fold(text)
            if found := list(self._pattern.finditer(folded)) if self._pattern is not None else []:
                text = _without(text, [_removal(match, origin) for match in found])
                count, more = count + len(found), True
        return text, count


def _removal(match: regex.Match[str], origin: Sequence[int]) -> tuple[list[int], bool]:
    """Places in the original text that must go, and whether they are one run that becomes a single space."""
    if match.groupdict().get("colon") is not None:
        first, last = match.span("colon")
        return list(range(origin[first], origin[last - 1] + 1)), True
    signs = [i for i in range(*match.span()) if _SIGN.match(match.string[i])]
    return [origin[i] for i in signs], False


def _without(text: str, removals: Sequence[tuple[list[int], bool]]) -> str:
    characters = list(text)
    for places, as_one in removals:
        for n, place in enumerate(places):
            characters[place] = "" if as_one and n else " "
    return "".join(characters)
