"""What holds for every method that makes a prompt from the input, TaskPrompts, IDPG and ATTEMPT."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from frozenlm.errors import CheckpointError
from frozenlm.lm import FrozenLM
from frozenlm.lm_tasks import Example, prompt_loss
from frozenlm.prompts.attempt import Attempt
from frozenlm.prompts.idpg import IDPG
from frozenlm.prompts.interface import PromptInput, PromptModule
from frozenlm.prompts.soft_prompt import SoftPrompt
from frozenlm.prompts.task_prompts import TaskPrompts
from frozenlm.prompts.text_vectors import TextVectors
from tests.toys import toy_encoder, toy_lm

TASKS = ("a", "b")
TEXTS = ("the cat sat on the mat", "paris", "", "who was the king of france in the year " * 4)
INPUTS = [PromptInput(text, TASKS[k % 2]) for k, text in enumerate(TEXTS)]
EXAMPLES = [Example.of(range(5, 9 + 3 * k), [40 + k, 41], one) for k, one in enumerate(INPUTS)]


def sources(lm: FrozenLM) -> list[Tensor]:
    return [SoftPrompt.create(lm, 3, seed=seed).vectors for seed in (7, 8)]


MAKE: dict[str, Callable[..., Any]] = {
    "task_prompts": lambda lm, **more: TaskPrompts.create(lm, TASKS, 3, **more),
    "idpg": lambda lm, **more: IDPG.create(lm, toy_encoder("bert"), 3, **more),
    "idpg_phm": lambda lm, **more: IDPG.create(lm, toy_encoder(), 3, phm=4, **more),
    "attempt": lambda lm, **more: Attempt.create(lm, sources(lm), width=8, temperature=4.0, **more),
    "attempt_by_task": lambda lm, **more: Attempt.create(
        lm, sources(lm), tasks=TASKS, width=8, temperature=4.0, **more
    ),
}
READS_THE_TEXT = tuple(name for name in MAKE if name != "task_prompts")
every_generator = pytest.mark.parametrize("name", MAKE)


def trained(name: str, lm: FrozenLM, **more: Any) -> Any:
    """A module with other weights than those it begins with, always the same ones."""
    module, draw = MAKE[name](lm, **more), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=draw)
    return module


def loss(lm: FrozenLM, module: Any, examples: list[Example]) -> float:
    with torch.no_grad():
        return prompt_loss(lm, module, examples)[0].item()


@every_generator
def test_p_rows_whatever_the_input(name: str) -> None:
    module = trained(name, toy_lm())
    assert isinstance(module, PromptModule)
    assert module(INPUTS).shape == (4, 3, 32) and module(INPUTS).dtype == torch.float32
    assert (module.length, module.hidden_size) == (3, 32)
    assert [segment.vectors.shape for segment in module.segments(INPUTS)] == [(3, 32)] * 4
    assert module([]).shape == (0, 3, 32) and module.segments([]) == []
    with torch.autocast("cpu", torch.bfloat16):
        assert module(INPUTS).dtype == torch.float32


@every_generator
def test_a_prompt_does_not_depend_on_batch_mates(name: str) -> None:
    lm = toy_lm()
    together = trained(name, lm)(INPUTS)
    alone = torch.cat([trained(name, lm)([one]) for one in INPUTS])  # new modules, so that nothing was kept
    turned = trained(name, lm)(INPUTS[::-1]).flip(0)
    assert (together - alone).abs().max() < 1e-5
    assert (together - turned).abs().max() < 1e-5


@every_generator
@pytest.mark.parametrize("position", ["prefix", "suffix"])
@pytest.mark.parametrize("lm_name", ["llama", "opt", "t5"])
def test_the_loss_does_not_depend_on_batch_mates_or_padding(name: str, position: str, lm_name: str) -> None:
    right, left = toy_lm(lm_name), toy_lm(lm_name, padding_side="left")
    module = trained(name, right, position=position)
    together = loss(right, module, EXAMPLES)
    assert loss(left, module, EXAMPLES) == pytest.approx(together, abs=1e-3)
    assert sum(loss(right, module, [one]) for one in EXAMPLES) == pytest.approx(together, abs=1e-3)


@every_generator
@pytest.mark.parametrize("lm_name", ["gpt2", "t5"])
def test_gradients_reach_what_is_trained_and_nothing_else(name: str, lm_name: str) -> None:
    lm = toy_lm(lm_name)
    module = trained(name, lm)
    prompt_loss(lm, module, EXAMPLES)[0].backward()
    assert [n for n, p in module.named_parameters() if p.grad is None or not p.grad.any()] == []
    frozen = [*lm.model.parameters(), *module.buffers()]
    frozen += module.encoder.model.parameters() if hasattr(module, "encoder") else []
    assert not any(tensor.requires_grad or tensor.grad is not None for tensor in frozen)


@pytest.mark.parametrize("name", READS_THE_TEXT)
def test_prompts_differ_between_inputs(name: str) -> None:
    found = trained(name, toy_lm())([PromptInput(text, "a") for text in TEXTS])
    assert torch.pdist(found.flatten(1)).min() > 1e-3


@pytest.mark.parametrize("name", READS_THE_TEXT)
@pytest.mark.parametrize("lm_name", ["gpt2", "t5"])
def test_with_constant_vectors_it_is_prompt_tuning(name: str, lm_name: str) -> None:
    lm = toy_lm(lm_name)
    module = trained(name, lm)
    size = 24 if name.startswith("idpg") else 32
    setattr(module, "vectors" if size == 24 else "pooled", TextVectors(lambda texts: torch.ones(len(texts), size)))
    of_one_task = [Example(one.context, one.answer, PromptInput(one.source.text, "a")) for one in EXAMPLES]
    plain = SoftPrompt(module([PromptInput("any", "a")])[0].detach())
    assert loss(lm, module, of_one_task) == pytest.approx(loss(lm, plain, of_one_task), abs=1e-4)


@every_generator
@pytest.mark.parametrize("position", ["prefix", "suffix"])
def test_saved_and_loaded(tmp_path: Path, name: str, position: str) -> None:
    lm = toy_lm("t5")
    module = trained(name, lm, position=position)
    module.save(tmp_path, lm)
    again = load(module, tmp_path, lm)
    assert torch.equal(again(INPUTS), module(INPUTS)) and again.position == position
    assert {key: value.shape for key, value in again.state_dict().items()} == {
        key: value.shape for key, value in module.state_dict().items()
    }


@every_generator
def test_another_lm_is_refused(tmp_path: Path, name: str) -> None:
    lm, other = toy_lm(seed=0), toy_lm(seed=1)
    module = trained(name, lm)
    module.save(tmp_path, lm)
    with pytest.raises(CheckpointError, match="another LM"):
        load(module, tmp_path, other)
    assert load(module, tmp_path, other, allow_other_lm=True)(INPUTS).shape == (4, 3, 32)
    with pytest.raises(CheckpointError, match="32"):  # of another width, always
        load(module, tmp_path, toy_lm(n_embd=16), allow_other_lm=True)


def load(module: Any, folder: Path, lm: FrozenLM, **more: Any) -> Any:
    beside = [module.encoder] if hasattr(module, "encoder") else []
    return type(module).load(folder, lm, *beside, **more)
