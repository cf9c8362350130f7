"""A row is what the LM reads for one example: a list of `Tokens` and `Soft` segments, in any order.

Every prompt method of this package only makes `Soft` segments, so one pure function turns any mixture of rows into one
batch: embeddings, attention mask, position ids, and the index that takes the logits back to the caller's text tokens.
Shapes: B batch, T columns, N most text tokens of a row, P soft tokens of a segment, H hidden size (`docs/notation.md`).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from frozenlm.errors import ShapeError

PaddingSide = Literal["left", "right"]


@dataclass(frozen=True)
class Tokens:
    """A run of text tokens.

    Args:
        ids: [n] ids of the LM's tokenizer; may be empty.

    Raises:
        ShapeError: an id is not an integer.
    """

    ids: tuple[int, ...]

    def __post_init__(self) -> None:
        ids = self.ids if isinstance(self.ids, tuple) else tuple(self.ids)
        if not all(type(i) is int for i in ids):
            ids = tuple(_as_int(i) for i in ids)
        object.__setattr__(self, "ids", ids)

    @classmethod
    def of(cls, ids: "Iterable[int] | Tensor") -> "Tokens":
        """Tokens from any iterable of ids, a 1-D tensor or array included."""
        return cls(tuple(ids.tolist() if isinstance(ids, Tensor) else ids))

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class Soft:
    """A run of vectors in the LM's embedding space: a learned prompt, or the output of a connector.

    Args:
        vectors: [P, H]; gradients flow into them. They are cast to the LM's dtype on assembly.

    Raises:
        ShapeError: not a floating-point matrix.
    """

    vectors: Tensor

    def __post_init__(self) -> None:
        if not isinstance(self.vectors, Tensor) or self.vectors.ndim != 2 or not self.vectors.is_floating_point():
            got = list(self.vectors.shape) if isinstance(self.vectors, Tensor) else type(self.vectors).__name__
            raise ShapeError(f"Soft expects a floating-point tensor of shape [P, H], got {got}")

    def __len__(self) -> int:
        return self.vectors.shape[0]


Segment = Tokens | Soft
Row = Sequence[Segment]


@dataclass(frozen=True, eq=False)
class Assembled:
    """One batch, ready for the LM.

    Args:
        embeds: [B, T, H].
        mask: [B, T] long, 1 where a row has a token, 0 on padding.
        positions: [B, T] long, counted from the row's offset; 0 on padding.
        text_index: [B, N] long, the column of the row's n-th text token; -1 past its last one.
        lengths: [B] long, tokens and soft tokens of each row.
    """

    embeds: Tensor
    mask: Tensor
    positions: Tensor
    text_index: Tensor
    lengths: Tensor

    @property
    def last_column(self) -> Tensor:
        """[B] the column of each row's last token."""
        columns = torch.arange(self.mask.shape[1], device=self.mask.device)
        return (self.mask * columns).amax(dim=1)


def row_length(row: Row) -> int:
    """How many columns the row takes: text tokens plus soft tokens."""
    return sum(len(segment) for segment in row)


def text_ids(row: Row) -> tuple[int, ...]:
    """The row's text tokens in order, soft segments left out."""
    return tuple(i for segment in row if isinstance(segment, Tokens) for i in segment.ids)


def check_rows(rows: Sequence[Row], *, hidden_size: int, vocab_size: int) -> None:
    """Refuse rows that no LM of this width and vocabulary can read.

    Raises:
        ShapeError: no rows, an empty row, something else than segments, an id out of range, a soft segment of another
            width or with a value that is not finite.
    """
    if not len(rows):
        raise ShapeError("expected at least one row, got an empty batch")
    seen: set[int] = set()
    for number, row in enumerate(rows):
        if isinstance(row, Tokens | Soft):
            raise ShapeError(f"row {number} is a bare {type(row).__name__}; a row is a list of segments: [segment]")
        for place, segment in enumerate(row):
            where = f"row {number}, segment {place}"
            if isinstance(segment, Tokens):
                if segment.ids and not (min(segment.ids) >= 0 and max(segment.ids) < vocab_size):
                    bad = next(i for i in segment.ids if not 0 <= i < vocab_size)
                    raise ShapeError(
                        f"{where}: token id {bad} is outside the LM's vocabulary 0..{vocab_size - 1}; "
                        "encode the text with this LM's own tokenizer"
                    )
            elif not isinstance(segment, Soft):
                raise ShapeError(f"{where}: expected Tokens or Soft, got {type(segment).__name__}")
            elif id(segment.vectors) not in seen:
                _check_soft(segment.vectors, where, hidden_size)
                seen.add(id(segment.vectors))
        if row_length(row) == 0:
            raise ShapeError(f"row {number} is empty; a row needs at least one token or soft vector")


