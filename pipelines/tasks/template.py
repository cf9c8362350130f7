"""A template: text with `{field}` slots that a record's values are joined into. `{{` and `}}` are braces.

Parsed once by a grammar of three rules; nothing is ever evaluated, and a value's own braces mean nothing. A field that
is missing or null is an error, an empty text is a text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pipelines.errors import ConfigError
from pipelines.suggest import did_you_mean

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_NAME = re.compile(r"\w+")


class Template:
    """One parsed template.

    Attributes:
        name: what messages call it.
        fields: the fields it reads, in order of first use.

    Raises:
        ConfigError: a lone brace, or a slot that is no field name, with its position; no slot at all.
    """

    def __init__(self, source: str, *, name: str = "template") -> None:
        self.name, self.source = name, source
        self._parts = _parsed(source, name)
        self.fields = tuple(dict.fromkeys(field for _, field in self._parts if field is not None))
        if not self.fields:
            raise ConfigError(f"{name} {source[:60]!r} has no {{field}}, so every record would read the same; add one")

    def render(self, record: Mapping[str, Any], *, where: str) -> str:
        """The text for one record. Numbers and booleans are written as JSON writes them.

        where: the record's place, for messages

        Raises:
            ConfigError: the record lacks a field, has null there, or a list or mapping.
        """
        pieces = []
        for literal, field in self._parts:
            pieces.append(literal)
            if field is not None:
                pieces.append(self._text(record, field, where))
        return "".join(pieces)

    def _text(self, record: Mapping[str, Any], field: str, where: str) -> str:
        if field not in record:
            hint = did_you_mean(field, sorted(record), listed=False)
            raise ConfigError(
                f"{where}: {self.name} reads {{{field}}}, the record has only {', '.join(sorted(record))}{hint}"
            )
        value = record[field]
        if isinstance(value, str):
            return value
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, int | float):
            return str(value)
        got = "null" if value is None else type(value).__name__
        raise ConfigError(f"{where}: {self.name} reads {{{field}}}, which is {got}; expected text or a number")


def _parsed(source: str, name: str) -> list[tuple[str, str | None]]:
    """(literal, field behind it or None) pairs."""
    parts: list[tuple[str, str | None]] = []
    literal, end = "", 0
    for match in _PIECE.finditer(source):
        literal += source[end : match.start()]
        end = match.end()
        piece, slot = match[0], match[1]
        if piece in ("{{", "}}"):
            literal += piece[0]
        elif slot is None:
            raise ConfigError(
                f"{name} has a lone {piece!r} at character {match.start() + 1}; write {piece * 2} for one"
            )
        elif not _NAME.fullmatch(slot):
            raise ConfigError(
                f"{name} has the slot {piece!r} at character {match.start() + 1}; a slot is a field's name in letters, "
                "digits and underscores (rename other fields through `fields`)"
            )
        else:
            parts.append((literal, slot))
            literal = ""
    return [*parts, (literal + source[end:], None)]
