"""FrozenLM: the host of one pretrained LM that nothing ever changes.

It loads the LM, freezes it, and runs rows through it (`rows.py`): logits in line with the text, log-probabilities of
answers, generation, hidden states, and memories of what has been read. It is not an `nn.Module` on purpose: a trained
module that holds a FrozenLM does not get the LM's weights into its own `parameters()` or `state_dict()`.
Shapes: `docs/notation.md`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.nn import functional

from frozenlm import fingerprint as prints
from frozenlm.backbone import DecoderOnly, EncoderDecoder
from frozenlm.decoding import Generation, Settings, StopRule, decode_batch, fresh_seed
from frozenlm.errors import ConfigError, FrozenViolationError, ShapeError
from frozenlm.fingerprint import Verification
from frozenlm.heads import Head
from frozenlm.limits import Limits, check_memory
from frozenlm.loading import load_pretrained, resolve_device, resolve_dtype
from frozenlm.memory import Memory
from frozenlm.probe import check_logits
from frozenlm.rows import Assembled, PaddingSide, Row, Tokens, assemble, plan_batches, row_length
from frozenlm.text import TextCodec

BATCH_TOKENS = 8192  # tokens of a batch, padding counted: about what two CPU cores chew without swapping


@dataclass(frozen=True, eq=False)
class Output:
    """What `FrozenLM.forward` gives back.

    Args:
        logits: for each row [n, V], one line for each of its text tokens in order, predicting what comes after it.
        hidden: [B, T, H] final hidden states of all columns.
        batch: how the rows were laid out.
    """

    logits: list[Tensor]
    hidden: Tensor
    batch: Assembled


class FrozenLM:
    """One pretrained LM, decoder-only or encoder-decoder, that stays what it was.

    Make one with `FrozenLM.load` or `FrozenLM.from_model`.

    Attributes:
        model: the transformers model; frozen, in eval mode. Use it, but leave it as it is.
        tokenizer: the caller's tokenizer, unchanged.
        kind: "decoder" or "encoder-decoder".
        hidden_size: H, width of the embeddings and so of every soft vector.
        vocab_size: V.
        window: the most tokens of a row with its memory and its answer; None if the LM has no limit.
        pad_id, eos_ids, bos_ids, close_ids: control ids: padding; what ends an answer; what opens a text; what closes an
            encoder's input (() for decoder-only LMs).
        start_ids: what an encoder-decoder's decoder reads before the answer (() for decoder-only LMs).
        fingerprint: SHA-256 that names this LM (`fingerprint.py`).
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, window: int | None = None, padding_side: PaddingSide = "right"
    ) -> None:
        if padding_side not in ("left", "right"):
            raise ConfigError(f"padding_side must be 'left' or 'right', got {padding_side!r}")
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        self.model, self.tokenizer = model.eval(), tokenizer
        self.kind: Literal["decoder", "encoder-decoder"] = (
            "encoder-decoder" if model.config.is_encoder_decoder else "decoder"
        )
        self._head = Head(model)
        self._body: DecoderOnly | EncoderDecoder
        self._body = EncoderDecoder(model) if self.kind == "encoder-decoder" else DecoderOnly(model)
        self._codec = TextCodec(tokenizer, closes=self.kind == "encoder-decoder")
        self._padding_side: PaddingSide = "right" if self.kind == "encoder-decoder" else padding_side
        embedding = model.get_input_embeddings()
        self.vocab_size: int = embedding.num_embeddings
        self.hidden_size: int = embedding.embedding_dim
        self._limits = Limits.of(model.config, window)
        self.window = self._limits.window
        self.bos_ids, self.close_ids = self._codec.bos_ids, self._codec.close_ids
        self.start_ids = self._body.start_ids if isinstance(self._body, EncoderDecoder) else ()
        self.eos_ids = _eos_ids(model, tokenizer)
        pad = tokenizer.pad_token_id
        self.pad_id: int = pad if pad is not None else self.eos_ids[0] if self.eos_ids else 0
        self._digests = prints.digest_tensors(model)
        self.fingerprint: str = prints.fingerprint(self._digests)
        check_logits(self)

    @classmethod
    def load(
        cls,
        path_or_id: str | Path,
        *,
        revision: str | None = None,
        dtype: str = "auto",
        device: str = "auto",
        window: int | None = None,
        padding_side: PaddingSide = "right",
    ) -> "FrozenLM":
        """Load a local folder or a hub model.

        Args:
            path_or_id: a folder saved by transformers, or a hub id.
            revision: branch, tag or commit on the hub.
            dtype: "auto" is the checkpoint's dtype on CUDA and float32 on the CPU (our choice: exact for bf16 checkpoints,
                and results do not drift with the batch's shape); or "float32", "bfloat16", "float16".
            device: "auto" is CUDA where there is one, else "cpu".
            window: the most tokens to use, below the LM's own limit.
            padding_side: how decoder-only batches are padded; results are equal.

        Raises:
            CheckpointError: model, weights or tokenizer missing or damaged.
            ConfigError: a setting is unknown, or the LM is of a kind that cannot be driven.
        """
        model, tokenizer = load_pretrained(path_or_id, revision=revision, dtype=dtype, device=device)
        return cls(model, tokenizer, window=window, padding_side=padding_side)

    @classmethod
    def from_model(
        cls,
        model: Any,
        tokenizer: Any,
        *,
        dtype: str = "auto",
        device: str = "auto",
        window: int | None = None,
        padding_side: PaddingSide = "right",
    ) -> "FrozenLM":
        """Take over a transformers model that is already loaded; it is frozen and put in eval mode.

        Args:
            dtype, device: "auto" leaves the model as and where it is; otherwise the model itself is moved.

        Raises:
            ConfigError: the model is of a kind that cannot be driven.
        """
        if device != "auto":
            model = model.to(resolve_device(device))
        if dtype != "auto":
            model = model.to(resolve_dtype(dtype, model.device))
        return cls(model, tokenizer, window=window, padding_side=padding_side)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, and of the embeddings that are fed."""
        return self.model.get_input_embeddings().weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the input embeddings lie."""
        return self.model.get_input_embeddings().weight.device

    def verify(self) -> Verification:
        """Compare every weight and buffer with what it was at load, bit by bit."""
        return prints.compare(self._digests, prints.digest_tensors(self.model))

    def assert_unchanged(self) -> None:
        """Raise unless the LM is exactly what it was.

        Raises:
            FrozenViolationError: a weight or buffer changed, a weight can be trained, or the LM is in training mode.
        """
        found = self.verify()
        if found.changed:
            raise FrozenViolationError(
                f"{found}: {', '.join(found.names[:5])}; something wrote to the frozen LM, load it anew"
            )
        loose = [name for name, p in self.model.named_parameters() if p.requires_grad]
        if loose or self.model.training:
            what = f"{len(loose)} weights require gradient, e.g. {loose[0]}" if loose else "the LM is in training mode"
            raise FrozenViolationError(f"{what}; the frozen LM must stay frozen and in eval mode")

    def encode(self, text: str) -> list[int]:
        """Token ids of the text alone: no control token added, and none parsed from the text ("[SEP]" is six letters).

        Raises:
            FrozenLMError: not a string of valid Unicode.
        """
        return self._codec.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts, faster."""
        return self._codec.encode_batch(texts)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids; control tokens leave no trace."""
        return self._codec.decode(ids)

    def embed(self, ids: Tensor) -> Tensor:
        """ids [...] -> embeddings [..., H] as the LM's first layer gets them (with the model's embedding scale, if any).

        Raises:
            ShapeError: an id outside the vocabulary.
        """
        ids = torch.as_tensor(ids, dtype=torch.long)
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.vocab_size:
            raise ShapeError(f"token ids must lie in 0..{self.vocab_size - 1}, got {int(ids.min())}..{int(ids.max())}")
        return self._body.embed(ids.to(self.device))

    @torch.no_grad()
    def read(self, rows: Sequence[Row], *, memory: Memory | None = None, batch_tokens: int | None = None) -> Memory:
        """Read rows once, without gradient, to go on from many times.

        Args:
            rows: B rows.
            memory: what they go on from, B rows.
            batch_tokens: read in several batches of at most this many tokens; None reads all in one.

        Raises:
            ShapeError: rows empty or longer than the window; an encoder-decoder asked to go on from a memory.
        """
        if batch_tokens is not None:
            parts = self._plan(rows, memory, batch_tokens)
            read = Memory.concatenate([self.read(_take(rows, p), memory=_select(memory, p)) for p in parts])
            order = [index for part in parts for index in part]
            return read.select(sorted(range(len(order)), key=order.__getitem__))
        if isinstance(self._body, EncoderDecoder):
            if memory is not None:
                raise ShapeError(
                    "an encoder reads its input in both directions, so it cannot go on from a memory; read anew"
                )
            return self._body.read(self._assemble(rows, None), self.fingerprint)
        return self._body.read(self._assemble(rows, memory), memory, self.fingerprint)

    def forward(
        self, rows: Sequence[Row], *, memory: Memory | None = None, decoder_rows: Sequence[Row] | None = None
    ) -> Output:
        """Run rows through the LM; differentiable in every `Soft`.

        Args:
            rows: B rows; for an encoder-decoder the encoder's input (B empty rows where a memory is given).
            memory: what they go on from, B rows.
            decoder_rows: for an encoder-decoder, what the decoder reads, `start_ids` included. The logits are those of the
                decoder's text tokens.

        Raises:
            ShapeError: as `read`; decoder_rows missing or not wanted.
        """
        if isinstance(self._body, EncoderDecoder):
            if decoder_rows is None or len(decoder_rows) != len(rows):
                raise ShapeError(f"an encoder-decoder needs one decoder row for each of the {len(rows)} rows")
            encoded, encoded_mask = self._encoded(self._body, rows, memory)
            batch = self._assemble_decoder(decoder_rows, self._body)
            hidden = self._body.decode(batch.embeds, batch.mask, encoded, encoded_mask)
        else:
            if decoder_rows is not None:
                raise ShapeError("decoder_rows are for encoder-decoder LMs; this LM is decoder-only")
            batch = self._assemble(rows, memory)
            hidden = self._body.hidden(batch, memory)
        present = batch.text_index >= 0
        columns = torch.arange(len(rows), device=self.device).unsqueeze(1) * hidden.shape[1] + batch.text_index
        logits = self._head(hidden.flatten(0, 1).index_select(0, columns[present]))
        return Output(list(logits.split(present.sum(dim=1).tolist())), hidden, batch)

    def token_logprobs(
        self, rows: Sequence[Row], answers: Sequence[Sequence[int]], *, memory: Memory | None = None
    ) -> list[Tensor]:
        """Log-probability of each answer token after its row; differentiable in every `Soft`.

        The head runs on the answer positions only. Add an eos id to an answer to count its end.

        Args:
            rows: B rows (an encoder-decoder's encoder input).
            answers: B lists of ids, none empty.
            memory: what the rows go on from, B rows.

        Returns:
            B tensors [len(answer)], nats, float32.

        Raises:
            ShapeError: as `read`; an empty answer; not one answer a row.
        """
        self._limits.check_answers(rows, answers, len(self.start_ids), self.vocab_size)
        if isinstance(self._body, EncoderDecoder):
            encoded, encoded_mask = self._encoded(self._body, rows, memory)
            decoder_rows = [[Tokens((*self.start_ids, *answer[:-1]))] for answer in answers]
            batch = self._assemble_decoder(decoder_rows, self._body)
            hidden = self._body.decode(batch.embeds, batch.mask, encoded, encoded_mask)
        else:
            self._limits.check_batch(rows)
            # The last answer token is only predicted, never read.
            batch = self._assemble(
                [[*row, Tokens(tuple(a[:-1]))] for row, a in zip(rows, answers, strict=True)], memory
            )
            hidden = self._body.hidden(batch, memory)
        lengths = [len(answer) for answer in answers]
        ends = (batch.last_column + torch.arange(len(rows), device=self.device) * hidden.shape[1]).tolist()
        wanted = [column for end, n in zip(ends, lengths, strict=True) for column in range(end - n + 1, end + 1)]
        at = torch.tensor(wanted, device=self.device)
        logits = self._head(hidden.flatten(0, 1).index_select(0, at)).float()
        targets = torch.tensor([i for answer in answers for i in answer], device=self.device)
        return list((-functional.cross_entropy(logits, targets, reduction="none")).split(lengths))

    @torch.no_grad()
    def score(
        self,
        rows: Sequence[Row],
        answers: Sequence[Sequence[int]],
        *,
        memory: Memory | None = None,
        batch_tokens: int = BATCH_TOKENS,
    ) -> list[float]:
        """Summed log-probability (nats) of each answer after its row, for any number of rows.

        Raises:
            ShapeError: as `token_logprobs`.
        """
        self._limits.check_answers(rows, answers, len(self.start_ids), self.vocab_size)
        scores = [0.0] * len(rows)
        extra = [len(answer) - 1 for answer in answers]
        for part in self._plan(rows, memory, batch_tokens, extra):
            found = self.token_logprobs(_take(rows, part), [answers[i] for i in part], memory=_select(memory, part))
            sums = torch.stack([one.sum() for one in found]).tolist()
            for index, value in zip(part, sums, strict=True):
                scores[index] = value
        return scores

    def score_texts(
        self, prompts: Sequence[str], continuations: Sequence[str], *, batch_tokens: int = BATCH_TOKENS
    ) -> list[float]:
        """Log-probability (nats) of each continuation after its prompt; prompts are opened with `bos_ids`.

        The two are tokenised apart: give a continuation the space it begins with, where the tokenizer needs one.

        Raises:
            ShapeError: not one continuation a prompt, an empty one, or a text longer than the window.
        """
        if len(prompts) != len(continuations):
            raise ShapeError(f"{len(prompts)} prompts, but {len(continuations)} continuations; give one each")
        rows = [[Tokens((*self.bos_ids, *ids, *self.close_ids))] for ids in self.encode_batch(prompts)]
        return self.score(rows, self.encode_batch(continuations), batch_tokens=batch_tokens)

    @torch.no_grad()
    def hidden_states(
        self, rows: Sequence[Row], *, memory: Memory | None = None, batch_tokens: int = BATCH_TOKENS
    ) -> list[Tensor]:
        """Final hidden states (after the last norm) of each row's text tokens: B tensors [n, H'].

        H' is the width of the LM's last layer. For an encoder-decoder they are the encoder's.
        """
        found: list[Tensor] = [torch.empty(0)] * len(rows)
        for part in self._plan(rows, memory, batch_tokens):
            chosen, before = _take(rows, part), _select(memory, part)
            batch = self._assemble(chosen, before)
            if isinstance(self._body, EncoderDecoder):
                if before is not None:
                    raise ShapeError("an encoder cannot go on from a memory; give the whole rows")
                hidden = self._body.encode(batch)
            else:
                hidden = self._body.hidden(batch, before)
            for place, index in enumerate(part):
                columns = batch.text_index[place]
                found[index] = hidden[place].index_select(0, columns[columns >= 0])
        return found

    @overload
    def generate(
        self, rows: Sequence[Row], *, num_return_sequences: Literal[1] = 1, **settings: Any
    ) -> list[Generation]: ...
    @overload
    def generate(
        self, rows: Sequence[Row], *, num_return_sequences: int, **settings: Any
    ) -> list[list[Generation]]: ...
    @torch.no_grad()
    def generate(
        self,
        rows: Sequence[Row],
        *,
        memory: Memory | None = None,
        max_new_tokens: int = 32,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        num_beams: int = 1,
        num_return_sequences: int = 1,
        length_penalty: float = 1.0,
        stop: Sequence[str] = ("\n",),
        seed: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
    ) -> Any:
        """Generate after each row, for any number of rows.

        Args:
            rows: B rows (an encoder-decoder's encoder input).
            memory: what the rows go on from, B rows.
            max_new_tokens: tokens a row at most.
            do_sample: sample instead of taking the likeliest token.
            temperature, top_p, top_k: shape the sampling distribution (transformers' warpers, in the order temperature,
                top_k, top_p); 0 is no top_k.
            num_beams: beam search above 1.
            num_return_sequences: generations a row; they share the reading of the row.
            length_penalty: beam scores are log-probability / length ** length_penalty.
            stop: a generation ends at the first of these strings, which its text leaves out. Only the generated text counts.
            seed: of the sampling; the same seed gives the same samples, however the rows are batched. None draws one.
            batch_tokens: the most tokens of a batch.

        Returns:
            B generations, or B lists of `num_return_sequences` where that is above 1.

        Raises:
            ShapeError: as `read`; a row that leaves no room for max_new_tokens.
            ConfigError: a setting out of range.
        """
        settings = Settings(
            max_new_tokens=max_new_tokens,
            do_sample=do_sample,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            num_beams=num_beams,
            num_return_sequences=num_return_sequences,
            length_penalty=length_penalty,
            stop=stop if isinstance(stop, str) else tuple(stop),  # type: ignore[arg-type]  # Settings refuses a bare string
            seed=seed,
        )
        rule = StopRule(self.eos_ids, settings.stop, self.decode)
        drawn = fresh_seed(seed)
        found: list[list[Generation]] = [[]] * len(rows)
        new = [max_new_tokens - 1] * len(rows)  # the last one is never read
        if self.kind == "encoder-decoder":
            self._limits.check_decoder(len(self.start_ids) + max_new_tokens - 1)
            new = [0] * len(rows)
        copies = max(num_beams, num_return_sequences)
        for part in self._plan(rows, memory, max(1, batch_tokens // copies), new):
            chosen, before = _take(rows, part), _select(memory, part)
            if isinstance(self._body, EncoderDecoder):
                hidden, state = self._body.start(*self._encoded(self._body, chosen, before))
            else:
                batch = self._assemble(chosen, before, extra=max_new_tokens - 1)
                columns, state = self._body.start(batch, before)
                hidden = columns[torch.arange(len(part), device=self.device), batch.last_column]
            for index, generations in zip(
                part, decode_batch(state, hidden, self._head, rule, settings, part, drawn), strict=True
            ):
                found[index] = generations
        return found if num_return_sequences > 1 else [one[0] for one in found]

    def _assemble(self, rows: Sequence[Row], memory: Memory | None, *, extra: int = 0) -> Assembled:
        check_memory(rows, memory, self.fingerprint, self.dtype)
        self._limits.check_window(rows, memory, extra=extra)
        offsets = None if memory is None else memory.lengths
        return self._lay_out(rows, self._body.embed, self._padding_side, offsets)

    def _assemble_decoder(self, rows: Sequence[Row], body: EncoderDecoder) -> Assembled:
        for row in rows:
            self._limits.check_decoder(row_length(row))
        return self._lay_out(rows, body.embed_decoder, "right", None)

    def _lay_out(
        self, rows: Sequence[Row], embed: Callable[[Tensor], Tensor], side: PaddingSide, offsets: Tensor | None
    ) -> Assembled:
        return assemble(
            rows,
            embed=embed,
            hidden_size=self.hidden_size,
            vocab_size=self.vocab_size,
            pad_id=self.pad_id,
            padding_side=side,
            dtype=self.dtype,
            device=self.device,
            offsets=offsets,
        )

    def _encoded(self, body: EncoderDecoder, rows: Sequence[Row], memory: Memory | None) -> tuple[Tensor, Tensor]:
        """Encoder outputs [B, T, H] and their mask [B, T]: of the rows, or those that a memory holds."""
        if memory is None:
            batch = self._assemble(rows, None)
            return body.encode(batch), batch.mask
        check_memory(rows, memory, self.fingerprint, self.dtype)
        if memory.encoded is None or any(row_length(row) for row in rows):
            raise ShapeError("an encoder cannot go on from a memory: give empty rows with it, or whole rows without it")
        return memory.encoded, memory.mask

    def _plan(
        self, rows: Sequence[Row], memory: Memory | None, batch_tokens: int, extra: Sequence[int] | None = None
    ) -> list[list[int]]:
        check_memory(rows, memory, self.fingerprint, self.dtype)
        if not len(rows):
            raise ShapeError("expected at least one row, got an empty batch")
        before = [0] * len(rows) if memory is None else memory.lengths.tolist()
        more = [0] * len(rows) if extra is None else extra
        lengths = [row_length(row) + read + new for row, read, new in zip(rows, before, more, strict=True)]
        return plan_batches(lengths, batch_tokens=batch_tokens)


def _take(rows: Sequence[Row], part: Sequence[int]) -> list[Row]:
    return [rows[index] for index in part]


def _select(memory: Memory | None, part: Sequence[int]) -> Memory | None:
    return None if memory is None else memory.select(part)


def _eos_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """What ends an answer: the generation config's word, else the config's, else the tokenizer's."""
    for found in (
        getattr(getattr(model, "generation_config", None), "eos_token_id", None),
        getattr(model.config, "eos_token_id", None),
        tokenizer.eos_token_id,
    ):
        if found is not None:
            return tuple(int(i) for i in (found if isinstance(found, list | tuple) else [found]))
    return ()
