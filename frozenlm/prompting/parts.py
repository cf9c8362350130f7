"""The parts of a template, and their two spellings: in text, and as data.

`template.py` says what they mean.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from frozenlm.errors import ConfigError
from frozenlm.prompting.grammar import NAME, Slot, escaped

_SOFT = re.compile(r"soft:(\w+)(?:\*(\d{1,4}))?(?::(.*))?", re.DOTALL)


@dataclass(frozen=True)
class Field:
    """A field of the record."""

    name: str


@dataclass(frozen=True)
class SoftSlot:
    """Learned vectors. length: how many, None for one an initial token; init: words to begin at, None to draw."""

    id: str
    length: int | None = None
    init: str | None = None


@dataclass(frozen=True)
class Answer:
    """Where the answer belongs."""


Part = str | Field | SoftSlot | Answer


def merged(known: SoftSlot | None, slot: SoftSlot, name: str) -> SoftSlot:
    """One description of a slot that stands in several places.

    Raises: ConfigError where two places say different things.
    """
    if known is None:
        return slot
    for one, other in ((known.length, slot.length), (known.init, slot.init)):
        if one is not None and other is not None and one != other:
            raise ConfigError(
                f"{name}: soft slot {slot.id!r} is given as {spelled(known)} and as {spelled(slot)}; one id is one "
                "set of vectors: say it once, and use the bare {soft:id} elsewhere"
            )
    return SoftSlot(slot.id, known.length or slot.length, known.init if known.init is not None else slot.init)


def joined(parts: Iterable[Part]) -> tuple[Part, ...]:
    """The same without empty texts, and with texts side by side as one."""
    found: list[Part] = []
    for part in parts:
        if isinstance(part, str) and found and isinstance(found[-1], str):
            found[-1] += part
        elif part != "":
            found.append(part)
    return tuple(found)


def without_soft(parts: Iterable[Part]) -> tuple[Part, ...]:
    """What a reader sees: a soft slot is left out with a space beside it, where two would meet, or one stand at an end
    of the whole."""
    whole, found = joined(parts), list[Part]()
    left_out = False
    for part in whole:
        if isinstance(part, SoftSlot):
            left_out = True
            continue
        before = found[-1] if found else " "
        if left_out and isinstance(part, str) and isinstance(before, str) and before[-1].isspace():
            part = part.removeprefix(" ")
        found += [part] if part != "" else []
        left_out = left_out and part == ""
    if left_out and found and isinstance(found[-1], str):
        found[-1] = found[-1].removesuffix(" ")
    return joined(found)


def from_slot(slot: Slot, name: str) -> Part:
    """What stands between braces.

    Raises: ConfigError, with its position.
    """
    if slot.inside == "answer":
        return Answer()
    soft = _SOFT.fullmatch(slot.inside)
    if soft and (soft[3] is None or soft[3].strip()) and soft[2] != "0":
        return SoftSlot(soft[1], None if soft[2] is None else int(soft[2]), soft[3])
    if NAME.fullmatch(slot.inside):
        return Field(slot.inside)
    raise ConfigError(
        f"{name} has the slot {'{' + slot.inside + '}'!r} at character {slot.at}; expected a field's name, {{answer}}, "
        "{soft:id}, {soft:id*length} or {soft:id:first words}"
    )


def from_data(part: Any, where: str) -> Part:
    """What a mapping says.

    Raises: ConfigError.
    """
    keys = set(part) if isinstance(part, Mapping) else set()
    if keys == {"text"} and isinstance(part["text"], str):
        return part["text"]
    if keys == {"answer"} and part["answer"] is True:
        return Answer()
    if keys == {"field"} and isinstance(part["field"], str) and NAME.fullmatch(part["field"]):
        return Field(part["field"])
    if "soft" in keys and keys <= {"soft", "length", "init"}:
        id_, length, init = part["soft"], part.get("length"), part.get("init")
        named = isinstance(id_, str) and NAME.fullmatch(id_)
        begun = init is None or (isinstance(init, str) and init.strip())
        if named and begun and (length is None or (type(length) is int and length >= 1)):
            return SoftSlot(id_, length, init)
    raise ConfigError(
        f"{where} is {part!r:.80}; expected {{text: ...}}, {{field: name}}, {{soft: id}} with an optional length and "
        "init, or {answer: true}"
    )


def to_data(part: Part) -> dict[str, Any]:
    """What `from_data` reads."""
    if isinstance(part, str):
        return {"text": part}
    if isinstance(part, Field):
        return {"field": part.name}
    if isinstance(part, Answer):
        return {"answer": True}
    more = {"length": part.length, "init": part.init}
    return {"soft": part.id, **{key: value for key, value in more.items() if value is not None}}


def as_text(parts: Iterable[Part]) -> str:
    """A whole template as text."""
    return "".join(escaped(part) if isinstance(part, str) else spelled(part) for part in parts)


def spelled(part: Field | SoftSlot | Answer) -> str:
    """What `from_slot` reads, braces included."""
    if isinstance(part, Field):
        return f"{{{part.name}}}"
    if isinstance(part, Answer):
        return "{answer}"
    length = "" if part.length is None else f"*{part.length}"
    init = "" if part.init is None else f":{part.init}"
    return f"{{soft:{part.id}{length}{init}}}"
