"""A random subset: drawn from the seed, again and again the same."""

import json
from pathlib import Path

import pytest
import torch

from frozenlm.checkpoint import load_module, save_module
from frozenlm.deltas.attach import attach, parameter_of
from frozenlm.deltas.random_subset import RandomSubset, draw
from frozenlm.errors import CheckpointError, ConfigError
from tests.toys import toy_lm


@pytest.mark.parametrize(("total", "count"), [(1, 1), (10, 10), (100, 1), (1000, 500), (10**12, 50)])
def test_draws(total: int, count: int) -> None:
    found = draw(total, count, seed=3)
    assert len(found) == count and int(found.min()) >= 0 and int(found.max()) < total
    assert bool((found[1:] > found[:-1]).all())
    assert torch.equal(found, draw(total, count, seed=3))


def test_every_weight_is_drawn_as_often() -> None:
    hits = torch.zeros(10)
    for seed in range(2000):
        hits[draw(10, 3, seed)] += 1
    assert float((hits / 2000 - 0.3).abs().max()) < 0.05  # 0.3 of 2000: sd 0.01


def test_only_the_weights_drawn_change() -> None:
    lm = toy_lm("gpt2")
    delta = RandomSubset.create(lm, share=0.1, seed=1)
    assert sum(p.numel() for p in delta.parameters()) == RandomSubset.parameter_count(24576, 0.1) == 2458
    torch.nn.init.ones_(delta.values)
    before = {name: parameter_of(lm.model, name).clone() for name in delta.flat.names}
    with attach(lm, delta):
        change = torch.cat([(parameter_of(lm.model, name) - before[name]).flatten() for name in delta.flat.names])
    assert torch.equal(change.nonzero().flatten(), delta.index)
    assert torch.allclose(change[delta.index], torch.ones(2458), atol=1e-5)


def test_indices_are_not_saved_but_checked(tmp_path: Path) -> None:
    lm = toy_lm()
    delta = RandomSubset.create(lm, share=0.1, seed=7)
    delta.save(tmp_path, lm)
    tensors, config = load_module(tmp_path, kind="random_subset")
    assert set(tensors) == {"values"}
    assert torch.equal(RandomSubset.load(tmp_path, lm).index, delta.index)
    assert "seed" in json.loads((tmp_path / "module.json").read_text())["config"]
    save_module(tmp_path, tensors, config | {"seed": 8}, lm_fingerprint=lm.fingerprint, kind="random_subset")
    with pytest.raises(CheckpointError, match="draws other indices"):
        RandomSubset.load(tmp_path, lm)


def test_bad_share() -> None:
    with pytest.raises(ConfigError, match="share is 0"):
        RandomSubset.create(toy_lm(), share=0)
