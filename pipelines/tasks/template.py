"""A task's template: text with `{field}` slots that a record's values are joined into. `{{` and `}}` are braces.

The grammar is `frozenlm.prompting.grammar`'s. A field that is missing or null is an error, an empty text is a text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from frozenlm.prompting.grammar import NAME, Slot, pieces, value_text
from pipelines.errors import ConfigError
from pipelines.suggest import did_you_mean


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
        self._pieces = pieces(source, name)
        slots = [piece for piece in self._pieces if isinstance(piece, Slot)]
        for slot in slots:
            if not NAME.fullmatch(slot.inside):
                raise ConfigError(
                    f"{name} has the slot {'{' + slot.inside + '}'!r} at character {slot.at}; a slot is a field's name "
                    "in letters, digits and underscores (rename other fields through `fields`)"
                )
        self.fields = tuple(dict.fromkeys(slot.inside for slot in slots))
        if not self.fields:
            raise ConfigError(f"{name} {source[:60]!r} has no {{field}}, so every record would read the same; add one")

    def render(self, record: Mapping[str, Any], *, where: str) -> str:
        """The text for one record. Numbers and booleans are written as JSON writes them.

        where: the record's place, for messages

        Raises:
            ConfigError: the record lacks a field, has null there, or a list or mapping.
        """
        return "".join(
            piece if isinstance(piece, str) else self._text(record, piece.inside, where) for piece in self._pieces
        )

    def _text(self, record: Mapping[str, Any], field: str, where: str) -> str:
        hint = "" if field in record else did_you_mean(field, sorted(record), listed=False)
        return value_text(record, field, name=self.name, where=where, hint=hint)
