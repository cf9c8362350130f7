"""Tasks for the toy LM whose answers are known: the gold answers are made from what whole-row scoring prefers."""

from collections.abc import Sequence

import torch

from frozenlm.lm import FrozenLM
from frozenlm.prompts.interface import PromptInput
from frozenlm.rows import Soft, Tokens
from pipelines.tasks.task import TaskRow
from tests.toys import WORDS

COLOURS = ("blue", "red", "green")
PLACES = ("paris", "the city of london")


class Encoder:
    """What turns rows into tokens; counts what it cuts at eight tokens."""

    def __init__(self, lm: FrozenLM) -> None:
        self.lm, self.cut, self.seen = lm, 0, []

    def __call__(self, row: TaskRow):
        self.seen.append(row.id)
        ids = self.lm.encode(row.text)
        self.cut += len(ids) > 8
        return ids[:8], [self.lm.encode(choice) for choice in row.choices], PromptInput(row.text, row.task)


class Shift(torch.nn.Module):
    """A prompt of two vectors, the same for every input; may fail at its nth call, like a machine that goes down."""

    position, length = "suffix", 2

    def __init__(self, scale: float = 0.5, calls_left: int = -1) -> None:
        super().__init__()
        self.vectors = torch.nn.Parameter(scale * torch.randn(2, 32, generator=torch.Generator().manual_seed(5)))
        self.calls_left, self.modes = calls_left, []

    def segments(self, inputs: Sequence[PromptInput]) -> list[Soft]:
        if self.calls_left == 0:
            raise Stopped
        self.calls_left -= 1
        self.modes.append(self.training)
        return [Soft(self.vectors)] * len(inputs)


class Stopped(Exception):
    pass


def texts(n: int) -> list[str]:
    """Input i: four words, no two inputs alike."""
    return [f"{WORDS[i % 40]} {WORDS[(7 * i + 1) % 40]} {WORDS[(3 * i + i // 40) % 40]} is" for i in range(n)]


def preferred(lm: FrozenLM, text: str, choices: Sequence[str], module: Shift | None = None) -> int:
    """The choice that whole-row scoring finds likeliest."""
    row = [Tokens.of(lm.encode(text)), *([] if module is None else [Soft(module.vectors)])]
    scores = lm.score([row] * len(choices), [lm.encode(choice) for choice in choices])
    return scores.index(max(scores))


def ranked_rows(
    lm: FrozenLM, name: str, choices: Sequence[str], *, n: int, right: int, module: Shift | None = None
) -> list[TaskRow]:
    """n rows, the first `right` of which the LM gets right: their target is what it prefers, the others' the next."""
    rows = []
    for i, text in enumerate(texts(n)):
        best = preferred(lm, text, choices, module)
        target = choices[best if i < right else (best + 1) % len(choices)]
        rows.append(TaskRow(f"{name}/{i}", name, text, target, tuple(choices), (target,), target))
    return rows


def written_rows(lm: FrozenLM, name: str, *, n: int, right: int, module: Shift | None = None) -> list[TaskRow]:
    """n free-text rows, of which the LM writes the first `right` as they should be (four tokens, "." added)."""
    rows = []
    for i, text in enumerate(texts(n)):
        row = [Tokens.of(lm.encode(text)), *([] if module is None else [Soft(module.vectors)])]
        said = lm.generate([row], max_new_tokens=4)[0].text.strip() + "."
        references = ("nothing like it", said) if i < right else ("nothing like it",)
        rows.append(TaskRow(f"{name}/{i}", name, text, references[-1], (), references))
    return rows
