"""The grammar of templates: text with slots in braces; `{{` and `}}` are braces.

Three rules, applied by one regular expression; nothing is ever evaluated, and a value's own braces mean nothing. What a
slot's inside means is the caller's: `frozenlm.prompting.template` knows fields, soft slots and the answer, a task's
template in a config file knows fields only. Needs no torch.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from frozenlm.errors import ConfigError

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
NAME = re.compile(r"\w+")


@dataclass(frozen=True)
class Slot:
    """inside: what stands between the braces; at: its place in the source, from 1"""

    inside: str
    at: int


def pieces(source: str, name: str) -> list[str | Slot]:
    """The source in order: texts, none of them empty, and slots. name: what messages call the template.

    Raises: ConfigError for a lone brace, with its position, or what is no text.
    """
    if not isinstance(source, str):
        raise ConfigError(f"{name} is {type(source).__name__}; expected text")
    found: list[str | Slot] = []
    literal, end = "", 0
    for match in _PIECE.finditer(source):
        literal += source[end : match.start()]
        end = match.end()
        piece, inside = match[0], match[1]
        if piece in ("{{", "}}"):
            literal += piece[0]
        elif inside is None:
            raise ConfigError(
                f"{name} has a lone {piece!r} at character {match.start() + 1}; write {piece * 2} for one"
            )
        else:
            found += [literal, Slot(inside, match.start() + 1)]
            literal = ""
    return [piece for piece in (*found, literal + source[end:]) if piece != ""]


def escaped(text: str) -> str:
    """A text as a template has to spell it."""
    return text.replace("{", "{{").replace("}", "}}")


def value_text(record: Mapping[str, Any], field: str, *, name: str, where: str, hint: str = "") -> str:
    """The text of a record's field. Numbers and booleans are written as JSON writes them.

    name, where: the template and the record's place, for messages; hint: what a message about a missing field ends with

    Raises: ConfigError for what is no record, or where it lacks the field, has null there, or a list or mapping.
    """
    if not isinstance(record, Mapping):
        raise ConfigError(f"{where} is {type(record).__name__}; expected a mapping of fields to text")
    if field not in record:
        raise ConfigError(
            f"{where}: {name} reads {{{field}}}, the record has only {', '.join(sorted(map(str, record)))}{hint}"
        )
    value = record[field]
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    got = "null" if value is None else type(value).__name__
    raise ConfigError(f"{where}: {name} reads {{{field}}}, which is {got}; expected text or a number")
