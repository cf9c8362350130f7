"""What a step of neural recursion keeps: the estimate against what autograd really saves."""

from typing import Any

import pytest
import torch
from torch import Tensor

from frozenlm.lm_tasks import Example
from frozenlm.recursion.connector import Connector
from frozenlm.recursion.footprint import connector_shapes, loss_bytes, row_activations
from frozenlm.recursion.loss import recursion_loss
from frozenlm.recursion.neural import RecursiveLM
from frozenlm.recursion.sizes import ConnectorSizes
from tests.frozenlm.recursion.connectors import open_model
from tests.toys import toy_lm

EXAMPLES = [Example.of([5 + i % 20 for i in range(60)], [6, 7, 8, 9])] * 2
H = 32


def really_kept(model: RecursiveLM) -> int:
    """Bytes that a real forward pass saves; the weights of the LM and of what is trained left out."""
    weights = (*model.lm.model.parameters(), *model.lm.model.buffers(), *model.module.parameters())
    own = {tensor.untyped_storage().data_ptr() for tensor in weights}
    kept: dict[int, int] = {}
    alive: list[Any] = []

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        recursion_loss(model, EXAMPLES)
    return sum(size for address, size in kept.items() if address not in own)


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt"])
@pytest.mark.parametrize("sizes", [{}, {"passes": 3, "shared": False, "depth": 2, "dropout": 0.1}])
@pytest.mark.parametrize("position", [None, "suffix"])
def test_the_estimate_is_near_what_autograd_saves(name: str, sizes: dict[str, Any], position: Any) -> None:
    model = open_model(toy_lm(name), position, **sizes)
    soft = 0 if position is None else 3
    estimate = row_activations(
        model.lm.model.config, model.connector.sizes, dtype=torch.float32, tokens=60 + 3, soft_tokens=soft
    )
    gradients = 2 * 4 * H * 4  # of two rows' four answer tokens
    assert 2 * estimate + gradients == pytest.approx(really_kept(model), rel=0.1)


def test_the_head_runs_on_a_thousand_positions_at_a_time() -> None:
    sizes = {"state_size": H, "vocab_size": 100, "itemsize": 2}
    assert loss_bytes(10, **sizes) == 10 * 100 * (3 * 4 + 2) + 10 * H * 2
    assert loss_bytes(5000, **sizes) == 1024 * 100 * (3 * 4 + 2) + 5000 * H * 2


@pytest.mark.parametrize("sizes", [{"heads": 2}, {"passes": 3, "shared": False, "depth": 2, "norm": "layer"}])
def test_the_shapes_are_those_of_the_real_connector(sizes: dict[str, Any]) -> None:
    wanted = ConnectorSizes(**sizes)
    real = Connector.create(toy_lm("llama"), wanted)
    assert connector_shapes(H, H, wanted) == [tuple(parameter.shape) for parameter in real.parameters()]
