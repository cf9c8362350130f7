"""Neural recursion: Levine et al. 2022, arXiv 2204.10019, section 4.2. The frozen LM runs, a connector turns its output
vectors into input vectors, and the same LM runs again: one deeper, mostly frozen autoregressive model.

Column t of one pass makes column t of the next, so causality holds through all of them, and a token is decoded by one
step of every pass, each with its own keys and values (the connector's blocks with theirs). The loops are those of
`frozenlm/decoding.py`, which see one state. Our choices: more than two passes are allowed, and a prompt of any method
may stand in the last one, before or behind the text, where no connector feeds it. A prompt behind the text stands after
the context and before the answer. Pass 1 sees no prompt and depends on nothing that is trained (`pass_cache.py`).

This is not "Recursive Language Models" (arXiv 2512.24601), an unrelated scheme.
Shapes: B rows, T columns, P soft tokens, H hidden size, H' width of the final hidden states, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from frozenlm.backbone import DecoderState
from frozenlm.decoding import Settings, StopRule, decode_batch, fresh_seed
from frozenlm.errors import ConfigError, ShapeError
from frozenlm.lm import BATCH_TOKENS, FrozenLM
from frozenlm.prompts.interface import PromptInput, PromptModule
from frozenlm.recursion.connector import Connector, ConnectorState
from frozenlm.recursion.pass_cache import FirstPassCache
from frozenlm.recursion.sizes import require_decoder
from frozenlm.recursion.token_losses import token_losses
from frozenlm.rows import Assembled, Row, Soft, Tokens, check_rows, row_length, text_ids

EMPTY = PromptInput()


class RecursiveLM:
    """A frozen LM, a connector, and the LM again. Not an `nn.Module`: `module` holds what is trained.

    lm: decoder-only
    connector: made for this LM; it says how many passes there are
    prompt: any prompt method, in the last pass only

    Raises: ConfigError for an encoder-decoder LM; ShapeError for a connector of another width.
    """

    def __init__(self, lm: FrozenLM, connector: Connector, prompt: PromptModule | None = None) -> None:
        require_decoder(lm)
        if connector.hidden_size != lm.hidden_size:
            raise ShapeError(
                f"the connector makes vectors {connector.hidden_size} wide, the LM's embeddings are {lm.hidden_size}; "
                "make a connector for this LM"
            )
        if prompt is not None and prompt.position == "around":
            raise ConfigError(
                "a prompt in slots around the context cannot stand in the last pass, whose context is vectors; use one "
                "whose slots are all before or all behind it"
            )
        self.lm, self.connector, self.prompt = lm, connector, prompt
        trained: dict[str, nn.Module] = {"connector": connector}
        if isinstance(prompt, nn.Module):
            trained["prompt"] = prompt
        self.module = nn.ModuleDict(trained).train(connector.training)

    @property
    def passes(self) -> int:
        """How often the LM runs."""
        return self.connector.sizes.passes

    def forward(self, rows: Sequence[Row], *, sources: Sequence[PromptInput] | None = None) -> list[Tensor]:
        """Logits of the last pass: B tensors [n, V], line j predicting what comes after the row's j-th token.

        A prompt behind the text does not show here: it changes only what is scored or generated after the row.

        rows: B rows; vectors in them are constants, gradients flow into the connector and the prompt
        sources: B things that the prompt is written from

        Raises: ShapeError when a row does not fit the LM's window.
        """
        hidden, batch = self._run(rows, [row_length(row) for row in rows], sources, None)
        behind = self.prompt is not None and self.prompt.position == "suffix"
        last = batch.last_column - (self.prompt.length if self.prompt is not None and behind else 0)
        lengths = [row_length(row) for row in rows]
        spans = zip(hidden, last.tolist(), lengths, strict=True)
        states = torch.cat([columns[end - n + 1 : end + 1] for columns, end, n in spans])
        return list(self.lm.engine.head(states).split(lengths))

    def token_logprobs(
        self,
        rows: Sequence[Row],
        answers: Sequence[Sequence[int]],
        *,
        sources: Sequence[PromptInput] | None = None,
        first_pass: FirstPassCache | None = None,
    ) -> list[Tensor]:
        """Log-probability of each answer token after its row; differentiable in the connector and the prompt.

        rows: B rows
        answers: B lists of ids, none empty
        sources: B things that the prompt is written from
        first_pass: where the states of pass 1 are kept; needs rows of text only. None runs the LM

        Returns B tensors [len(answer)], nats, float32.

        Raises: ShapeError for an empty answer, not one answer a row, or a row that does not fit the LM's window;
            ConfigError for a cache of another LM.
        """
        lm, lengths = self.lm, [len(answer) for answer in answers]
        check_rows(rows, hidden_size=lm.hidden_size, vocab_size=lm.vocab_size)
        lm.engine.limits.check_answers(rows, answers, 0, lm.vocab_size)
        whole = [[*row, Tokens(tuple(answer[:-1]))] for row, answer in zip(rows, answers, strict=True)]
        hidden, batch = self._run(whole, [row_length(row) for row in rows], sources, first_pass)
        states = lm.engine.answer_states(hidden, batch, lengths)
        targets = torch.tensor([i for answer in answers for i in answer], device=lm.device)
        return list((-token_losses(states, targets, lm.engine.head)).split(lengths))

    @torch.no_grad()
    def generate(
        self,
        rows: Sequence[Row],
        *,
        sources: Sequence[PromptInput] | None = None,
        batch_tokens: int = BATCH_TOKENS,
        **settings: Any,
    ) -> Any:
        """Generate after each row with all passes; the connector is in eval mode meanwhile.

        rows: B rows
        sources: B things that the prompt is written from
        batch_tokens: the most tokens of a batch, in any one pass
        settings: `max_new_tokens`, `do_sample`, `num_beams`, ..., as `FrozenLM.generate` takes them

        Returns B generations, or B lists of `num_return_sequences` where that is above 1.

        Raises: ShapeError for a row that leaves no room for the prompt and the new tokens; ConfigError for a setting
            out of range.
        """
        stop = settings.pop("stop", ("\n",))
        chosen = Settings(stop=(stop,) if isinstance(stop, str) else tuple(stop), **settings)
        rule = StopRule(self.lm.eos_ids, chosen.stop, self.lm.decode)
        drawn, sources = fresh_seed(chosen.seed), self._sources(rows, sources)
        found: list[Any] = [[]] * len(rows)
        extra = chosen.max_new_tokens - 1 + (0 if self.prompt is None else self.prompt.length)
        share = max(1, batch_tokens // max(chosen.num_beams, chosen.num_return_sequences))
        with evaluating(self.module):
            for part in self.lm.engine.plan(rows, None, share, [extra] * len(rows)):
                taken, about = [rows[i] for i in part], [sources[i] for i in part]
                hidden, state = self._start(taken, about, chosen.max_new_tokens)
                made = decode_batch(state, hidden, self.lm.engine.head, rule, chosen, part, drawn)
                for index, generations in zip(part, made, strict=True):
                    found[index] = generations
        return found if chosen.num_return_sequences > 1 else [one[0] for one in found]

    def _run(
        self,
        rows: Sequence[Row],
        contexts: Sequence[int],
        sources: Sequence[PromptInput] | None,
        first_pass: FirstPassCache | None,
    ) -> tuple[Tensor, Assembled]:
        """Final hidden states of the last pass and their layout; `contexts`: columns of each row before its answer."""
        segments = self._segments(rows, sources)
        hidden, first = self._first_pass(rows, first_pass)
        batch = first
        for turn in range(self.passes - 1):
            vectors = self.connector(first.embeds, hidden, first.mask, turn=turn)
            last = turn == self.passes - 2
            hidden, batch = self.lm.engine.run(
                self._inputs(vectors, first, contexts, segments if last else None), None, None
            )
        return hidden, batch

    @torch.no_grad()
    def _first_pass(self, rows: Sequence[Row], cache: FirstPassCache | None) -> tuple[Tensor, Assembled]:
        """Final hidden states [B, T, H'] of the rows as they are, in the LM's own dtype even under autocast."""
        engine = self.lm.engine
        with torch.autocast(self.lm.device.type, enabled=False):
            if cache is None:
                return engine.run(rows, None, None)
            if cache.lm is not self.lm:
                raise ConfigError("the pass-1 cache belongs to another FrozenLM; make it with the LM that is run")
            if any(not isinstance(segment, Tokens) for row in rows for segment in row):
                raise ShapeError("the pass-1 cache knows rows of text only; leave it out for rows that hold vectors")
            states = cache.states([text_ids(row) for row in rows])
            batch = engine.layout(rows)
            hidden = states[0].new_zeros(*batch.mask.shape, states[0].shape[1])
            hidden[batch.mask.bool()] = torch.cat(states)
            return hidden, batch

    def _start(
        self, rows: Sequence[Row], sources: Sequence[PromptInput], max_new: int
    ) -> tuple[Tensor, "RecursiveState"]:
        """The hidden states [B, H'] that predict each row's first new token, and the state to decode on from."""
        return self.go_on(rows, sources, max_new, *self.lm.engine.begin(rows, None, max_new))

    def go_on(
        self,
        rows: Sequence[Row],
        sources: Sequence[PromptInput],
        max_new: int,
        hidden: Tensor,
        first: Assembled,
        state: DecoderState,
    ) -> tuple[Tensor, "RecursiveState"]:
        """All passes behind the first, before B answers of at most `max_new` tokens are decoded.

        hidden, first, state: what `Engine.begin` gives for the rows: pass 1

        Returns the hidden states [B, H'] that predict each row's first new token, and the state to decode on from.
        """
        engine, contexts = self.lm.engine, [row_length(row) for row in rows]
        segments = self._segments(rows, sources)
        lm_states, batch = [state], first
        connector_states: list[ConnectorState] = []
        for turn in range(self.passes - 1):
            vectors, connector_state = self.connector.start(first.embeds, hidden, first.mask, turn=turn)
            inputs = self._inputs(vectors, first, contexts, segments if turn == self.passes - 2 else None)
            hidden, batch, lm_state = engine.begin(inputs, None, max_new)
            lm_states.append(lm_state)
            connector_states.append(connector_state)
        newest = hidden[torch.arange(len(rows), device=hidden.device), batch.last_column]
        return newest, RecursiveState(self.lm, lm_states, connector_states)

    def _inputs(
        self, vectors: Tensor, layout: Assembled, contexts: Sequence[int], segments: Sequence[Soft] | None
    ) -> list[Row]:
        """Vectors [B, T, H] of all columns as rows of their own length, each with its prompt in place."""
        ends, lengths = layout.last_column.tolist(), layout.lengths.tolist()
        rows: list[Row] = []
        for number, (columns, end, n) in enumerate(zip(vectors, ends, lengths, strict=True)):
            own = columns[end - n + 1 : end + 1]
            if segments is None or self.prompt is None:
                rows.append([Soft(own)])
            elif self.prompt.position == "prefix":
                rows.append([segments[number], Soft(own)])
            else:
                rows.append([Soft(own[: contexts[number]]), segments[number], Soft(own[contexts[number] :])])
        return rows

    def _segments(self, rows: Sequence[Row], sources: Sequence[PromptInput] | None) -> list[Soft] | None:
        return None if self.prompt is None else self.prompt.segments(self._sources(rows, sources))

    def _sources(self, rows: Sequence[Row], sources: Sequence[PromptInput] | None) -> Sequence[PromptInput]:
        if sources is None:
            return [EMPTY] * len(rows)
        if len(sources) != len(rows):
            raise ShapeError(f"{len(rows)} rows, but {len(sources)} sources of their prompts; give one for each row")
        return sources


class RecursiveState:
    """A decoding run through all passes: one token is one step of each (`frozenlm.backbone.State`)."""

    def __init__(
        self, lm: FrozenLM, lm_states: Sequence[DecoderState], connector_states: Sequence[ConnectorState]
    ) -> None:
        self._lm, self._first, self._later = lm, lm_states[0], list(zip(connector_states, lm_states[1:], strict=True))

    def step(self, ids: Tensor) -> Tensor:
        """ids [N] -> final hidden states of the last pass [N, H']."""
        embeds = self._lm.engine.body.embed(ids)
        hidden = self._first.feed(embeds)
        for connector_state, lm_state in self._later:
            hidden = lm_state.feed(connector_state.step(embeds, hidden).to(embeds.dtype))
        return hidden

    def select(self, index: Tensor) -> None:
        """Keep the sequences at index [M] in every pass."""
        for connector_state, lm_state in self._later:
            connector_state.select(index)
            lm_state.select(index)
        self._first.select(index)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """The module in eval mode, and afterwards as it was."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)
