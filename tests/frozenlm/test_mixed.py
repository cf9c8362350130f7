"""Rows of different prompt methods in one batch: the same as one at a time."""

from typing import Any

import pytest
import torch

from frozenlm.errors import ShapeError
from frozenlm.lm import FrozenLM
from frozenlm.mixed import PromptMemories, mixed_rows
from frozenlm.prompts.attempt import Attempt
from frozenlm.prompts.idpg import IDPG
from frozenlm.prompts.input_dependent import InputDependentPrompt
from frozenlm.prompts.interface import PromptInput, PromptModule, placed
from frozenlm.prompts.soft_prompt import SoftPrompt
from frozenlm.prompts.task_prompts import TaskPrompts
from frozenlm.rows import Tokens
from tests.toys import DECODERS, NAMES, toy_encoder, toy_lm, toy_model, toy_tokenizer

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


def of_every_kind(lm: FrozenLM) -> list[Any]:
    """Every prompt method, with other weights than those it begins with, in both positions, and none."""
    sources = [SoftPrompt.create(lm, 3, seed=seed).vectors for seed in (7, 8)]
    sizes = {"encoder_prompt": 2, "width": 8, "depth": 1, "heads": 2}
    made: list[Any] = [
        InputDependentPrompt.create(lm, toy_encoder("t5"), 4, position="prefix", **sizes),
        InputDependentPrompt.create(lm, toy_encoder("bert"), 5, position="suffix", **sizes),
        IDPG.create(lm, toy_encoder("bert"), 3, position="suffix"),
        IDPG.create(lm, toy_encoder("t5"), 2, position="prefix", bottleneck=4, phm=2),
        TaskPrompts.create(lm, ["one", "two"], 2, position="prefix"),
        Attempt.create(lm, sources, tasks=["one", "two"], width=8, temperature=4.0),
        SoftPrompt.create(lm, 4, position="prefix"),
        SoftPrompt.create(lm, 3, position="suffix"),
    ]
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in (p for module in made for p in module.parameters()):
            parameter += 0.1 * torch.randn(parameter.shape, generator=draw)
    return [*made, None]


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "bart"])
def test_every_prompt_method_in_one_batch_equals_rows_alone(name: str) -> None:
    lm = toy_lm(name)
    chosen = of_every_kind(lm) * 2
    texts = [" ".join(["the cat sat on the mat"] * (1 + n % 4)) + f" {n}" for n in range(len(chosen))]
    inputs = [PromptInput(text, ("one", "two")[n // 3 % 2]) for n, text in enumerate(texts)]
    contexts = [lm.encode(text) for text in texts]
    answers = [[40 + n, 41] for n in range(len(chosen))]
    rows, memory = mixed_rows(contexts, chosen, inputs, PromptMemories(lm))
    with torch.no_grad():
        together = lm.token_logprobs(rows, answers, memory=memory)
        generated = [made.ids for made in lm.generate(rows, memory=memory, max_new_tokens=4)]
        for n, module in enumerate(chosen):
            row: Any = [Tokens.of(contexts[n])]
            whole = row if module is None else placed(module.segments([inputs[n]])[0], row, module.position)
            assert torch.allclose(together[n], lm.token_logprobs([whole], [answers[n]])[0], atol=1e-5)
            assert lm.generate([whole], max_new_tokens=4)[0].ids == generated[n]
    assert lm.verify().changed == 0


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
