"""Passages and questions must not be able to forge the prompt's own delimiters ("answer :", "### Context").

What counts as a delimiter is read off the templates' literal parts: a label is a word followed by a colon, a mark is
a run without spaces that holds two or more signs ("###", "[INST]", "<|user|>"). Our choice of the cure: behind a label
the colon becomes a space, in a mark the signs do, and line breaks become spaces where the templates use line breaks.
The words stay. Look-alikes by case, accents, full-width forms and invisible characters are found too, since many
tokenizers fold them. This removes forged structure; it makes no model immune to instructions in a passage.
"""

from __future__ import annotations

import string
from collections.abc import Iterable
from dataclasses import dataclass

import regex

from pipelines.errors import ConfigError
from pipelines.folding import fold

_LABEL = regex.compile(r"(\w+)\s*:")
_MARK = regex.compile(r"\S*[^\w\s]\S*[^\w\s]\S*")
_SIGN = regex.compile(r"[^\w\s]")


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

    def _pattern(self) -> regex.Pattern[str] | None:
        options = [regex.escape(mark) for mark in sorted(self.marks, key=len, reverse=True)]
        if self.labels:
            options.append(rf"\b(?:{'|'.join(map(regex.escape, sorted(self.labels)))})(?<colon>\s*:[\s:]*)")
        return regex.compile("|".join(options)) if options else None

    def neutralise(self, text: str) -> tuple[str, int]:
        """The text without a delimiter in it, and how many were taken out (line breaks are not counted).

        Colons at the very start go too: they could complete a label that stands before the slot.
        """
        if self.line_breaks:
            text = regex.sub(r"\s*[\n\r\v\f\x85\u2028\u2029]+\s*", " ", text)
        count = 0
        if self.labels and (stripped := regex.sub(r"^\s*:[\s:]*", "", text)) != text:
            text, count = stripped, 1
        pattern = self._pattern()
        while pattern is not None:
            folded, origin = fold(text)
            found = list(pattern.finditer(folded))
            if not found:
                break
            for match in reversed(found):
                text = _disarm(text, match, origin)
            count += len(found)
        return text, count


def _disarm(text: str, match: regex.Match[str], origin: Iterable[int]) -> str:
    """Replace the match's colon, or all its signs, by a space, in the text that the folded text came from."""
    at = list(origin)
    if match.groupdict().get("colon") is not None:
        first, last = match.span("colon")
        return text[: at[first]] + " " + text[at[last - 1] + 1 :]
    first, last = at[match.start()], at[match.end() - 1] + 1
    inside = {at[i] for i in range(match.start(), match.end()) if _SIGN.match(match.string[i])}
    return text[:first] + "".join(" " if i in inside else text[i] for i in range(first, last)) + text[last:]
