"""What holds for every prompt that is the same for all inputs of a task and is not made of free vectors: P-tuning,
prompts in slots, low-rank and intrinsic prompts, and the auto-encoder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from frozenlm.errors import CheckpointError
from frozenlm.lm import FrozenLM
from frozenlm.lm_tasks import Example, prompt_loss
from frozenlm.mixed import PromptMemories, mixed_rows
from frozenlm.prompts.interface import Constant, PromptInput, PromptModule, prompted
from frozenlm.prompts.intrinsic import IntrinsicPrompt
from frozenlm.prompts.low_rank import LowRankPrompt
from frozenlm.prompts.p_tuning import PTuning
from frozenlm.prompts.prompt_autoencoder import PromptAutoEncoder
from frozenlm.prompts.slots import SlottedPrompt
from frozenlm.prompts.soft_prompt import SoftPrompt
from frozenlm.ranking import rank_choices
from frozenlm.rows import Tokens
from tests.toys import NAMES, toy_lm

TASKS = ("a", "b", "c")
EXAMPLES = [
    Example.of(range(5, 9 + 3 * k), [40 + k, *[41] * (k % 3)], PromptInput(task=TASKS[k % 3])) for k in range(4)
]


def autoencoder(lm: FrozenLM, **more: Any) -> PromptAutoEncoder:
    prompts = {task: SoftPrompt.create(lm, 3, seed=k).vectors for k, task in enumerate(TASKS)}
    return PromptAutoEncoder(prompts, dimension=6, hidden=5, **more)


MAKE: dict[str, Callable[..., Any]] = {
    "slots_around": lambda lm: SlottedPrompt.create(lm, (2, 1)),
    "slots_behind": lambda lm: SlottedPrompt.create(lm, (0, 3)),
    "p_tuning_lama_around": lambda lm: PTuning.create(lm, (1, 2)),
    "p_tuning_fewshot_before": lambda lm: PTuning.create(lm, (3, 0), form="fewshot"),
    "p_tuning_mlp_behind": lambda lm: PTuning.create(lm, (0, 3), form="mlp", anchor=False),
    "low_rank_behind": lambda lm: LowRankPrompt.create(lm, 3, rank=2),
    "low_rank_before": lambda lm: LowRankPrompt.create(lm, 3, rank=2, form="projection", position="prefix"),
    "intrinsic_before": lambda lm: IntrinsicPrompt.create(lm, autoencoder(lm, position="prefix").decoder()),
    "intrinsic_behind": lambda lm: IntrinsicPrompt.create(lm, autoencoder(lm).decoder()),
    "autoencoder": autoencoder,
}
COLLAPSING = tuple(name for name in MAKE if not name.startswith(("slots", "autoencoder")))
every_method = pytest.mark.parametrize("name", MAKE)
every_lm = pytest.mark.parametrize("lm_name", NAMES)


def trained(name: str, lm: FrozenLM) -> Any:
    """A module with other weights than those it begins with, always the same ones."""
    module, draw = MAKE[name](lm), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=draw)
    return module.eval()


def loss(lm: FrozenLM, module: Any, examples: list[Example]) -> float:
    with torch.no_grad():
        return prompt_loss(lm, module, examples)[0].item()


@every_method
def test_it_is_a_prompt_method(name: str) -> None:
    module = trained(name, toy_lm())
    assert isinstance(module, PromptModule)
    assert isinstance(module, Constant) is (name != "autoencoder")
    assert (module.length, module.hidden_size) == (3, 32)
    segments = module.segments([one.source for one in EXAMPLES])
    assert [segment.vectors.shape for segment in segments] == [(3, 32)] * 4
    with torch.autocast("cpu", torch.bfloat16):
        assert module.segments([EXAMPLES[0].source])[0].vectors.dtype == torch.float32


@every_method
@every_lm
def test_the_loss_does_not_depend_on_batch_mates_or_padding(name: str, lm_name: str) -> None:
    right, left = toy_lm(lm_name), toy_lm(lm_name, padding_side="left")
    module = trained(name, right)
    together = loss(right, module, EXAMPLES)
    assert loss(left, module, EXAMPLES) == pytest.approx(together, abs=1e-4)
    assert sum(loss(right, module, [one]) for one in EXAMPLES) == pytest.approx(together, abs=1e-4)


@every_method
@pytest.mark.parametrize("lm_name", ["opt", "llama", "t5"])
def test_the_loss_is_that_of_its_rows(name: str, lm_name: str) -> None:
    """A prompt behind the context goes on from the LM's memory of it: the same as one whole row."""
    lm = toy_lm(lm_name)
    module = trained(name, lm)
    rows = prompted(module, [one.row for one in EXAMPLES], [one.source for one in EXAMPLES])
    with torch.no_grad():
        whole = lm.token_logprobs(rows, [list(one.answer) for one in EXAMPLES])
    assert loss(lm, module, EXAMPLES) == pytest.approx(-float(torch.cat(whole).sum()), abs=1e-4)


