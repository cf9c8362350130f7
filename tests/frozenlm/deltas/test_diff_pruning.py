"""Hard-concrete gates against their closed forms, and DiffPruning's two phases."""

import math

import pytest
import torch

from frozenlm.checkpoint import load_module
from frozenlm.deltas.attach import attach, parameter_of
from frozenlm.deltas.diff_pruning import DiffPruning
from frozenlm.deltas.hard_concrete import gates, open_probability
from frozenlm.errors import CheckpointError, ConfigError
from frozenlm.lm_tasks import Example, prompt_loss
from tests.toys import toy_lm

EXAMPLES = [Example.of(range(5, 10), [40, 41])]
DRAWS = 200_000


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("alpha", [-2.0, 0.0, 1.0, 5.0])
def test_gates_are_zero_and_one_as_often_as_the_closed_forms_say(alpha: float) -> None:
    uniform = (torch.arange(DRAWS) + 0.5) / DRAWS  # every quantile once, so that counts are exact to 1 / DRAWS
    z = gates(torch.full((DRAWS,), alpha), uniform)
    # z = 0 when 3 s <= 1.5, s <= 1/2; z = 1 when 3 s >= 2.5, logit(s) >= log 5.
    assert float((z > 0).double().mean()) == pytest.approx(sigmoid(alpha), abs=2e-5)
    assert float((z == 1).double().mean()) == pytest.approx(sigmoid(alpha - math.log(5)), abs=2e-5)
    assert float(open_probability(torch.tensor(alpha))) == pytest.approx(sigmoid(alpha), abs=1e-6)


def test_the_gradient_of_a_gate() -> None:
    uniform = torch.tensor([0.05, 0.5, 0.6, 0.7, 0.999], dtype=torch.float64)
    alpha = torch.full((5,), 0.5, dtype=torch.float64, requires_grad=True)
    z = gates(alpha, uniform)
    z.sum().backward()
    s = torch.sigmoid(torch.logit(uniform) + 0.5)
    inside = (s > 0.5) & (s < 2.5 / 3)
    assert inside.tolist() == [False, True, True, True, False]
    assert torch.allclose(alpha.grad, torch.where(inside, 3 * s * (1 - s), 0.0), atol=1e-9)
    assert z[0] == 0 and z[4] == 1


def test_the_gradient_of_the_expected_norm() -> None:
    alpha = torch.linspace(-3, 3, 7, dtype=torch.float64, requires_grad=True)
    chance = open_probability(alpha)
    chance.sum().backward()
    assert torch.allclose(alpha.grad, chance.detach() * (1 - chance.detach()))
    assert torch.autograd.gradcheck(open_probability, (alpha,))


def test_gates_of_evaluation_are_not_random() -> None:
    assert gates(torch.tensor([-9.0, 0.0, math.log(2), 9.0])).tolist() == [0.0, 0.0, pytest.approx(0.5), 1.0]
    delta = DiffPruning.create(toy_lm())
    torch.nn.init.normal_(delta.values)
    torch.nn.init.normal_(delta.alpha)
    assert torch.equal(delta.eval().difference(), delta.difference())
    assert not torch.equal(delta.train().difference(), delta.difference())
    torch.manual_seed(0)
    first = delta.difference()
    torch.manual_seed(0)
    assert torch.equal(delta.difference(), first)


def test_a_closed_gate_of_a_tensor_leaves_it_alone() -> None:
    lm = toy_lm("llama")
    delta = DiffPruning.create(lm).eval()
    with torch.no_grad():
        delta.values.fill_(1.0)
        delta.group_alpha.fill_(-5.0)
        delta.group_alpha[delta.flat.names.index("model.norm.weight")] = 5.0
    plain = parameter_of(lm.model, "model.norm.weight").clone()
    head = lm.model.lm_head.weight
    with attach(lm, delta):
        assert torch.equal(lm.model.model.norm.weight, plain + 1)
        assert torch.equal(lm.model.lm_head.weight, head)


