"""One text, or two, as one input of a frozen encoder.

Two texts stand as the encoder's own tokenizer puts a pair: [CLS] a [SEP] b [SEP] for BERT, <s> a </s></s> b </s> for
RoBERTa, a </s> b </s> for T5; an encoder with segment embeddings gets the tokenizer's segment ids. A tokenizer that
puts nothing between them gets its separator, or else its end token, there (our choice). Text is only ever text: what
stands around it are ids (`text.py`).

What does not fit is cut and counted in `encoder.truncated`: of a pair the longer text, or the second one where the
first is a question that must stay whole.
Shapes: B inputs, T columns, E width of the encoder's output.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from frozenlm.encoder import FrozenEncoder
from frozenlm.errors import ConfigError, ShapeError
from frozenlm.rows import Tokens, assemble

Cut = Literal["longer", "second"]
Ids = tuple[int, ...]
Texts = tuple[str, str | None]


@dataclass(frozen=True)
class EncoderInput:
    """What the encoder reads.

    ids: control tokens included
    segments: one id a column
    first, second: the columns of the two texts' own tokens; `second` is empty without a second text
    cut: whether text was left out
    """

    ids: Ids
    segments: Ids
    first: range
    second: range
    cut: bool


@dataclass(frozen=True)
class Frame:
    """The control ids around two texts, and the segment ids of the five stretches."""

    before: Ids
    between: Ids
    after: Ids
    segments: tuple[int, int, int, int, int]


_frames: "WeakKeyDictionary[FrozenEncoder, Frame]" = WeakKeyDictionary()


def pair_frame(encoder: FrozenEncoder) -> Frame:
    """How the encoder's tokenizer puts two texts together.

    Raises: ConfigError for a tokenizer without any token to stand between them.
    """
    if encoder not in _frames:
        _frames[encoder] = _find_frame(encoder)
    return _frames[encoder]


def encoder_inputs(
    encoder: FrozenEncoder, texts: Sequence[Texts], *, positions_taken: int = 0, cut: Cut = "longer"
) -> list[EncoderInput]:
    """B texts, or pairs of them, ready to be read.

    positions_taken: of the encoder's positions, by a delta such as a prefix
    cut: what is cut of a pair that is too long

    Raises:
        ConfigError: nothing is left of the encoder's positions.
        ShapeError: no text, or a first text that fills all the room where only the second may be cut.
        FrozenLMError: not a string of valid Unicode.
    """
    if not texts:
        raise ShapeError("the encoder was given no text; expected at least one")
    codec, room = encoder.codec, encoder.room(positions_taken)
    first = codec.encode_batch([a for a, _ in texts])
    second = codec.encode_batch(["" if b is None else b for _, b in texts])
    made = []
    for (_, b), ids_a, ids_b in zip(texts, first, second, strict=True):
        frame = Frame(codec.bos_ids, (), codec.close_ids, (0,) * 5) if b is None else pair_frame(encoder)
        made.append(_put_together(frame, ids_a, ids_b, room, cut, encoder))
    encoder.truncated += sum(one.cut for one in made)
    return made


def read_inputs(encoder: FrozenEncoder, inputs: Sequence[EncoderInput]) -> tuple[Tensor, Tensor]:
    """(hidden [B, T, E] float32, mask [B, T] bool); gradients flow to what is attached, if anything."""
    batch = assemble(
        [[Tokens(one.ids)] for one in inputs],
        embed=encoder.embed,
        hidden_size=encoder.embedding_size,
        vocab_size=encoder.vocab_size,
        pad_id=inputs[0].ids[0],
        dtype=encoder.dtype,
        device=encoder.device,
    )
    more: dict[str, Any] = {}
    if _has_segments(encoder) and any(any(one.segments) for one in inputs):
        width = batch.mask.shape[1]
        rows = [[*one.segments, *[0] * (width - len(one.segments))] for one in inputs]
        more["token_type_ids"] = torch.tensor(rows, device=encoder.device)
    hidden = encoder.model(inputs_embeds=batch.embeds, attention_mask=batch.mask, **more).last_hidden_state
    return hidden.float(), batch.mask.bool()


def _put_together(
    frame: Frame, ids_a: list[int], ids_b: list[int], room: int, cut: Cut, encoder: FrozenEncoder
) -> EncoderInput:
    space = room - len(frame.before) - len(frame.between) - len(frame.after)
    lengths = _lengths(len(ids_a), len(ids_b), space, cut)
    a, b = ids_a[: lengths[0]], ids_b[: lengths[1]]
    parts = (frame.before, a, frame.between, b, frame.after)
    ids = tuple(i for part in parts for i in part)
    segments = tuple(s for part, s in zip(parts, frame.segments, strict=True) for _ in part)
    start = len(frame.before)
    middle = start + len(a) + len(frame.between)
    # A tokenizer that frames nothing gives no token for the empty text, and nothing cannot be attended to.
    return EncoderInput(
        ids or (encoder.tokenizer.pad_token_id or 0,),
        segments or (0,),
        range(start, start + len(a)),
        range(middle, middle + len(b)),
        len(a) < len(ids_a) or len(b) < len(ids_b),
    )


def _lengths(a: int, b: int, space: int, cut: Cut) -> tuple[int, int]:
    """How many tokens of each text stay."""
    if a + b <= space:
        return a, b
    if cut == "second":
        if a >= space:
            raise ShapeError(f"the first text has {a} tokens and may not be cut, but there is room for {space} in all")
        return a, space - a
    if min(a, b) <= space // 2:
        return (a, space - a) if a <= b else (space - b, b)
    return space - space // 2, space // 2


def _find_frame(encoder: FrozenEncoder) -> Frame:
    tokenizer = encoder.tokenizer
    framed = tokenizer("a", "a", return_token_type_ids=True, return_attention_mask=False)
    ids, types = list(framed["input_ids"]), list(framed["token_type_ids"])
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    found = [k for k in range(len(ids) - len(bare) + 1) if ids[k : k + len(bare)] == bare]
    if bare and len(found) == 2 and found[1] > found[0] + len(bare):
        ends = [found[0], found[0] + len(bare), found[1], found[1] + len(bare), len(ids)]
        segments = [types[min(end, len(ids)) - 1] if end else 0 for end in ends]
        return Frame(
            tuple(ids[: ends[0]]),
            tuple(ids[ends[1] : ends[2]]),
            tuple(ids[ends[3] :]),
            (segments[0], segments[1], segments[2], segments[3], segments[4]),
        )
    known = (tokenizer.sep_token_id, tokenizer.eos_token_id)
    between = next((i for i in known if i is not None), None)
    if between is None:
        raise ConfigError(
            f"{type(tokenizer).__name__} has neither a separator nor an end token to stand between two texts"
        )
    return Frame(encoder.codec.bos_ids, (between,), encoder.codec.close_ids, (0, 0, 0, 1, 1))


def _has_segments(encoder: FrozenEncoder) -> bool:
    taken = "token_type_ids" in inspect.signature(encoder.model.forward).parameters
    return taken and getattr(encoder.model.config, "type_vocab_size", 0) > 1
