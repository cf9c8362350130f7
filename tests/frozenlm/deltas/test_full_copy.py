"""A full copy: all weights once, and trained as the model itself would be."""

import pytest
import torch

from frozenlm.deltas.attach import attach
from frozenlm.deltas.bitfit import BitFit
from frozenlm.deltas.full_copy import FullCopy
from frozenlm.errors import ConfigError
from frozenlm.lm_tasks import Example, prompt_loss
from tests.frozenlm.deltas.checks import logits, noisy
from tests.toys import NAMES, toy_lm, toy_model

EXAMPLES = [Example.of(range(5, 10 + k), [40 + k, 41]) for k in range(3)]


@pytest.mark.parametrize("name", NAMES)
def test_it_holds_every_weight_once(name: str) -> None:
    lm = toy_lm(name)
    weights = sum(parameter.numel() for parameter in lm.model.parameters())
    assert sum(p.numel() for p in FullCopy.create(lm).parameters()) == FullCopy.parameter_count(weights) == weights


def test_a_step_is_the_step_of_the_model_itself() -> None:
    lm = toy_lm("qwen2")  # its head is tied
    copy, model = FullCopy.create(lm), toy_model("qwen2").requires_grad_(True)
    tuned = toy_lm("qwen2")
    tuned.model.load_state_dict(model.state_dict())
    for parameter in tuned.model.parameters():
        parameter.requires_grad_(True)
    prompt_loss(tuned, None, EXAMPLES)[0].backward()
    torch.optim.AdamW(tuned.model.parameters(), lr=0.01, weight_decay=0.0).step()
    with attach(lm, copy):
        prompt_loss(lm, None, EXAMPLES)[0].backward()
    torch.optim.AdamW(copy.parameters(), lr=0.01).step()
    parts = copy.flat.split(copy.weights)
    for name, parameter in tuned.model.named_parameters():
        gradient = copy.flat.split(copy.weights.grad)[name]
        assert torch.allclose(gradient, parameter.grad, atol=1e-6)
        moved = gradient.abs() > 1e-5  # where the gradient is rounding, Adam's first step has any sign
        decayed = torch.allclose(parts[name][moved], parameter[moved], atol=1e-3)
        assert decayed, name


def test_a_copy_never_hides_another_delta() -> None:
    lm = toy_lm()
    copy, offsets = FullCopy.create(lm), noisy(BitFit.create(lm))
    with attach(lm, offsets):
        expected = logits(lm)
    with attach(lm, copy, offsets):
        assert torch.equal(logits(lm), expected)
    with pytest.raises(ConfigError, match="attach the copy first"), attach(lm, offsets, copy):
        pass
    lm.assert_unchanged()


def test_the_copy_is_not_the_lm() -> None:
    lm = toy_lm()
    copy = FullCopy.create(lm)
    torch.nn.init.zeros_(copy.weights)
    lm.assert_unchanged()
    with attach(lm, copy), torch.no_grad():
        assert not lm.model.transformer.wte.weight.any()