@every_method
@pytest.mark.parametrize("lm_name", ["gpt2", "t5"])
def test_gradients_reach_all_that_is_trained_and_nothing_else(name: str, lm_name: str) -> None:
    lm = toy_lm(lm_name)
    module = trained(name, lm).train()
    prompt_loss(lm, module, EXAMPLES)[0].backward()
    assert [n for n, p in module.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert not any(tensor.requires_grad for tensor in [*lm.model.parameters(), *module.buffers()])


@pytest.mark.parametrize("name", COLLAPSING)
@pytest.mark.parametrize("lm_name", ["opt", "bart"])
def test_collapsed_it_is_the_same_to_the_bit(name: str, lm_name: str) -> None:
    lm = toy_lm(lm_name)
    module = trained(name, lm)
    plain = module.collapse()
    assert torch.equal(plain(), module()) and plain.position == module.position
    assert [n for n, _ in plain.named_parameters()] == ["vectors"]
    assert loss(lm, plain, EXAMPLES) == loss(lm, module, EXAMPLES)
    assert torch.equal(plain(), trained(name, lm).train()())  # none of them has dropout


@pytest.mark.parametrize("side", ["left", "right"])
@every_lm
def test_rows_of_all_methods_in_one_batch(lm_name: str, side: str) -> None:
    lm = toy_lm(lm_name, padding_side=side)
    modules = [*(trained(name, lm) for name in MAKE), None]
    modules += modules[:3]
    contexts = [list(range(5, 7 + n % 5)) for n in range(len(modules))]
    inputs = [PromptInput(task=TASKS[n % 3]) for n in range(len(modules))]
    answers = [[40 + n % 7] * (1 + n % 2) for n in range(len(modules))]
    with torch.no_grad():
        rows, memory = mixed_rows(contexts, modules, inputs, PromptMemories(lm))
        together = lm.token_logprobs(rows, answers, memory=memory)
        for n, module in enumerate(modules):
            alone = prompted(module, [[Tokens.of(contexts[n])]], [inputs[n]])
            assert torch.allclose(together[n], lm.token_logprobs(alone, [answers[n]])[0], atol=1e-5)
        assert len(lm.generate(rows, memory=memory, max_new_tokens=3)) == len(modules)
    assert lm.verify().changed == 0


@every_method
@pytest.mark.parametrize("lm_name", ["gpt2", "t5"])
def test_choices_are_ranked_by_their_log_probability(name: str, lm_name: str) -> None:
    lm = toy_lm(lm_name)
    module = trained(name, lm)
    choices = [[[40], [41, 42]], [[43], [44]]]
    contexts, sources = [list(one.context) for one in EXAMPLES[:2]], [one.source for one in EXAMPLES[:2]]
    found = rank_choices(lm, contexts, choices, module, sources)
    for context, source, own, scores in zip(contexts, sources, choices, found, strict=True):
        rows = prompted(module, [[Tokens.of(context)]] * 2, [source] * 2)
        assert scores == pytest.approx(lm.score(rows, own), abs=1e-4)


@every_method
def test_saved_and_loaded(tmp_path: Path, name: str) -> None:
    lm = toy_lm("t5")
    module = trained(name, lm)
    module.save(tmp_path, lm)
    again = load(module, tmp_path, lm)
    inputs = [one.source for one in EXAMPLES]
    pairs = zip(again.segments(inputs), module.segments(inputs), strict=True)
    assert all(torch.equal(one.vectors, other.vectors) for one, other in pairs)
    assert again.position == module.position and loss(lm, again, EXAMPLES) == loss(lm, module, EXAMPLES)
    assert {key: value.shape for key, value in again.state_dict().items()} == {
        key: value.shape for key, value in module.state_dict().items()
    }


@every_method
def test_another_lm_is_refused(tmp_path: Path, name: str) -> None:
    lm, other = toy_lm(seed=0), toy_lm(seed=1)
    module = trained(name, lm)
    module.save(tmp_path, lm)
    with pytest.raises(CheckpointError, match="another LM"):
        load(module, tmp_path, other)
    assert load(module, tmp_path, other, allow_other_lm=True).length == 3
    with pytest.raises(CheckpointError, match="32"):  # of another width, always
        load(module, tmp_path, toy_lm(n_embd=16), allow_other_lm=True)


def load(module: Any, folder: Path, lm: FrozenLM, **more: Any) -> Any:
    beside = [module.decoder] if isinstance(module, IntrinsicPrompt) else []
    return type(module).load(folder, lm, *beside, **more)


@every_method
def test_the_same_seed_makes_the_same_module(name: str) -> None:
    lm = toy_lm()
    state, first = torch.get_rng_state(), MAKE[name](lm).state_dict()
    again = MAKE[name](lm).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in again)
    assert torch.equal(torch.get_rng_state(), state)  # the caller's random numbers go on
