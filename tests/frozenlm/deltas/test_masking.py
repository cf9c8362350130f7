"""Masks: the straight-through gradient, the start, and one bit a weight on disk."""

import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from frozenlm.checkpoint import verify_module
from frozenlm.deltas.attach import attach, parameter_of
from frozenlm.deltas.masking import Masking, pack, unpack
from frozenlm.errors import CheckpointError, ConfigError
from frozenlm.lm_tasks import Example, prompt_loss
from tests.toys import toy_lm

NAME = "model.layers.0.mlp.down_proj.weight"


def test_the_gradient_goes_straight_through_the_threshold() -> None:
    lm = toy_lm("llama")
    masking = Masking.create(lm, targets=["down_proj"], masked=0.3)
    weight = parameter_of(lm.model, NAME)
    mask = masking.flat.split(masking.mask())[NAME]
    inputs, wanted = torch.randn(5, weight.shape[1]), torch.randn(5, weight.shape[0])
    with attach(lm, masking):
        output = lm.model.get_submodule(NAME.removesuffix(".weight"))(inputs)
        (output * wanted).sum().backward()
    assert torch.equal(output, functional.linear(inputs, weight * mask))
    # dL/dM = dL/d(W * mask) * W, on both sides of the threshold.
    assert torch.allclose(masking.flat.split(masking.scores.grad)[NAME], (wanted.T @ inputs) * weight, atol=1e-5)
    assert weight.grad is None


@pytest.mark.parametrize("masked", [0.0, 0.05, 0.5])
def test_it_begins_with_that_share_masked_at_random(masked: float) -> None:
    lm = toy_lm("gpt2")
    masking = Masking.create(lm, masked=masked, seed=1)
    assert masking.masked_share() == pytest.approx(masked, abs=0.01)
    same = Masking.create(lm, masked=masked, seed=1)
    assert torch.equal(masking.scores, same.scores)
    assert not torch.equal(masking.scores, Masking.create(lm, masked=masked, seed=2).scores)
    assert float((masking.scores - masking.threshold).abs().max()) <= 0.02 + 1e-6


def test_nothing_masked_is_the_lm() -> None:
    lm = toy_lm("t5")
    example = [Example.of(range(5, 10), [40, 41])]
    with attach(lm, Masking.create(lm, masked=0.0, threshold=0.2)):
        found = prompt_loss(lm, None, example)[0]
    assert torch.equal(found, prompt_loss(lm, None, example)[0])


def test_masked_weights_are_zero_and_the_others_their_own() -> None:
    lm = toy_lm("llama")
    masking = Masking.create(lm, masked=0.4)
    weight, mask = parameter_of(lm.model, NAME), masking.flat.split(masking.mask())[NAME]
    with attach(lm, masking):
        found = parameter_of(lm.model, NAME)
        assert torch.equal(found[mask], weight[mask]) and not found[~mask].any()


def test_only_dense_layers_of_the_blocks_are_masked() -> None:
    lm = toy_lm("gpt2")
    masking = Masking.create(lm)
    assert sum(p.numel() for p in masking.parameters()) == Masking.parameter_count(2 * 12 * 32 * 32) == 24576
    assert not [name for name in masking.flat.names if "wte" in name or "wpe" in name or "ln" in name]


@pytest.mark.parametrize("count", [1, 7, 8, 9, 1000])
def test_bits(count: int) -> None:
    mask = torch.rand(count, generator=torch.Generator().manual_seed(count)) < 0.5
    packed = pack(mask)
    assert packed.dtype == torch.uint8 and len(packed) == math.ceil(count / 8)
    assert torch.equal(unpack(packed, count), mask)


def test_the_order_of_bits() -> None:
    assert pack(torch.tensor([True] + [False] * 8 + [True])).tolist() == [1, 2]


def test_a_bit_a_weight_on_disk(tmp_path: Path) -> None:
    lm = toy_lm("gpt2")
    masking = Masking.create(lm, threshold=-0.1, seed=4)
    masking.save(tmp_path, lm)
    assert verify_module(tmp_path).shapes == {"bits": (24576 // 8,)}
    loaded = Masking.load(tmp_path, lm)
    assert torch.equal(loaded.mask(), masking.mask()) and loaded.threshold == -0.1
    loaded.save(tmp_path / "again", lm)
    again = Masking.load(tmp_path / "again", lm)
    assert torch.equal(again.mask(), masking.mask()) and again.masked == loaded.masked == 0.05
    masking.masked = None  # as in a file of an earlier version
    masking.save(tmp_path / "earlier", lm)
    assert Masking.load(tmp_path / "earlier", lm).masked is None


def test_bad_input(tmp_path: Path) -> None:
    lm = toy_lm()
    for masked in (-0.1, 1.0, math.nan):
        with pytest.raises(ConfigError, match="masked is"):
            Masking.create(lm, masked=masked)
    with pytest.raises(ConfigError, match="threshold is"):
        Masking.create(lm, threshold=math.inf)
    with pytest.raises(ConfigError, match="dense layers"):
        Masking.create(lm, targets="model")
    masking = Masking.create(lm)
    torch.nn.init.constant_(masking.scores, math.nan)
    with pytest.raises(CheckpointError, match="diverged"):
        masking.save(tmp_path, lm)
