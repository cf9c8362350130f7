"""Intrinsic prompt tuning: both stages through the training loop."""

from pathlib import Path
from typing import Any

import pytest
import torch

from frozenlm.checkpoint import save_module
from frozenlm.errors import CheckpointError, ConfigError, ShapeError
from frozenlm.lm_tasks import Example, mean_loss, prompt_loss
from frozenlm.prompts.initializers import uniform
from frozenlm.prompts.interface import PromptInput
from frozenlm.prompts.intrinsic import IntrinsicPrompt
from frozenlm.prompts.prompt_autoencoder import KIND, PromptAutoEncoder, reconstruction_loss
from frozenlm.prompts.task_prompts import TaskPrompts
from frozenlm.train_settings import TrainSettings
from frozenlm.training import fit
from tests.toys import toy_lm

TASKS = ("a", "b", "c")
EXAMPLES = [Example.of(range(5, 9 + k), [40 + k % 3], PromptInput(task=TASKS[k % 3])) for k in range(6)]


def prompts(lm: Any) -> TaskPrompts:
    return TaskPrompts({task: uniform()(lm, 2, torch.Generator().manual_seed(k)) for k, task in enumerate(TASKS)})


def test_trained_parameters_by_formula() -> None:
    # P x H = 2 x 32: down 64 x 5 + 5, hidden 5 x 4 + 4, up 4 x 64 + 64.
    lm = toy_lm()
    module = PromptAutoEncoder.create(lm, prompts(lm), dimension=5, hidden=4)
    own = sum(parameter.numel() for parameter in module.parameters())
    assert own == 325 + 24 + 320
    assert own == PromptAutoEncoder.parameter_count(length=2, hidden_size=32, dimension=5, hidden=4)
    assert sum(p.numel() for p in IntrinsicPrompt.create(lm, module.decoder()).parameters()) == 5
    assert IntrinsicPrompt.parameter_count(dimension=5) == 5


def test_the_first_loss_is_the_tasks_and_200_times_the_error() -> None:
    lm = toy_lm()
    trained = prompts(lm)
    module = PromptAutoEncoder.create(lm, trained, dimension=5)
    rebuilt = [module.decode(module.encode(trained.vectors(task)[None]))[0] for task in TASKS]
    error = sum(((one - trained.vectors(task)) ** 2).mean() for one, task in zip(rebuilt, TASKS, strict=True)) / 3
    plain, units = prompt_loss(lm, TaskPrompts(dict(zip(TASKS, rebuilt, strict=True))), EXAMPLES)
    found, count = reconstruction_loss(lm, module, EXAMPLES)
    assert count == units == 6
    assert (found / count).item() == pytest.approx((plain / units + 200 * error).item(), rel=1e-5)


def test_both_stages(tmp_path: Path) -> None:
    """The first rebuilds the tasks' prompts, the second moves 4 numbers and nothing else, and learns."""
    lm = toy_lm()
    trained = prompts(lm)
    module = PromptAutoEncoder.create(lm, trained, dimension=4)
    before = module.penalty().item()
    settings = TrainSettings(steps=60, batch_size=6, learning_rate=0.01)
    first = fit(
        module,
        examples=EXAMPLES,
        loss=lambda batch: reconstruction_loss(lm, module, batch),
        out=tmp_path / "first",
        settings=settings,
        lm=lm,
        progress=False,
    )
    assert module.penalty().item() < before / 20
    assert all(torch.equal(own, trained.vectors(task)) for own, task in zip(module.prompts, TASKS, strict=True))

    prompt = IntrinsicPrompt.create(lm, module.decoder())
    fixed, start = module.decoder().fingerprint, mean_loss(lm, prompt, EXAMPLES[:2])
    second = fit(
        prompt,
        examples=EXAMPLES[:2],
        loss=lambda batch: prompt_loss(lm, prompt, batch),
        out=tmp_path / "second",
        settings=TrainSettings(steps=30, batch_size=2, learning_rate=0.2),
        lm=lm,
        progress=False,
    )
    assert mean_loss(lm, prompt, EXAMPLES[:2]) < start
    assert prompt.decoder.fingerprint == fixed == module.decoder().fingerprint
    again = IntrinsicPrompt(prompt.decoder, prompt.code)
    assert torch.equal(again(), prompt())
    for result in (first, second):
        assert result.verification is not None and result.verification.changed == 0


