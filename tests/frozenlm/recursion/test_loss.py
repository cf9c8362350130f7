"""What is learned from: whom the gradient reaches, that it is right, and what the loss counts."""

import pytest
import torch

from frozenlm.errors import ConfigError
from frozenlm.lm_tasks import Example
from frozenlm.recursion.connector import Connector
from frozenlm.recursion.loss import mean_recursion_loss, recursion_loss, rows_read
from frozenlm.recursion.neural import RecursiveLM
from frozenlm.recursion.sizes import ConnectorSizes
from frozenlm.rows import Tokens
from tests.frozenlm.recursion.connectors import open_model
from tests.toys import toy_lm

EXAMPLES = [
    Example.of([20, 21, 22], [50, 51]),
    Example.of([30, 31, 32, 33, 34, 35], [60]),
    Example.of([40], [70, 71, 72]),
]

every_position = pytest.mark.parametrize("position", [None, "prefix", "suffix"])
every_size = pytest.mark.parametrize(
    "sizes", [{}, {"passes": 3, "shared": False, "depth": 2}], ids=["two passes", "three passes"]
)


@every_position
@every_size
def test_gradients_reach_the_connector_and_the_prompt_only(position, sizes):
    lm = toy_lm("llama")
    model = open_model(lm, position, **sizes)
    loss, _ = recursion_loss(model, EXAMPLES)
    loss.backward()
    assert {name for name, p in model.module.named_parameters() if p.grad is None or not p.grad.any()} == set()
    assert all(p.grad is None for p in lm.model.parameters())
    assert set(dict(model.module.named_children())) == {"connector"} | ({"prompt"} if position else set())


def test_a_closed_gate_is_the_only_thing_with_a_gradient_at_first():
    lm = toy_lm()
    model = RecursiveLM(lm, Connector.create(lm))
    recursion_loss(model, EXAMPLES)[0].backward()
    moved = {name for name, p in model.connector.named_parameters() if p.grad.any()}
    assert moved == {"bridges.0.gate"}


@every_size
def test_all_of_the_connector_moves_within_a_few_steps(sizes):
    lm = toy_lm()
    connector = Connector.create(lm, ConnectorSizes(**sizes))
    model = RecursiveLM(lm, connector)
    start = {name: p.detach().clone() for name, p in connector.named_parameters()}
    optimizer = torch.optim.AdamW(connector.parameters(), lr=0.01)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss, _ = recursion_loss(model, EXAMPLES)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert [name for name, p in connector.named_parameters() if torch.equal(p, start[name])] == []
    assert losses[3] < losses[0]


def test_the_gradient_is_that_of_a_finite_difference():
    model = open_model(toy_lm("llama"), "suffix")
    recursion_loss(model, EXAMPLES)[0].backward()
    for parameter in (model.connector.bridges[0].gate, model.prompt.vectors):
        direction = torch.sign(parameter.grad)
        losses = []
        for step in (0.002, -0.002):
            with torch.no_grad():
                parameter.add_(step * direction)
                losses.append(float(recursion_loss(model, EXAMPLES)[0]))
                parameter.sub_(step * direction)
        assert (losses[0] - losses[1]) / 0.004 == pytest.approx(float((parameter.grad * direction).sum()), rel=0.02)


def test_loss_units_and_means():
    model = open_model(toy_lm())
    rows, answers = [[Tokens(one.context)] for one in EXAMPLES], [one.answer for one in EXAMPLES]
    with torch.no_grad():
        logprobs = model.token_logprobs(rows, answers)
    tokens, examples = recursion_loss(model, EXAMPLES), recursion_loss(model, EXAMPLES, unit="example")
    assert tokens[1] == 2 + 1 + 3 and examples[1] == 3
    assert tokens[0].item() == pytest.approx(-sum(float(one.sum()) for one in logprobs), rel=1e-5)
    assert examples[0].item() == pytest.approx(-sum(float(one.mean()) for one in logprobs), rel=1e-5)
    assert mean_recursion_loss(model, EXAMPLES, batch_size=2) == pytest.approx(tokens[0].item() / 6, rel=1e-4)
    assert rows_read(EXAMPLES) == [(20, 21, 22, 50), (30, 31, 32, 33, 34, 35), (40, 70, 71)]
    with pytest.raises(ConfigError, match="no example"):
        mean_recursion_loss(model, [])
