"""The engine of a FrozenLM: checked rows in, hidden states out, whatever the LM's architecture.

It joins what the other files know: how rows become a batch (`rows.py`), what fits (`limits.py`), how the LM runs
(`backbone.py`) and how logits are made (`heads.py`). `lm.py` is the face that users see.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from frozenlm.attention import rows_have_their_own
from frozenlm.backbone import DecoderOnly, DecoderState, EncoderDecoder, State
from frozenlm.errors import ConfigError, ShapeError
from frozenlm.heads import Head
from frozenlm.limits import Limits, check_memory
from frozenlm.memory import Memory
from frozenlm.rows import Assembled, PaddingSide, Row, assemble, check_rows, plan_batches, row_length


class Engine:
    """One LM, ready to run rows.

    Args:
        model: the transformers model, frozen.
        fingerprint: of the model; memories of other LMs are refused by it.
        pad_id: fills the padding.
        window: the most tokens of a row; None for the LM's own limit.
        padding_side: of decoder-only batches; an encoder-decoder's are always padded on the right.

    Attributes:
        fingerprint: of what runs: the model's, or for the while of a delta one of its own.

    Raises:
        ConfigError: the model has no head or body that we can drive, or a setting is out of range.
    """

    def __init__(
        self, model: Any, *, fingerprint: str, pad_id: int, window: int | None, padding_side: PaddingSide
    ) -> None:
        if padding_side not in ("left", "right"):
            raise ConfigError(f"padding_side must be 'left' or 'right', got {padding_side!r}")
        self._model = model
        self.head = Head(model)
        self.limits = Limits.of(model.config, window)
        self.body: DecoderOnly | EncoderDecoder
        self.body = EncoderDecoder(model) if self.limits.encodes else DecoderOnly(model)
        self.start_ids = self.body.start_ids if isinstance(self.body, EncoderDecoder) else ()
        self.side: PaddingSide = "right" if self.limits.encodes else padding_side
        self._embedding = model.get_input_embeddings()
        self.vocab_size: int = self._embedding.num_embeddings
        self.hidden_size: int = self._embedding.embedding_dim
        self.fingerprint, self._pad_id = fingerprint, pad_id

    @property
    def dtype(self) -> torch.dtype:
        return self._embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        return self._embedding.weight.device

    def run(
        self, rows: Sequence[Row], memory: Memory | None, decoder_rows: Sequence[Row] | None
    ) -> tuple[Tensor, Assembled]:
        """Final hidden states [B, T, H] of the rows (of the decoder rows, for an encoder-decoder) and their layout.

        Raises:
            ShapeError: a row that does not fit, or decoder rows missing or not wanted.
        """
        if isinstance(self.body, EncoderDecoder):
            if decoder_rows is None or len(decoder_rows) != len(rows):
                raise ShapeError(f"an encoder-decoder needs one decoder row for each of the {len(rows)} rows")
            encoded, encoded_mask = self._encoded(self.body, rows, memory)
            for row in decoder_rows:
                self.limits.check_decoder(row_length(row))
            batch = self._lay_out(decoder_rows, self.body.embed_decoder, None)
            return self.body.decode(batch.embeds, batch.mask, encoded, encoded_mask), batch
        if decoder_rows is not None:
            raise ShapeError("decoder_rows are for encoder-decoder LMs; this LM is decoder-only")
        memory = self.ready(rows, memory)
        batch = self.layout(rows, memory)
        return self.body.hidden(batch, memory), batch

    def read(self, rows: Sequence[Row], memory: Memory | None) -> Memory:
        """What the rows leave behind.

        Raises:
            ShapeError: a row that does not fit, or an encoder asked to go on from a memory.
        """
        if isinstance(self.body, DecoderOnly):
            memory = self.ready(rows, memory)
            return self.body.read(self.layout(rows, memory), memory, self.fingerprint)
        if memory is not None:
            raise ShapeError("an encoder reads in both directions and cannot go on from a memory; read the whole rows")
        return self.body.read(self.layout(rows), self.fingerprint)

    def text_states(self, rows: Sequence[Row], memory: Memory | None) -> list[Tensor]:
        """Final hidden states [n, H] of each row's text tokens (of the encoder, for an encoder-decoder)."""
        if isinstance(self.body, EncoderDecoder):
            if memory is not None:
                raise ShapeError("an encoder reads in both directions and cannot go on from a memory; give whole rows")
            batch = self.layout(rows)
            hidden = self.body.encode(batch)
        else:
            hidden, batch = self.run(rows, memory, None)
        return [
            states.index_select(0, columns[columns >= 0])
            for states, columns in zip(hidden, batch.text_index, strict=True)
        ]

    def start(self, rows: Sequence[Row], memory: Memory | None, max_new: int) -> tuple[Tensor, State]:
        """The hidden states [B, H] that predict each row's first new token, and the state to decode on from."""
        if isinstance(self.body, EncoderDecoder):
            return self.body.start(*self._encoded(self.body, rows, memory))
        hidden, batch, state = self.begin(rows, memory, max_new)
        return hidden[torch.arange(len(rows), device=self.device), batch.last_column], state

    def begin(self, rows: Sequence[Row], memory: Memory | None, max_new: int) -> tuple[Tensor, Assembled, DecoderState]:
        """As `run`, for a decoder-only LM, with the state to decode on from."""
        if not isinstance(self.body, DecoderOnly):
            raise ShapeError("an encoder-decoder starts from its encoder's output; this needs a decoder-only LM")
        memory = self.ready(rows, memory)
        batch = self.layout(rows, memory, extra=max_new - 1)
        hidden, state = self.body.start(batch, memory)
        return hidden, batch, state

    def answer_states(self, hidden: Tensor, batch: Assembled, lengths: Sequence[int]) -> Tensor:
        """The hidden states [n, H] that predict the answers, which end the rows but for their last, unread tokens.

        Args:
            hidden, batch: as `run` returns them.
            lengths: tokens of each answer; n is their sum.
        """
        ends = (batch.last_column + torch.arange(len(hidden), device=self.device) * hidden.shape[1]).tolist()
        wanted = [column for end, n in zip(ends, lengths, strict=True) for column in range(end - n + 1, end + 1)]
        return hidden.flatten(0, 1).index_select(0, torch.tensor(wanted, device=self.device))

    def plan(
        self, rows: Sequence[Row], memory: Memory | None, batch_tokens: int, extra: Sequence[int]
    ) -> list[list[int]]:
        """Check all rows, so that errors name the caller's row numbers, and split them into batches of like length.

        Args:
            extra: tokens of each row that come on top: of its answer, or to be generated.

        Raises:
            ShapeError: a row that does not fit, or rows with attention prefixes of their own, which would come to stand
                before other rows.
        """
        if rows_have_their_own(self._model):
            raise ShapeError(
                "attention prefixes of single rows stand in the LM, and this call runs rows in an order of its own; "
                "call forward or token_logprobs, which keep the batch, or give the prefixes as memories (`as_memory`)"
            )
        check_memory(rows, memory, self.fingerprint, self.dtype)
        if memory is None or not self.limits.encodes:
            check_rows(rows, hidden_size=self.hidden_size, vocab_size=self.vocab_size)
        before = [0] * len(rows) if memory is None else memory.lengths.tolist()
        lengths = [row_length(row) + read + more for row, read, more in zip(rows, before, extra, strict=True)]
        self.limits.check_window(rows, memory, extra=extra)
        return plan_batches(lengths, batch_tokens=batch_tokens)

    def ready(self, rows: Sequence[Row], memory: Memory | None) -> Memory | None:
        """The memory, checked and on the LM's device."""
        check_memory(rows, memory, self.fingerprint, self.dtype)
        return memory if memory is None or memory.mask.device == self.device else memory.to(self.device)

    def _encoded(self, body: EncoderDecoder, rows: Sequence[Row], memory: Memory | None) -> tuple[Tensor, Tensor]:
        """Encoder outputs [B, T, H] and their mask [B, T]: of the rows, or those that a memory holds."""
        if memory is None:
            batch = self.layout(rows)
            return body.encode(batch), batch.mask
        memory = self.ready(rows, memory)
        if memory is None or memory.encoded is None or any(row_length(row) for row in rows):
            raise ShapeError("an encoder cannot go on from a memory: give empty rows with it, or whole rows without it")
        return memory.encoded, memory.mask

    def layout(self, rows: Sequence[Row], memory: Memory | None = None, *, extra: int = 0) -> Assembled:
        """The rows as one batch, after the memory and with room for `extra` tokens each.

        Raises:
            ShapeError: a row that does not fit.
        """
        self.limits.check_window(rows, memory, extra=[extra] * len(rows))
        return self._lay_out(rows, self.body.embed, None if memory is None else memory.lengths)

    def _lay_out(self, rows: Sequence[Row], embed: Callable[[Tensor], Tensor], offsets: Tensor | None) -> Assembled:
        return assemble(
            rows,
            embed=embed,
            hidden_size=self.hidden_size,
            vocab_size=self.vocab_size,
            pad_id=self._pad_id,
            padding_side=self.side,
            dtype=self.dtype,
            device=self.device,
            offsets=offsets,
        )