def test_the_decoder_is_a_copy_that_cannot_be_trained() -> None:
    lm = toy_lm()
    module = PromptAutoEncoder.create(lm, prompts(lm), dimension=5)
    prompt = IntrinsicPrompt.create(lm, module.decoder())
    made = module.decode(prompt.code[None])[0]
    assert torch.equal(prompt(), made)
    assert torch.allclose(prompt.code, module.encode(module.prompts).mean(dim=0))
    with torch.no_grad():
        module.up.weight.zero_()
    assert torch.equal(prompt(), made)
    assert [name for name, _ in prompt.named_parameters()] == ["code"] == list(prompt.state_dict())


def test_a_random_start_has_the_size_of_the_centre() -> None:
    lm = toy_lm()
    decoder = PromptAutoEncoder.create(lm, prompts(lm), dimension=400).decoder()
    codes = [IntrinsicPrompt.create(lm, decoder, seed=seed).code for seed in (1, 1, 2)]
    assert torch.equal(codes[0], codes[1]) and not torch.equal(codes[0], codes[2])
    assert float(codes[0].detach().std()) == pytest.approx(float(decoder.centre.square().mean().sqrt()), rel=0.2)


def test_a_prompt_belongs_to_its_decoder(tmp_path: Path) -> None:
    lm = toy_lm()
    one, other = (PromptAutoEncoder.create(lm, prompts(lm), dimension=5, seed=seed) for seed in (0, 1))
    prompt = IntrinsicPrompt.create(lm, one.decoder())
    prompt.save(tmp_path / "prompt", lm)
    with pytest.raises(CheckpointError, match="trained with another decoder"):
        IntrinsicPrompt.load(tmp_path / "prompt", lm, other.decoder())
    one.save(tmp_path / "coder", lm)
    read = PromptAutoEncoder.load(tmp_path / "coder", lm)
    assert torch.equal(IntrinsicPrompt.load(tmp_path / "prompt", lm, read.decoder())(), prompt())


def test_what_does_not_fit() -> None:
    lm = toy_lm()
    module = PromptAutoEncoder.create(lm, prompts(lm), dimension=5)
    with pytest.raises(ConfigError, match="no prompt for task 'd'"):
        module([PromptInput(task="d")])
    with pytest.raises(ShapeError, match=r"code is \[4\]; the decoder takes \[5\]"):
        IntrinsicPrompt(module.decoder(), torch.zeros(4))
    with pytest.raises(ConfigError, match="NaN"):
        IntrinsicPrompt(module.decoder(), torch.full((5,), float("nan")))
    narrow = toy_lm(n_embd=16)
    with pytest.raises(ShapeError, match="32 wide, the LM's embeddings 16"):
        IntrinsicPrompt.create(narrow, module.decoder())
    with pytest.raises(ShapeError, match="32 wide, the LM's embeddings 16"):
        PromptAutoEncoder.create(narrow, prompts(lm))
    for settings in ({"dimension": 0}, {"hidden": 0}, {"weight": -1.0}, {"weight": float("inf")}):
        with pytest.raises(ConfigError, match=f"{next(iter(settings))}"):
            PromptAutoEncoder.create(lm, prompts(lm), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"tasks": ["a"]}, {"tasks": None}, {"position": "top"}, {"weight": "much"}])
def test_files_that_do_not_fit(tmp_path: Path, change: dict[str, Any]) -> None:
    lm = toy_lm()
    module = PromptAutoEncoder.create(lm, prompts(lm), dimension=5)
    config = {"tasks": list(TASKS), "position": "suffix", "weight": 200.0, "dimension": 5, "hidden": 5} | change
    save_module(tmp_path, module.state_dict(), config, lm_fingerprint=lm.fingerprint, kind=KIND)
    with pytest.raises(CheckpointError):
        PromptAutoEncoder.load(tmp_path, lm)
