"""Neural recursion where it pays: a plain pass of the LM answers first, and only unsure inputs go through all passes.

Our choice (`when.py` has the rule); the paper (arXiv 2204.10019, section 4.2) runs all passes on every input. The plain
pass answers greedily, with a soft prompt of its own or none. Its context is what pass 1 reads too, so it is read once,
unless that prompt stands in front of it. An input that recurses is decoded with random numbers of its own row, so its
answer is the one that it gets where all inputs recurse.
Shapes: B rows, H' width of the final hidden states.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from frozenlm.backbone import DecoderOnly, State
from frozenlm.decoding import Generation, Settings, StopRule, decode_batch, fresh_seed
from frozenlm.errors import ConfigError
from frozenlm.lm import BATCH_TOKENS
from frozenlm.memory import Memory
from frozenlm.prompts.interface import PromptInput, PromptModule
from frozenlm.recursion.candidates import with_prompt
from frozenlm.recursion.neural import EMPTY, RecursiveLM, evaluating
from frozenlm.recursion.when import When, confidence
from frozenlm.rows import Assembled, Row

PLAIN = "plain"


@dataclass(frozen=True)
class Recurred:
    """An answer, and how it came about.

    generation: of the last pass that ran
    passes: what ran, in order: "plain" (the greedy answer of one pass), then "pass_1", "pass_2", ...
    plain, confidence: where "plain" ran
    timings: seconds an input by stage, "plain" and "passes": a batch's time divided by the inputs in it; what is read
        once counts as "plain"
    """

    generation: Generation
    passes: tuple[str, ...]
    plain: Generation | None = None
    confidence: float | None = None
    timings: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Read:
    """Pass 1 of B rows: its states [B, T, H'], their layout, and the memory to go on from."""

    hidden: Tensor
    layout: Assembled
    memory: Memory

    def select(self, index: Sequence[int], layout: Assembled) -> "_Read":
        """That of the rows at the index, laid out anew: columns that only other rows had are gone."""
        hidden = self.hidden.new_zeros(*layout.mask.shape, self.hidden.shape[2])
        hidden[layout.mask.bool()] = self.hidden[list(index)][self.layout.mask[list(index)].bool()]
        return _Read(hidden, layout, self.memory.select(index))


class NeuralRecursion:
    """One frozen LM, run once, or several times with a connector between.

    model: all passes
    plain: the prompt of the plain pass, which need not be that of the last pass; None leaves it without one
    when: which inputs recurse
    """

    def __init__(self, model: RecursiveLM, *, plain: PromptModule | None = None, when: When | None = None) -> None:
        self.model, self.plain, self.when = model, plain, when or When()
        self.passes = tuple(f"pass_{number + 1}" for number in range(model.passes))

    @torch.no_grad()
    def answer(
        self,
        rows: Sequence[Row],
        *,
        sources: Sequence[PromptInput] | None = None,
        batch_tokens: int = BATCH_TOKENS,
        **settings: Any,
    ) -> list[Recurred]:
        """B rows, B answers.

        rows: B rows
        sources: B things that the prompts are written from
        batch_tokens: the most tokens of a batch, in any one pass
        settings: as `RecursiveLM.generate` takes them, for the inputs that recurse; one answer each

        Raises: ShapeError for a row that leaves no room for a prompt and the new tokens; ConfigError for a setting out
            of range.
        """
        if settings.get("num_return_sequences", 1) != 1:
            raise ConfigError("an answer is one sequence; leave num_return_sequences out")
        if self.when.rule == "always":
            made = self.model.generate(rows, sources=sources, batch_tokens=batch_tokens, **settings)
            return [Recurred(one, self.passes) for one in made]
        how = _Decoding.of(self.model, settings)
        sources = [EMPTY] * len(rows) if sources is None else sources
        longest = max(prompt.length if prompt is not None else 0 for prompt in (self.plain, self.model.prompt))
        extra = [how.settings.max_new_tokens - 1 + longest] * len(rows)
        found: dict[int, Recurred] = {}
        with evaluating(self.model.module):
            for part in self.model.lm.engine.plan(rows, None, max(1, batch_tokens // how.settings.num_beams), extra):
                some = self._answer_batch([rows[i] for i in part], [sources[i] for i in part], part, how)
                found.update(zip(part, some, strict=True))
        return [found[number] for number in range(len(rows))]

    def _answer_batch(
        self, rows: Sequence[Row], sources: Sequence[PromptInput], numbers: Sequence[int], how: "_Decoding"
    ) -> list[Recurred]:
        """Answers to one batch; `numbers`: places of the rows among the caller's."""
        start = time.perf_counter()
        shared = self.plain is None or self.plain.position == "suffix"
        read = self._read(rows, how) if shared else None
        plain = how.decode(*self._plain(rows, sources, read, how), numbers, greedy=True)
        spent = {PLAIN: (time.perf_counter() - start) / len(rows)}
        found = [Recurred(one, (PLAIN,), one, confidence(one), spent) for one in plain]
        paying = [place for place, one in enumerate(plain) if self.when.pays(confidence(one))]
        if not paying:
            return found
        start = time.perf_counter()
        again = [rows[place] for place in paying]
        pass_1 = self._read(again, how) if read is None else read.select(paying, self.model.lm.engine.layout(again))
        hidden, state = self.model.go_on(
            again,
            [sources[place] for place in paying],
            how.settings.max_new_tokens,
            pass_1.hidden,
            pass_1.layout,
            self._body.resume(pass_1.memory),
        )
        made = how.decode(hidden, state, [numbers[place] for place in paying])
        spent = {**spent, "passes": (time.perf_counter() - start) / len(paying)}
        for place, one in zip(paying, made, strict=True):
            found[place] = replace(found[place], generation=one, passes=(PLAIN, *self.passes), timings=spent)
        return found

    def _read(self, rows: Sequence[Row], how: "_Decoding") -> _Read:
        engine = self.model.lm.engine
        hidden, layout, state = engine.begin(rows, None, how.settings.max_new_tokens)
        return _Read(hidden, layout, state.memory(engine.fingerprint))

    def _plain(
        self, rows: Sequence[Row], sources: Sequence[PromptInput], read: _Read | None, how: "_Decoding"
    ) -> tuple[Tensor, State]:
        """The hidden states [B, H'] that predict the first tokens of the plain answers, and the state behind them."""
        engine, most = self.model.lm.engine, how.settings.max_new_tokens
        if read is None:
            return engine.start(with_prompt(rows, self.plain, sources), None, most)
        if self.plain is None:
            last = read.layout.last_column
            return read.hidden[torch.arange(len(rows), device=last.device), last], self._body.resume(read.memory)
        return engine.start([[segment] for segment in self.plain.segments(sources)], read.memory, most)

    @property
    def _body(self) -> DecoderOnly:
        body = self.model.lm.engine.body
        if not isinstance(body, DecoderOnly):
            raise ConfigError("neural recursion needs a decoder-only LM")
        return body


@dataclass(frozen=True)
class _Decoding:
    """How answers are decoded."""

    model: RecursiveLM
    settings: Settings
    rule: StopRule
    seed: int

    @classmethod
    def of(cls, model: RecursiveLM, given: dict[str, Any]) -> "_Decoding":
        stop = given.get("stop", ("\n",))
        settings = Settings(**{**given, "stop": (stop,) if isinstance(stop, str) else tuple(stop)})
        rule = StopRule(model.lm.eos_ids, settings.stop, model.lm.decode)
        return cls(model, settings, rule, fresh_seed(settings.seed))

    def decode(self, hidden: Tensor, state: State, numbers: Sequence[int], *, greedy: bool = False) -> list[Generation]:
        """One generation a row."""
        settings = self.settings
        if greedy:
            settings = Settings(max_new_tokens=settings.max_new_tokens, stop=settings.stop)
        made = decode_batch(state, hidden, self.model.lm.engine.head, self.rule, settings, numbers, self.seed)
        return [one for (one,) in made]
