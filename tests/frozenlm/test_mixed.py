"""Rows of different prompt methods in one batch: the same as one at a time."""

import pytest
import torch

from frozenlm.errors import ShapeError
from frozenlm.lm import FrozenLM
from frozenlm.mixed import PromptMemories, mixed_rows
from frozenlm.prompts.interface import PromptInput, PromptModule
from frozenlm.prompts.soft_prompt import SoftPrompt
from tests.toys import DECODERS, NAMES, toy_lm, toy_model, toy_tokenizer

CONTEXTS = [list(range(5, 5 + n)) for n in (3, 9, 1, 6, 4, 7)]
INPUTS = [PromptInput("x")] * 6


def modules(lm: FrozenLM) -> list[PromptModule | None]:
    prefix = SoftPrompt.create(lm, 4, position="prefix", seed=1)
    other = SoftPrompt.create(lm, 2, position="prefix", seed=2)
    suffix = SoftPrompt.create(lm, 3, position="suffix", seed=3)
    return [prefix, suffix, None, other, prefix, None]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", NAMES)
def test_a_mixed_batch_equals_rows_alone(name: str, side: str) -> None:
    lm = FrozenLM.from_model(toy_model(name), toy_tokenizer(), padding_side=side)
    chosen = modules(lm)
    rows, memory = mixed_rows(CONTEXTS, chosen, INPUTS, PromptMemories(lm))
    answers = [[40, 41], [42], [43, 44], [45], [46], [47]]
    together = lm.token_logprobs(rows, answers, memory=memory)
    generated = [made.ids for made in lm.generate(rows, memory=memory, max_new_tokens=5)]
    for i, module in enumerate(chosen):
        row = [mixed_rows([CONTEXTS[i]], [None], INPUTS[:1], PromptMemories(lm))[0][0][0]]
        whole = row if module is None else module.place(row)  # type: ignore[attr-defined]
        alone = lm.token_logprobs([whole], [answers[i]])[0]
        assert torch.allclose(together[i], alone, atol=1e-5)
        assert lm.generate([whole], max_new_tokens=5)[0].ids == generated[i]


@pytest.mark.parametrize("name", DECODERS)
def test_a_known_prompt_is_read_once(name: str) -> None:
    lm = toy_lm(name)
    reads: list[int] = []
    read = lm.read

    def counted(rows: list, **options: object) -> object:
        reads.append(len(rows))
        return read(rows, **options)

    lm.read = counted  # type: ignore[method-assign, assignment]
    memories, chosen = PromptMemories(lm), modules(lm)
    for _ in range(3):
        mixed_rows(CONTEXTS, chosen, INPUTS, memories)
    assert reads == [1, 1]  # one prompt of 4 vectors, one of 2


def test_rows_without_memories_get_none() -> None:
    lm = toy_lm("t5")
    rows, memory = mixed_rows(CONTEXTS, modules(lm), INPUTS, PromptMemories(lm))
    assert memory is None
    assert [len(row) for row in rows] == [2, 2, 1, 2, 2, 1]


def test_lengths_must_agree() -> None:
    lm = toy_lm("gpt2")
    with pytest.raises(ShapeError, match="2 contexts, 1 modules, 2 inputs"):
        mixed_rows(CONTEXTS[:2], [None], INPUTS[:2], PromptMemories(lm))
