"""Projections and intrinsic dimension: the transform, its gradient, unit columns, the same in every process."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from frozenlm.checkpoint import load_module, save_module
from frozenlm.deltas import projections
from frozenlm.deltas.attach import attach, parameter_of
from frozenlm.deltas.intrinsic_dimension import IntrinsicDimension
from frozenlm.deltas.projections import Dense, Fastfood, hadamard
from frozenlm.errors import CheckpointError, ConfigError, ShapeError
from tests.toys import toy_lm


@pytest.mark.parametrize("n", [1, 2, 4, 32, 64, 512])
def test_walsh_hadamard(n: int) -> None:
    matrix = hadamard(torch.eye(n))
    assert torch.equal(matrix @ matrix.T, n * torch.eye(n)) and torch.equal(matrix, matrix.T)
    entries = torch.tensor([[(-1.0) ** (i & j).bit_count() for j in range(min(n, 64))] for i in range(min(n, 64))])
    assert torch.equal(matrix[: len(entries), : len(entries)], entries)


def test_hadamard_of_four_numbers() -> None:
    assert hadamard(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist() == [10.0, -2.0, -4.0, 0.0]
    with pytest.raises(ShapeError, match="a power of two, got 6"):
        hadamard(torch.zeros(6))


def test_its_gradient_is_the_transform_itself() -> None:
    x = torch.randn(3, 64, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(hadamard, (x,))
    wanted = torch.randn(3, 64, dtype=torch.float64)
    (hadamard(x) * wanted).sum().backward()
    assert torch.allclose(x.grad, hadamard(wanted))


@pytest.mark.parametrize("make", [Fastfood, Dense])
def test_projections(make) -> None:
    weights, dimension = 4096, 6
    project = make(weights, dimension, seed=1)
    theta = torch.randn(dimension, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: project(t)[:200], (theta,))
    columns = torch.stack([project(one) for one in torch.eye(dimension)], dim=1)
    assert torch.allclose(columns.norm(dim=0), torch.ones(dimension), atol=1e-5)
    between = columns.T @ columns - torch.eye(dimension)
    assert float(between.abs().max()) < 0.1  # random directions: sd 1/64
    assert torch.allclose(project(theta.detach().float()), columns @ theta.detach().float(), atol=1e-6)
    assert torch.equal(make(weights, dimension, seed=1)(torch.ones(dimension)), project(torch.ones(dimension)))
    assert not torch.equal(make(weights, dimension, seed=2)(torch.ones(dimension)), project(torch.ones(dimension)))
    assert not project(torch.zeros(dimension)).any()
    with pytest.raises(ShapeError, match=r"from \[6\], got \[7\]"):
        project(torch.zeros(7))


def test_fastfood_is_h_g_p_h_b() -> None:
    project = Fastfood(1024, 1024, seed=0)
    h, signs, factors, order = hadamard(torch.eye(1024)), project._signs[0], project._factors[0], project._order
    matrix = h @ torch.diag(factors) @ torch.eye(1024)[order.long()] @ h @ torch.diag(signs.float())
    theta = torch.randn(1024)
    assert torch.allclose(project(theta), matrix @ theta, atol=1e-4)
    assert sorted(order.tolist()) == list(range(1024)) and set(signs.tolist()) == {-1, 1}


def test_more_dimensions_than_the_smallest_block() -> None:
    project = Fastfood(5000, 1500, seed=0)
    assert project.block == 2048 and project(torch.randn(1500)).shape == (5000,)


def test_blocks_are_worked_on_a_chunk_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    project = Fastfood(5000, 6, seed=0)  # five blocks of 1024, the last one cut
    theta, of_weights = torch.randn(6), torch.randn(5000)
    together = project.forward(theta), project.backward(of_weights)
    monkeypatch.setattr(projections, "CHUNK", 2048)
    assert torch.equal(project.forward(theta), together[0])
    assert torch.allclose(project.backward(of_weights), together[1], atol=1e-6)
    assert torch.isclose(project.forward(theta) @ of_weights, theta @ together[1], atol=1e-4)  # (P t) g = t (P^T g)


def test_fastfood_is_not_rounded_by_autocast() -> None:
    project, theta = Fastfood(2048, 10, seed=0), torch.randn(10)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(project(theta), project(theta.clone()))
        found = project(theta)
    assert torch.equal(found, project(theta))


def test_a_dense_matrix_has_a_limit() -> None:
    with pytest.raises(ConfigError, match="use fastfood"):
        Dense(10**6, 10**3, seed=0)


def test_every_form_trains_d_numbers() -> None:
    lm = toy_lm("gpt2")
    for scales, count in ((None, 0), ("layer", 3), ("tensor", 28)):
        delta = IntrinsicDimension.create(lm, dimension=60, scales=scales)
        assert sum(p.numel() for p in delta.parameters()) == IntrinsicDimension.parameter_count(60) == 60
        assert delta.theta.shape == (60 - count,)


def test_a_scale_belongs_to_its_layer() -> None:
    lm = toy_lm("llama")
    delta = IntrinsicDimension.create(lm, dimension=20, seed=2)
    with torch.no_grad():
        delta.theta.normal_()
        plain = delta.offsets()
        delta.scales[1] = 0.0  # 0 is what lies in no block, then come the blocks
        scaled = delta.flat.split(delta.offsets())
    for name, part in delta.flat.split(plain).items():
        assert torch.equal(scaled[name], part * (0.0 if "layers.0." in name else 1.0))
    weight = parameter_of(lm.model, "model.layers.1.mlp.up_proj.weight")
    with attach(lm, delta):
        found = parameter_of(lm.model, "model.layers.1.mlp.up_proj.weight")
        assert torch.equal(found, weight + scaled["model.layers.1.mlp.up_proj.weight"])


SCRIPT = """
import hashlib, torch
from frozenlm.deltas.projections import Fastfood
found = Fastfood(3000, 30, seed=5)
print(hashlib.sha256(found(torch.arange(30.0)).numpy().tobytes()).hexdigest(), found.digest())
"""


def test_another_process_gets_the_same_weights() -> None:
    root = Path(__file__).resolve().parents[3]
    printed = subprocess.run([sys.executable, "-c", SCRIPT], check=True, cwd=root, capture_output=True, text=True)
    project = Fastfood(3000, 30, seed=5)
    values = hashlib.sha256(project(torch.arange(30.0)).numpy().tobytes()).hexdigest()
    assert printed.stdout.split() == [values, project.digest()]


def test_loaded_it_is_the_same(tmp_path: Path) -> None:
    lm = toy_lm("opt")
    delta = IntrinsicDimension.create(lm, dimension=30, seed=5)
    torch.nn.init.normal_(delta.theta, generator=torch.Generator().manual_seed(0))
    delta.save(tmp_path, lm)
    assert torch.equal(IntrinsicDimension.load(tmp_path, lm).offsets(), delta.offsets())


def test_another_projection_is_noticed(tmp_path: Path) -> None:
    lm = toy_lm()
    for form in ("fastfood", "dense"):
        delta = IntrinsicDimension.create(lm, dimension=30, projection=form, seed=5)
        delta.save(tmp_path, lm)
        tensors, config = load_module(tmp_path, kind="intrinsic_dimension")
        assert set(tensors) == {"theta", "scales"}
        changed = config | {"seed": 6}
        save_module(tmp_path, tensors, changed, lm_fingerprint=lm.fingerprint, kind="intrinsic_dimension")
        with pytest.raises(CheckpointError, match="draws another projection"):
            IntrinsicDimension.load(tmp_path, lm)


def test_bad_input() -> None:
    lm = toy_lm()
    with pytest.raises(ConfigError, match="more than the 3 scales"):
        IntrinsicDimension.create(lm, dimension=3)
    with pytest.raises(ConfigError, match="at most"):
        IntrinsicDimension.create(lm, dimension=10**6)
    with pytest.raises(ConfigError, match="fastfood or dense"):
        IntrinsicDimension.create(lm, projection="sparse")  # type: ignore[arg-type]