def assemble(
    rows: Sequence[Row],
    *,
    embed: Callable[[Tensor], Tensor],
    hidden_size: int,
    vocab_size: int,
    pad_id: int = 0,
    padding_side: PaddingSide = "right",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    offsets: Tensor | None = None,
) -> Assembled:
    """Turn rows into one padded batch; differentiable in every `Soft`.

    A `Soft` tensor that several rows share is copied once only. Padding is an embedding like any other (that of
    `pad_id`) and is hidden by the mask.

    Args:
        rows: B rows, none of them empty.
        embed: token ids [n] -> embeddings [n, H].
        hidden_size: H, which every soft vector must have.
        vocab_size: ids must lie in 0..vocab_size-1.
        pad_id: the token whose embedding fills the padding.
        padding_side: where short rows are filled up.
        dtype, device: of the embeddings.
        offsets: [B] position of each row's first token (the length of the memory it continues); zeros if None.

    Raises:
        ShapeError: no rows, an empty row, an id out of range, a soft segment of another width or with a value that is
            not finite.
    """
    check_rows(rows, hidden_size=hidden_size, vocab_size=vocab_size)
    lengths = [row_length(row) for row in rows]
    flat_ids = [pad_id]
    soft: dict[int, Tensor] = {}
    for row in rows:
        for segment in row:
            if isinstance(segment, Tokens):
                flat_ids.extend(segment.ids)
            else:
                soft.setdefault(id(segment.vectors), segment.vectors)
    starts: dict[int, int] = {}
    at = len(flat_ids)
    for key, vectors in soft.items():
        starts[key] = at
        at += vectors.shape[0]

    # Every column of the batch points at one line of `source`: line 0 is padding, then all text, then all soft vectors.
    width = max(lengths)
    source_index, text_index = [], []
    next_text = 1
    for row, length in zip(rows, lengths, strict=True):
        lines: list[int] = []
        columns: list[int] = []
        shift = width - length if padding_side == "left" else 0
        for segment in row:
            if isinstance(segment, Tokens):
                columns.extend(range(shift + len(lines), shift + len(lines) + len(segment)))
                lines.extend(range(next_text, next_text + len(segment)))
                next_text += len(segment)
            else:
                start = starts[id(segment.vectors)]
                lines.extend(range(start, start + len(segment)))
        padding = [0] * (width - length)
        source_index.append(padding + lines if padding_side == "left" else lines + padding)
        text_index.append(columns)

    index = torch.tensor(source_index, device=device)
    source = embed(torch.tensor(flat_ids, device=device)).to(dtype)
    if soft:
        source = torch.cat([source, *(vectors.to(device=device, dtype=dtype) for vectors in soft.values())])
    embeds = source.index_select(0, index.flatten()).view(*index.shape, hidden_size)

    row_lengths = torch.tensor(lengths, device=device)
    columns_of = torch.arange(width, device=device).expand(len(rows), width)
    first = (width - row_lengths if padding_side == "left" else torch.zeros_like(row_lengths)).unsqueeze(1)
    mask = ((columns_of >= first) & (columns_of < first + row_lengths.unsqueeze(1))).long()
    start_position = 0 if offsets is None else offsets.to(device).unsqueeze(1)
    positions = (columns_of - first + start_position) * mask
    most = max(len(columns) for columns in text_index)
    padded = [columns + [-1] * (most - len(columns)) for columns in text_index]
    return Assembled(embeds, mask, positions, torch.tensor(padded, dtype=torch.long, device=device), row_lengths)


def plan_batches(lengths: Sequence[int], *, batch_tokens: int) -> list[list[int]]:
    """Split examples into batches of like length, so that little padding is computed.

    Args:
        lengths: tokens of each example.
        batch_tokens: the most tokens of a batch, padding counted (rows x longest row). An example that is longer on its
            own makes a batch by itself.

    Returns:
        Lists of example indices, longest examples first; each index exactly once.

    Raises:
        ShapeError: batch_tokens below 1.
    """
    if batch_tokens < 1:
        raise ShapeError(f"batch_tokens must be at least 1, got {batch_tokens}")
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        longest = lengths[batches[-1][0]] if batches else 0
        if batches and (len(batches[-1]) + 1) * longest <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def _as_int(value: object) -> int:
    try:
        return int(value.__index__())  # type: ignore[attr-defined]  # numpy and torch integers have it, floats do not
    except (AttributeError, TypeError):
        raise ShapeError(f"Tokens expects integer ids, got {value!r} of type {type(value).__name__}") from None


def _check_soft(vectors: Tensor, where: str, hidden_size: int) -> None:
    if vectors.shape[1] != hidden_size:
        raise ShapeError(
            f"{where}: soft vectors are {vectors.shape[1]} wide, the LM's embeddings {hidden_size}; "
            "was the prompt trained for another LM?"
        )
    if not bool(torch.isfinite(vectors.detach()).all()):
        raise ShapeError(f"{where}: soft vectors hold NaN or Inf; the training diverged or the file is damaged")
