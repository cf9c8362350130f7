"""FrozenLM: the host of one pretrained LM that nothing ever changes.

It loads the LM, freezes it, and runs rows through it (`rows.py`): logits in line with the text, log-probabilities of
answers, generation, hidden states, and memories of what has been read. It is not an `nn.Module` on purpose: a trained
module that holds a FrozenLM does not get the LM's weights into its own `parameters()` or `state_dict()`.
Shapes: `docs/notation.md`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.nn import functional

from frozenlm.decoding import Generation, Settings, StopRule, decode_batch, fresh_seed
from frozenlm.engine import Engine
from frozenlm.errors import ShapeError
from frozenlm.frozen_model import FrozenModel
from frozenlm.loading import load_pretrained, moved
from frozenlm.memory import Memory
from frozenlm.probe import check_logits
from frozenlm.rows import Assembled, PaddingSide, Row, Tokens, check_rows

BATCH_TOKENS = 8192  # tokens of a batch, padding counted: our choice, good on two CPU cores and on a GPU


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


class FrozenLM(FrozenModel):
    """One pretrained LM, decoder-only or encoder-decoder, that stays what it was.

    Make one with `FrozenLM.load` or `FrozenLM.from_model`.

    Attributes:
        model: the transformers model; frozen, in eval mode. Use it, but leave it as it is.
        tokenizer: the caller's tokenizer, unchanged.
        kind: "decoder" or "encoder-decoder".
        hidden_size: H, width of the embeddings and so of every soft vector.
        vocab_size: V.
        window: the most tokens of a row with its memory and its answer; None if the LM has no limit.
        pad_id, eos_ids, bos_ids, close_ids: control ids: padding; what ends an answer; what opens a text; what closes
            an encoder's input (() for decoder-only LMs).
        start_ids: what an encoder-decoder's decoder reads before the answer (() for decoder-only LMs).
        fingerprint: SHA-256 that names this LM (`fingerprint.py`).
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, window: int | None = None, padding_side: PaddingSide = "right"
    ) -> None:
        super().__init__(model, tokenizer, closes=model.config.is_encoder_decoder)
        self.kind: Literal["decoder", "encoder-decoder"]
        self.kind = "encoder-decoder" if model.config.is_encoder_decoder else "decoder"
        self.bos_ids, self.close_ids = self._codec.bos_ids, self._codec.close_ids
        self.eos_ids = _eos_ids(model, tokenizer)
        pad = tokenizer.pad_token_id
        self.pad_id: int = pad if pad is not None else self.eos_ids[0] if self.eos_ids else 0
        self._engine = Engine(
            model, fingerprint=self.fingerprint, pad_id=self.pad_id, window=window, padding_side=padding_side
        )
        self.window = self._engine.limits.window
        self.start_ids = self._engine.start_ids
        self.vocab_size, self.hidden_size = self._engine.vocab_size, self._engine.hidden_size
        check_logits(self)

    @classmethod
    def load(
        cls,
        path_or_id: str | Path,
        *,
        revision: str | None = None,
        dtype: str = "auto",
        device: str = "auto",
        attn_implementation: str = "auto",
        window: int | None = None,
        padding_side: PaddingSide = "right",
    ) -> "FrozenLM":
        """Load a local folder or a hub model.

        Args:
            path_or_id: a folder saved by transformers, or a hub id.
            revision: branch, tag or commit on the hub.
            dtype: "auto" is the checkpoint's dtype on CUDA and float32 on the CPU (our choice: exact for bf16
                checkpoints, and results do not drift with the batch's shape); or "float32", "bfloat16", "float16".
            device: "auto" is CUDA where there is one, else "cpu".
            attn_implementation: "auto" is transformers' choice, mostly "sdpa". On a CPU that multiplies bfloat16,
                training in bf16 is faster with "eager" (docs/results.md).
            window: the most tokens to use, below the LM's own limit.
            padding_side: how decoder-only batches are padded; results are equal.

        Raises:
            CheckpointError: model, weights or tokenizer missing or damaged.
            ConfigError: a setting is unknown, or the LM is of a kind that cannot be driven.
        """
        model, tokenizer = load_pretrained(
            path_or_id, revision=revision, dtype=dtype, device=device, attn_implementation=attn_implementation
        )
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
        return cls(moved(model, dtype=dtype, device=device), tokenizer, window=window, padding_side=padding_side)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, and of the embeddings that are fed."""
        return self._engine.dtype

    @property
    def device(self) -> torch.device:
        """Where the input embeddings lie."""
        return self._engine.device

    @property
    def engine(self) -> Engine:
        """What runs the LM, for modules that run it in a way of their own (a second pass, for instance)."""
        return self._engine

    @contextmanager
    def changed(self, name: str) -> Iterator[None]:
        """For the while, the LM runs with something attached (`deltas/attach.py`): memories go by this name, so that
        what was read with it and what was read without are never mixed."""
        before, self._engine.fingerprint = self._engine.fingerprint, name
        try:
            yield
        finally:
            self._engine.fingerprint = before

    @property
    def is_changed(self) -> bool:
        """Whether something is attached right now."""
        return self._engine.fingerprint != self.fingerprint

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
        """ids [...] -> embeddings [..., H], as the LM's first layer gets them (embedding scale included).

        Raises:
            ShapeError: an id outside the vocabulary.
        """
        ids = torch.as_tensor(ids, dtype=torch.long)
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.vocab_size:
            raise ShapeError(f"token ids must lie in 0..{self.vocab_size - 1}, got {int(ids.min())}..{int(ids.max())}")
        return self._engine.body.embed(ids.to(self.device))

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
        if batch_tokens is None:
            return self._engine.read(rows, memory)
        parts = self._engine.plan(rows, memory, batch_tokens, [0] * len(rows))
        read = Memory.concatenate([self._engine.read(_take(rows, part), _select(memory, part)) for part in parts])
        order = [index for part in parts for index in part]
        return read.select(sorted(range(len(order)), key=order.__getitem__))

    def forward(
        self, rows: Sequence[Row], *, memory: Memory | None = None, decoder_rows: Sequence[Row] | None = None
    ) -> Output:
        """Run rows through the LM; differentiable in every `Soft`.

        Args:
            rows: B rows; for an encoder-decoder the encoder's input (B empty rows where a memory is given).
            memory: what they go on from, B rows.
            decoder_rows: for an encoder-decoder, what the decoder reads, `start_ids` included. The logits are those of
                the decoder's text tokens.

        Raises:
            ShapeError: as `read`; decoder_rows missing or not wanted.
        """
        hidden, batch = self._engine.run(rows, memory, decoder_rows)
        present = batch.text_index >= 0
        columns = torch.arange(len(rows), device=self.device).unsqueeze(1) * hidden.shape[1] + batch.text_index
        logits = self._engine.head(hidden.flatten(0, 1).index_select(0, columns[present]))
        return Output(list(logits.split(present.sum(dim=1).tolist())), hidden, batch)

    @torch.no_grad()
    def next_logits(self, rows: Sequence[Row], *, memory: Memory | None = None) -> Tensor:
        """[B, V] float32 logits of the first answer token, in one batch: what comes right after each row.

        Args:
            rows: B rows (an encoder-decoder's encoder input), ending in text or in a soft segment.
            memory: what they go on from, B rows.

        Raises:
            ShapeError: as `read`.
        """
        starts = [[Tokens(self.start_ids)]] * len(rows) if self.kind == "encoder-decoder" else None
        hidden, batch = self._engine.run(rows, memory, starts)
        return self._engine.head(hidden[torch.arange(len(rows), device=hidden.device), batch.last_column]).float()

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
        self._check_answers(rows, answers)
        # The last answer token is only predicted, never read.
        if self.kind == "encoder-decoder":
            decoder_rows = [[Tokens((*self.start_ids, *answer[:-1]))] for answer in answers]
            hidden, batch = self._engine.run(rows, memory, decoder_rows)
        else:
            check_rows(rows, hidden_size=self.hidden_size, vocab_size=self.vocab_size)
            whole = [[*row, Tokens(tuple(answer[:-1]))] for row, answer in zip(rows, answers, strict=True)]
            hidden, batch = self._engine.run(whole, memory, None)
        lengths = [len(answer) for answer in answers]
        logits = self._engine.head(self._engine.answer_states(hidden, batch, lengths)).float()
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
        self._check_answers(rows, answers)
        scores = [0.0] * len(rows)
        encodes = self.kind == "encoder-decoder"
        extra = [0 if encodes else len(answer) - 1 for answer in answers]
        for part in self._engine.plan(rows, memory, batch_tokens, extra):
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
        for part in self._engine.plan(rows, memory, batch_tokens, [0] * len(rows)):
            states = self._engine.text_states(_take(rows, part), _select(memory, part))
            for index, state in zip(part, states, strict=True):
                found[index] = state
        return found

    @overload
    def generate(
        self, rows: Sequence[Row], *, num_return_sequences: Literal[1] = 1, **settings: Any
    ) -> list[Generation]: ...
    @overload
    def generate(
        self, rows: Sequence[Row], *, num_return_sequences: int, **settings: Any
    ) -> list[list[Generation]]: ...
    @torch.no_grad()  # type: ignore[misc]  # the overloads spell out only what decides the return type
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
        row_numbers: Sequence[int] | None = None,
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
            stop: a generation ends at the first of these strings, which its text leaves out.
            seed: of the sampling; the same seed gives the same samples, however the rows are batched. None draws one.
            row_numbers: B whole numbers of at least 0; a row's random numbers are drawn from the seed and its own, so
                that its samples need not depend on its place. None counts the rows.
            batch_tokens: the most tokens of a batch.

        Returns:
            B generations, or B lists of `num_return_sequences` where that is above 1.

        Raises:
            ShapeError: as `read`; a row that leaves no room for max_new_tokens; not one row number a row.
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
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            seed=seed,
        )
        rule = StopRule(self.eos_ids, settings.stop, self.decode)
        drawn = fresh_seed(seed)
        if row_numbers is not None and len(row_numbers) != len(rows):
            raise ShapeError(f"{len(row_numbers)} row numbers for {len(rows)} rows; give one each")
        found: list[list[Generation]] = [[]] * len(rows)
        extra = max_new_tokens - 1  # the last new token is never read
        if self.kind == "encoder-decoder":
            self._engine.limits.check_decoder(len(self.start_ids) + extra)
            extra = 0
        share = max(1, batch_tokens // max(num_beams, num_return_sequences))
        for part in self._engine.plan(rows, memory, share, [extra] * len(rows)):
            hidden, state = self._engine.start(_take(rows, part), _select(memory, part), max_new_tokens)
            numbers = part if row_numbers is None else [row_numbers[index] for index in part]
            made = decode_batch(state, hidden, self._engine.head, rule, settings, numbers, drawn)
            for index, generations in zip(part, made, strict=True):
                found[index] = generations
        return found if num_return_sequences > 1 else [one[0] for one in found]

    def _check_answers(self, rows: Sequence[Row], answers: Sequence[Sequence[int]]) -> None:
        self._engine.limits.check_answers(rows, answers, len(self.start_ids), self.vocab_size)


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