def test_parameters_and_the_penalty() -> None:
    lm = toy_lm("gpt2")
    n = 2 * (12 * 32 * 32 + 13 * 32) + (128 + 96) * 32 + 64
    assert sum(p.numel() for p in lm.model.parameters()) == n
    plain = DiffPruning.create(lm, structured=None, penalty=0.5)
    assert sum(p.numel() for p in plain.parameters()) == DiffPruning.parameter_count(n) == 2 * n
    assert plain.expected_l0().item() == pytest.approx(n * sigmoid(5), rel=1e-5)
    assert plain.penalty().item() == pytest.approx(0.5 * n * sigmoid(5), rel=1e-5)
    by_tensor = DiffPruning.create(lm, structured="tensor")
    tensors = 2 * 12 + 2 + 2
    assert sum(p.numel() for p in by_tensor.parameters()) == DiffPruning.parameter_count(n, tensors) == 2 * n + tensors
    # A weight differs when its own gate and that of its tensor are open.
    assert by_tensor.expected_l0().item() == pytest.approx(n * sigmoid(5) ** 2, rel=1e-5)
    assert by_tensor.penalty().item() == pytest.approx(1.25e-7 * n * sigmoid(5) ** 2, rel=1e-5)
    by_layer = DiffPruning.create(lm, structured="layer")
    assert by_layer.group_alpha.shape == (3,)
    assert by_layer.learning_rates == {"alpha": 0.1, "group_alpha": 0.1}
    by_tensor.penalty().backward()
    assert by_tensor.group_alpha.grad.all() and by_tensor.alpha.grad.all()


def test_training_the_penalty_alone_closes_the_gates() -> None:
    delta = DiffPruning.create(toy_lm(), structured=None, penalty=1.0)
    optimizer = torch.optim.SGD([delta.alpha], lr=500.0)
    before = delta.expected_l0().item()
    for _ in range(3):
        optimizer.zero_grad()
        delta.penalty().backward()
        optimizer.step()
    assert delta.expected_l0().item() < 0.1 * before


def test_two_phases(tmp_path) -> None:
    lm = toy_lm("opt")
    gated = DiffPruning.create(lm, share=0.01, structured="layer")
    torch.manual_seed(0)
    torch.nn.init.normal_(gated.values, std=0.1)
    torch.nn.init.normal_(gated.alpha)
    wanted = gated.eval().difference().detach()
    pruned = gated.train().pruned()
    assert gated.training and pruned.is_pruned and not gated.is_pruned
    n = gated.flat.total
    kept = round(0.01 * n)
    assert [name for name, _ in pruned.named_parameters()] == ["values"] and pruned.values.shape == (kept,)
    assert torch.equal(pruned.values, wanted[pruned.index])
    rest = wanted.clone()
    rest[pruned.index] = 0
    assert float(rest.abs().max()) <= float(pruned.values.abs().min())
    assert pruned.penalty().item() == 0 and pruned.expected_l0().item() == kept and pruned.learning_rates == {}

    # The second phase changes the weights of the mask and no others.
    index = pruned.index.clone()
    with attach(lm, pruned):
        prompt_loss(lm, None, EXAMPLES)[0].backward()
    torch.optim.SGD(pruned.parameters(), lr=0.1).step()
    assert torch.equal(pruned.index, index)
    base = {name: parameter_of(lm.model, name).clone() for name in pruned.flat.names}
    with attach(lm, pruned):
        changed = sum(int((parameter_of(lm.model, name) != base[name]).sum()) for name in base)
    assert changed <= kept

    pruned.save(tmp_path, lm)
    tensors, _ = load_module(tmp_path, kind="diff_pruning")
    assert tensors["index"].dtype == torch.int32 and tensors["index"].numel() == tensors["values"].numel() == kept
    again = DiffPruning.load(tmp_path, lm)
    assert torch.equal(again.index, pruned.index) and torch.equal(again.values, pruned.values)


def test_fewer_differences_than_the_share_are_kept_as_they_are() -> None:
    gated = DiffPruning.create(toy_lm(), share=0.5, structured=None)
    with torch.no_grad():
        gated.values[[3, 8]] = 1.0
    assert gated.pruned().index.tolist() == [3, 8]


def test_bad_input(tmp_path) -> None:
    lm = toy_lm()
    for share in (0.0, 1.5, math.nan):
        with pytest.raises(ConfigError, match="share is"):
            DiffPruning.create(lm, share=share)
    with pytest.raises(ConfigError, match="penalty is"):
        DiffPruning.create(lm, penalty=math.nan)
    with pytest.raises(ConfigError, match="train this first"):
        DiffPruning.create(lm).pruned()
    gated = DiffPruning.create(lm)
    torch.nn.init.normal_(gated.values)
    pruned = gated.pruned()
    with pytest.raises(ConfigError, match="pruned"):
        pruned.pruned()
    pruned.index[0] = pruned.index[1]
    pruned.save(tmp_path, lm)
    with pytest.raises(CheckpointError, match="indices that do not rise"):
        DiffPruning.load(tmp_path, lm)
