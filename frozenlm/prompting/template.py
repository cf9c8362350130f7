"""Templates: PET (Schick & Schuetze 2021, arXiv 2001.07676) and OpenPrompt (Ding et al. 2022, arXiv 2111.01998).

    Template.parse("Review: {text}\\nAll in all, it was {answer}")
    Template.parse("{soft:lead:It was} {text} {soft:lead} {answer}.")

    text            as it stands; `{{` and `}}` are braces
    {name}          a field of the record
    {soft:id}       learned vectors: one, drawn from the vocabulary; {soft:id*5} five of them; {soft:id:words} begins at
                    the embeddings of the words, {soft:id*5:words} too, repeated or cut. One id is one set of vectors,
                    wherever it stands and in whichever template
    {answer}        where the answer belongs, exactly once. The field called answer, if any, needs another name

The same as data: [{"text": ...}, {"field": ...}, {"soft": id, "length": n, "init": words}, {"answer": true}].

Where the answer may stand. Decoder-only LM: last; only white space may follow, which is left out. Masked LM: anywhere.
Encoder-decoder: where it stands last, the encoder's input ends there and the decoder is asked for the answer at once,
as T0 and Flan do; elsewhere the encoder reads the sentinel `<extra_id_0>` in its place and the decoder goes on from
that sentinel, as T5 was pretrained; `sentinel=True` asks for it in last place too.

Our choices. Text and values between soft slots and the answer are tokenised as one text, so the tokens are those of the
finished text. A space right before the answer belongs to the answer's word; right behind a field or a soft slot the
word has one too, also in the text of a demonstration. A record that does not fit loses the end
of one field, by whole words where it has several, until it fits: the longest first, or those named by `cut` in their
order, each down to nothing before the next. Text, soft slots and answer are never cut; what was cut is counted.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from frozenlm.errors import ConfigError, ShapeError
from frozenlm.prompting.filled import SENTINEL, Filled, PromptHost, control_id
from frozenlm.prompting.grammar import pieces, value_text
from frozenlm.prompting.parts import (
    Answer,
    Field,
    Part,
    SoftSlot,
    as_text,
    from_data,
    from_slot,
    joined,
    merged,
    to_data,
    without_soft,
)
from frozenlm.rows import Row, Segment, Soft, Tokens, row_length

if TYPE_CHECKING:
    from frozenlm.prompting.masked import FrozenMaskedLM
    from frozenlm.prompting.soft_slots import SoftSlots

_WORD_END = re.compile(r"(?<=\S)(?=\s|$)")


class Template:
    """Parts in order. Make one with `parse` or `from_parts`.

    cut: fields in the order in which they give way; empty for the longest first
    sentinel: for encoder-decoders, put the sentinel in the answer's place even where that is last
    name: what messages call it

    Attributes:
        parts: texts, none empty and no two side by side, `Field`, `SoftSlot` and one `Answer`.
        fields: names in order of first use.
        soft: the soft slots by id; where an id stands several times, the one that says most.

    Raises: ConfigError without exactly one answer, for a soft slot described in two ways, or an unknown field in cut.
    """

    def __init__(
        self, parts: Iterable[Part], *, cut: Sequence[str] = (), sentinel: bool = False, name: str = "template"
    ) -> None:
        self.parts, self.cut, self.sentinel, self.name = joined(parts), tuple(cut), sentinel, name
        answers = sum(isinstance(part, Answer) for part in self.parts)
        if answers != 1:
            raise ConfigError(f"{name} has {answers} slots {{answer}}; expected exactly one")
        self.fields = tuple(dict.fromkeys(part.name for part in self.parts if isinstance(part, Field)))
        self.soft: dict[str, SoftSlot] = {}
        for part in self.parts:
            if isinstance(part, SoftSlot):
                self.soft[part.id] = merged(self.soft.get(part.id), part, name)
        unknown = [field for field in self.cut if field not in self.fields]
        if unknown:
            raise ConfigError(f"{name}: cut names {unknown}; the template has the fields {list(self.fields)}")

    @classmethod
    def parse(
        cls, source: str, *, cut: Sequence[str] = (), sentinel: bool = False, name: str = "template"
    ) -> "Template":
        """From text.

        Raises: ConfigError for a lone brace or a slot that is none of the above, with its position; as the class.
        """
        parts = [piece if isinstance(piece, str) else from_slot(piece, name) for piece in pieces(source, name)]
        return cls(parts, cut=cut, sentinel=sentinel, name=name)

    @classmethod
    def from_parts(
        cls,
        parts: Sequence[Mapping[str, Any]],
        *,
        cut: Sequence[str] = (),
        sentinel: bool = False,
        name: str = "template",
    ) -> "Template":
        """From data, such as a JSON list.

        Raises: ConfigError for a part that is none of the above, with its number; as the class.
        """
        read = [from_data(part, f"{name}, part {number}") for number, part in enumerate(parts)]
        return cls(read, cut=cut, sentinel=sentinel, name=name)

    def to_parts(self) -> list[dict[str, Any]]:
        """What `from_parts` reads."""
        return [to_data(part) for part in self.parts]

    def __str__(self) -> str:
        """What `parse` reads."""
        return as_text(self.parts)

    @property
    def spaced(self) -> bool:
        """Whether the answer's word follows a space."""
        before = self.parts[self._place - 1] if self._place else ""
        return not isinstance(before, str) or before.endswith(" ")

    @property
    def last(self) -> bool:
        """Whether nothing but white space follows the answer."""
        return all(isinstance(part, str) and not part.strip() for part in self.parts[self._place + 1 :])

    def values(self, record: Mapping[str, Any], *, where: str = "record") -> dict[str, str]:
        """The fields' texts.

        Raises: ConfigError where the record lacks a field, has null there, or a list or mapping.
        """
        return {field: value_text(record, field, name=self.name, where=where) for field in self.fields}

    def text(self, record: Mapping[str, Any], answer: str, *, where: str = "record") -> str:
        """The finished text with its answer, soft slots left out: a demonstration. The answer follows a space where its
        words are scored behind one (`spaced`).

        Raises: as `values`.
        """
        values, shown = self.values(record, where=where), ""
        for part in without_soft(self.parts):
            if not isinstance(part, Answer):
                shown += _shown(part, values)
            else:
                shown += (" " if self.spaced and not shown.endswith(" ") else "") + answer
        return shown

    def row(self, record: Mapping[str, Any], host: PromptHost, **settings: Any) -> Row:
        """`fill(...).row`."""
        return self.fill(record, host, **settings).row

    def fill(
        self,
        record: Mapping[str, Any],
        host: PromptHost,
        *,
        slots: "SoftSlots | None" = None,
        max_tokens: int | None = None,
        reserve: int = 0,
        where: str = "record",
    ) -> Filled:
        """The template for one record, as the host reads it.

        slots: the soft slots' vectors, where the template has any
        max_tokens: the most columns of the row; None for what the host has
        reserve: columns to keep free for the answer, beyond its first token
        where: the record's place, for messages

        Raises: ConfigError where the answer stands where the host cannot give it, a soft slot has no vectors, or as
            `values`; ShapeError where even without any field's text the row does not fit.
        """
        frame = self._frame(host)
        room = host.window if max_tokens is None else max_tokens
        values = self.values(record, where=where)
        opens, closes = host.bos_ids, host.close_ids
        body = self._body(values, host, slots, frame)
        whole = row_length(body)
        if room is not None:
            room -= len(opens) + len(closes) + reserve
            body = self._cut(values, host, slots, frame, body, room, where)
        return Filled(
            body=tuple(body),
            opens=opens,
            closes=closes,
            starts=() if host.kind == "masked" else frame,
            mask_id=frame[0] if host.kind == "masked" else None,
            spaced=self.spaced,
            cut=whole - row_length(body),
            what=f"{where}: {self.name}",
        )

    @property
    def _place(self) -> int:
        return next(n for n, part in enumerate(self.parts) if isinstance(part, Answer))

    def _frame(self, host: PromptHost) -> tuple[int, ...]:
        """What stands in the answer's place: the mask, the sentinel, or nothing.

        Raises: ConfigError where the host cannot answer there.
        """
        if host.kind == "masked":
            return (cast("FrozenMaskedLM", host).mask_id,)
        if self.last and not (self.sentinel and host.kind == "encoder-decoder"):
            return ()
        if host.kind == "decoder":
            raise ConfigError(
                f"{self.name} {str(self)[:60]!r} goes on after {{answer}}, but a decoder-only LM answers behind all "
                "that it reads; put {answer} last, or use a masked or an encoder-decoder LM"
            )
        sentinel = control_id(host.tokenizer, SENTINEL)
        if sentinel is None:
            raise ConfigError(
                f"{self.name} needs the sentinel {SENTINEL} in the place of {{answer}}, and this LM's tokenizer has "
                "none; put {answer} last and leave sentinel out, or use T5 or its kin"
            )
        return (sentinel,)

    def _body(
        self, values: Mapping[str, str], host: PromptHost, slots: "SoftSlots | None", frame: tuple[int, ...]
    ) -> list[Segment]:
        body: list[Segment] = []
        text = ""
        for part in self.parts:
            if isinstance(part, str | Field):
                text += _shown(part, values)
                continue
            if isinstance(part, Answer) and self.spaced:
                text = text.removesuffix(" ")
            body.append(Tokens.of(host.encode(text)))
            text = ""
            if isinstance(part, Answer):
                body.append(Tokens(frame))
                if self.last:
                    break
            else:
                body.append(self._vectors(part, slots))
        body.append(Tokens.of(host.encode(text)))
        return [segment for segment in body if len(segment)]

    def _vectors(self, part: SoftSlot, slots: "SoftSlots | None") -> Soft:
        if slots is None or part.id not in slots:
            have = "none were given" if slots is None else f"there are {', '.join(slots.ids)}"
            raise ConfigError(
                f"{self.name} has the soft slot {part.id!r}, {have}; make them with SoftSlots.create(host, template)"
            )
        return slots.segment(part.id)

    def _cut(
        self,
        values: dict[str, str],
        host: PromptHost,
        slots: "SoftSlots | None",
        frame: tuple[int, ...],
        body: list[Segment],
        room: int,
        where: str,
    ) -> list[Segment]:
        """The body with as much of the fields as fits."""
        order = self.cut or sorted(self.fields, key=lambda field: (-len(values[field]), field))
        for field in order:
            if row_length(body) <= room:
                return body
            value = values[field]
            ends = [match.start() for match in _WORD_END.finditer(value)]
            places = [0, *ends] if len(ends) > 1 else list(range(len(value) + 1))
            low, high = 0, len(places) - 1  # nothing of the field is the least; all of it is known not to fit
            while low < high:
                middle = (low + high) // 2
                tried = self._body({**values, field: value[: places[middle]]}, host, slots, frame)
                low, high = (middle + 1, high) if row_length(tried) <= room else (low, middle)
            for kept in range(max(low - 1, 0), -1, -1):  # tokens need not grow with every word
                values = {**values, field: value[: places[kept]]}
                body = self._body(values, host, slots, frame)
                if row_length(body) <= room:
                    break
        if row_length(body) > room:
            raise ShapeError(
                f"{where}: {self.name} takes {row_length(body)} tokens with the fields it may cut left empty; the "
                f"room is {room}; shorten the template or name more fields in cut"
            )
        return body


def _shown(part: Part, values: Mapping[str, str]) -> str:
    if isinstance(part, str):
        return part
    return values[part.name] if isinstance(part, Field) else ""
