"""From a row of a task to the token ids that the LM reads and is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from frozenlm.lm_tasks import Example
from frozenlm.prompts.interface import PromptInput
from pipelines.errors import ConfigError

if TYPE_CHECKING:
    from frozenlm.deltas.attach import Delta
    from frozenlm.lm import FrozenLM
    from frozenlm.prompts.interface import PromptModule
    from pipelines.tasks.task import TaskRow


@dataclass
class InputCounts:
    """What had to be cut: inputs, and free-text answers to learn from."""

    inputs: int = 0
    inputs_cut: int = 0
    answers_cut: int = 0


def input_room(
    kind: str,
    window: int | None,
    *,
    max_tokens: int,
    keep_end: int,
    answer_tokens: int,
    soft_tokens: int,
    frame: int = 0,
) -> int:
    """The most tokens of an input.

    Args:
        kind: of the LM; an encoder-decoder's answer takes no room from its input.
        window: the LM's; None for no limit.
        frame: control tokens around an input.

    Raises:
        ConfigError: there is no room for an input that keeps more than its end.
    """
    taken = frame + soft_tokens + (answer_tokens if kind == "decoder" else 0)
    room = max_tokens if window is None else min(max_tokens, window - taken)
    if room < max_tokens and room <= keep_end:
        raise ConfigError(
            f"the LM's window of {window} tokens leaves {room} for an input beside {soft_tokens} soft tokens and an "
            f"answer of {answer_tokens}, but input.keep_end alone is {keep_end}; lower one of them"
        )
    if room <= keep_end:
        raise ConfigError(
            f"input.max_tokens is {max_tokens}, but input.keep_end alone is {keep_end}; an input that is cut keeps its "
            "beginning too, so keep_end must be the smaller one"
        )
    return room


class RowEncoder:
    """Turns inputs and answers into token ids of one LM.

    An input longer than its room keeps its beginning and its last `keep_end` tokens, where templates put the question
    (our choice); every cut is counted in `counts`.

    Args:
        lm: whose tokens.
        max_tokens: the most tokens of an input, control tokens not counted.
        keep_end: tokens kept at the end of an input that is cut.
        answer: wording of an answer, with the slot `{answer}`; a tokenizer that glues words to the space before them
            needs that space here.
        answer_tokens: the most tokens of an answer to learn from, or to generate.
        soft_tokens: of the longest prompt that stands beside the input.

    Raises:
        ConfigError: there is no room for an input in the LM's window.
    """

    def __init__(
        self,
        lm: FrozenLM,
        *,
        max_tokens: int = 256,
        keep_end: int = 48,
        answer: str = " {answer}",
        answer_tokens: int = 96,
        soft_tokens: int = 0,
    ) -> None:
        if "{answer}" not in answer:
            raise ConfigError(f"input.answer needs the slot {{answer}}, got {answer!r}")
        self.lm, self.keep_end, self.answer, self.answer_tokens = lm, keep_end, answer, answer_tokens
        self.room = input_room(
            lm.kind,
            lm.window,
            max_tokens=max_tokens,
            keep_end=keep_end,
            answer_tokens=answer_tokens,
            soft_tokens=soft_tokens,
            frame=len(lm.bos_ids) + len(lm.close_ids),
        )
        self.counts = InputCounts()

    def context(self, text: str) -> list[int]:
        """What stands before the answer, control tokens included."""
        return self.fitted(text)[0]

    def fitted(self, text: str) -> tuple[list[int], bool]:
        """What stands before the answer, and whether the input had to be cut for it."""
        ids = self.lm.encode(text)
        cut = len(ids) > self.room
        self.counts.inputs += 1
        self.counts.inputs_cut += cut
        if cut:
            ids = ids[: self.room - self.keep_end] + ids[len(ids) - self.keep_end :]
        return [*self.lm.bos_ids, *ids, *self.lm.close_ids], cut

    def candidate(self, text: str) -> list[int]:
        """An answer as it is scored: without the token that ends it.

        Raises:
            ConfigError: it has no token.
        """
        ids = self.lm.encode(self.answer.replace("{answer}", text))
        if not ids:
            raise ConfigError(f"the answer {text!r} has no token in this LM's vocabulary; word it otherwise")
        return ids

    def example(self, row: TaskRow) -> Example:
        """A row to learn from: its answer, and the token that ends it."""
        ids = self.candidate(row.target)
        self.counts.answers_cut += len(ids) >= self.answer_tokens
        ids = ids[: self.answer_tokens - 1]
        return Example.of(self.context(row.text), [*ids, *self.lm.eos_ids[:1]], source_of(row))

    def scored(self, row: TaskRow) -> tuple[list[int], list[list[int]], PromptInput]:
        """A row to measure: context, candidates (none for free text), and what a prompt is written from."""
        return self.context(row.text), [self.candidate(choice) for choice in row.choices], source_of(row)


def source_of(row: TaskRow) -> PromptInput:
    """What a prompt generator sees of a row."""
    return PromptInput(text=row.text, task=row.task)


def too_long(module: PromptModule | Delta | None, inputs: Sequence[PromptInput]) -> list[bool]:
    """Which inputs the module's frozen encoder cannot read whole; none where it has no encoder."""
    ask: Callable[[Sequence[PromptInput]], list[bool]] | None = getattr(module, "too_long", None)
    return [False] * len(inputs) if ask is None else ask(inputs)
