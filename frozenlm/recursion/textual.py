"""Textual recursion: Levine et al. 2022, arXiv 2204.10019, section 4.1. The frozen LM samples answers to a question,
they are put before it with the question, and it answers again; each pass has a soft prompt of its own.

    pass 1    [before, question, prompt 1]   -> n samples in one batch, the row read once -> candidates
    pass 2    [before, template(question, candidates), prompt 2]   -> the answer, greedily

What stands before the question (control tokens, an opening, passages) is the same in both passes. Where no prompt
stands in front of it, a decoder-only LM reads it once and every pass goes on from its memory (our choice; so over
passages the second pass costs little more than its question). `When` may spare sure questions the second pass. The
number of samples, temperature, merging, order and template are our choices too. Random numbers are drawn from the seed
and the question's text, so that its candidates depend, up to floating point, neither on its place nor on its batch.

Without passages this costs about two passes and n short continuations. It is not "Recursive Language Models"
(arXiv 2512.24601), an unrelated scheme.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, TypeVar

import torch

from frozenlm.decoding import Generation
from frozenlm.errors import ConfigError
from frozenlm.lm import BATCH_TOKENS
from frozenlm.memory import Memory
from frozenlm.prompts.interface import PromptInput, PromptModule
from frozenlm.recursion.candidates import (
    Candidates,
    Normal,
    check_sampling,
    plain_form,
    sample_candidates,
    with_prompt,
)
from frozenlm.recursion.second_pass import SecondPassRow, SecondPassTemplate, second_pass_rows
from frozenlm.recursion.when import When, confidence
from frozenlm.rows import Row, Tokens, plan_batches
from frozenlm.train_data import derived_seed

if TYPE_CHECKING:
    from frozenlm.lm import FrozenLM

T = TypeVar("T")
Stage = Literal["first", "candidates", "second"]


@dataclass(frozen=True)
class Asked:
    """One question as both passes need it.

    question: as it is asked; it fills the second pass's template
    ids: the question as pass 1 reads it, without what stands before
    before: ids in front of it in both passes, the LM's `bos_ids` among them
    source: what pass 1's prompt is written from
    """

    question: str
    ids: tuple[int, ...]
    before: tuple[int, ...] = ()
    source: PromptInput = field(default=PromptInput())


@dataclass(frozen=True)
class Sampling:
    """How candidates are drawn, and how long an answer of any pass may get.

    n: samples a question
    max_new_tokens: of a sample, and of an answer
    stop: strings that end it

    Raises: ConfigError for n below 1, or temperature 0 with n above 1.
    """

    n: int = 8
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 32
    stop: tuple[str, ...] = ("\n",)
    seed: int = 0

    def __post_init__(self) -> None:
        check_sampling(self.n, self.temperature)


@dataclass(frozen=True)
class Recursed:
    """An answer, and how it came about.

    text, logprob: of the last pass that ran; nats, summed over its tokens
    passes: what ran, in order: "first" (the greedy answer of pass 1), "candidates", "second"
    first, confidence: where "first" ran
    candidates, second: where they ran
    timings: seconds a question by stage, a batch's time divided by the questions in it; "before" is the shared reading
    """

    text: str
    logprob: float
    passes: tuple[Stage, ...]
    first: Generation | None = None
    confidence: float | None = None
    candidates: Candidates | None = None
    second: SecondPassRow | None = None
    timings: dict[str, float] = field(default_factory=dict)


class TextualRecursion:
    """One frozen LM, run twice.

    first, second: the prompts of the two passes; None leaves a pass without one
    normalize: see `merged`; clean, answer_reserve, max_tokens: see `second_pass_rows`
    batch_tokens: the most tokens of a batch, counting each sample's row

    Raises: ConfigError when answers may be longer than what is kept free for them.
    """

    def __init__(
        self,
        lm: "FrozenLM",
        *,
        first: PromptModule | None = None,
        second: PromptModule | None = None,
        template: SecondPassTemplate | None = None,
        sampling: Sampling | None = None,
        when: When | None = None,
        normalize: Normal = plain_form,
        clean: Callable[[str], str] = str,
        answer_reserve: int = 32,
        max_tokens: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
    ) -> None:
        self.lm, self.first, self.second = lm, first, second
        self.template = template or SecondPassTemplate()
        self.sampling, self.when = sampling or Sampling(), when or When()
        self.normalize, self.clean = normalize, clean
        self.answer_reserve, self.max_tokens, self.batch_tokens = answer_reserve, max_tokens, batch_tokens
        if self.sampling.max_new_tokens > answer_reserve:
            raise ConfigError(
                f"max_new_tokens is {self.sampling.max_new_tokens}, but only answer_reserve={answer_reserve} tokens "
                "of the window are kept free; raise the one or lower the other"
            )

    def answer(self, asked: Sequence[Asked]) -> list[Recursed]:
        """B questions, B answers.

        Raises: ShapeError for a question that does not fit the window.
        """
        share = max(1, self.batch_tokens // self.sampling.n)
        found: dict[int, Recursed] = {}
        for part in plan_batches([len(one.before) + len(one.ids) for one in asked], batch_tokens=share):
            found.update(zip(part, self._answer_batch([asked[i] for i in part]), strict=True))
        return [found[number] for number in range(len(asked))]

    def first_answers(self, asked: Sequence[Asked], memory: Memory | None = None) -> list[Generation]:
        """Pass 1 alone, greedily. memory: of what stands before, as `read_before` gives it."""
        return self._greedy(self._first_rows(asked, memory), memory)

    def candidates(self, asked: Sequence[Asked], memory: Memory | None = None) -> list[Candidates]:
        """Pass 1 sampled, B sets of candidates. memory: as in `first_answers`."""
        return sample_candidates(
            self.lm,
            self._first_rows(asked, memory),
            n=self.sampling.n,
            temperature=self.sampling.temperature,
            top_p=self.sampling.top_p,
            max_new_tokens=self.sampling.max_new_tokens,
            seed=self.sampling.seed,
            memory=memory,
            normalize=self.normalize,
            stop=self.sampling.stop,
            row_numbers=[derived_seed("question", one.question) for one in asked],
            batch_tokens=self.batch_tokens,
        )

    def second_rows(self, asked: Sequence[Asked], candidates: Sequence[Candidates]) -> list[SecondPassRow]:
        """What pass 2 reads, or learns on: `Example.of(row.context, answer, PromptInput(row.text))`."""
        return second_pass_rows(
            self.lm,
            [one.question for one in asked],
            [one.ranked for one in candidates],
            self.template,
            before=[one.before for one in asked],
            soft_tokens=self.second.length if self.second is not None else 0,
            answer_reserve=self.answer_reserve,
            max_tokens=self.max_tokens,
            clean=self.clean,
        )

    def second_answers(self, rows: Sequence[SecondPassRow], memory: Memory | None = None) -> list[Generation]:
        """Pass 2, greedily. memory: as in `first_answers`."""
        read = [row.behind if memory is not None else 0 for row in rows]
        texts: list[Row] = [[Tokens(row.context[start:])] for row, start in zip(rows, read, strict=True)]
        with torch.no_grad():
            placed = with_prompt(texts, self.second, [PromptInput(row.text) for row in rows])
        return self._greedy(placed, memory)

    def read_before(self, asked: Sequence[Asked]) -> Memory | None:
        """The memory of what stands before the questions; None where it is not shared or not worth it."""
        prompts = [prompt for prompt in (self.first, self.second) if prompt is not None]
        shared = self.lm.kind == "decoder" and all(prompt.position == "suffix" for prompt in prompts)
        lengths = [len(one.before) for one in asked]
        if not shared or min(lengths) == 0 or max(lengths) <= len(self.lm.bos_ids):
            return None
        return self.lm.read([[Tokens(one.before)] for one in asked])

    def _answer_batch(self, asked: Sequence[Asked]) -> list[Recursed]:
        memory, read_seconds = _timed(len(asked), lambda: self.read_before(asked))
        spent = {"before": read_seconds} if memory is not None else {}
        if self.when.rule == "always":
            return self._both_passes(asked, memory, spent)
        firsts, seconds = _timed(len(asked), lambda: self.first_answers(asked, memory))
        spent["first"] = seconds
        found: list[Recursed] = []
        for first in firsts:
            sure = confidence(first)
            found.append(Recursed(first.text, first.logprob, ("first",), first, sure, timings=spent))
        paying = [i for i, one in enumerate(found) if one.confidence is not None and self.when.pays(one.confidence)]
        if paying:
            going = memory.select(paying) if memory is not None else None
            second = self._both_passes([asked[i] for i in paying], going, spent)
            for i, one in zip(paying, second, strict=True):
                passes: tuple[Stage, ...] = ("first", *one.passes)
                found[i] = replace(one, passes=passes, first=found[i].first, confidence=found[i].confidence)
        return found

    def _both_passes(self, asked: Sequence[Asked], memory: Memory | None, spent: dict[str, float]) -> list[Recursed]:
        sampled, seconds = _timed(len(asked), lambda: self.candidates(asked, memory))
        rows = self.second_rows(asked, sampled)
        answers, more = _timed(len(asked), lambda: self.second_answers(rows, memory))
        timings = {**spent, "candidates": seconds, "second": more}
        return [
            Recursed(said.text, said.logprob, ("candidates", "second"), candidates=drawn, second=row, timings=timings)
            for said, drawn, row in zip(answers, sampled, rows, strict=True)
        ]

    def _first_rows(self, asked: Sequence[Asked], memory: Memory | None) -> list[Row]:
        close = self.lm.close_ids
        rows: list[Row] = [[Tokens((*(one.before if memory is None else ()), *one.ids, *close))] for one in asked]
        with torch.no_grad():
            return with_prompt(rows, self.first, [one.source for one in asked])

    def _greedy(self, rows: Sequence[Row], memory: Memory | None) -> list[Generation]:
        settings = self.sampling
        return self.lm.generate(
            rows,
            memory=memory,
            max_new_tokens=settings.max_new_tokens,
            stop=settings.stop,
            batch_tokens=self.batch_tokens,
        )


def _timed(questions: int, work: Callable[[], T]) -> tuple[T, float]:
    """The result, and the seconds a question."""
    start = time.perf_counter()
    result = work()
    return result, (time.perf_counter() - start) / questions
