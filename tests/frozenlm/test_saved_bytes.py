"""What autograd keeps, in bytes that can be counted by hand."""

import gc
import weakref

import torch
from torch import nn

from frozenlm.saved_bytes import saved_bytes


def test_a_linear_layer_keeps_its_input_only_where_the_weight_is_trained() -> None:
    layer, rows = nn.Linear(8, 4), torch.randn(16, 8, requires_grad=True)
    with saved_bytes(layer) as counted:
        layer(rows).sum()
    assert counted.total == 16 * 8 * 4  # the input, float32; the weight is the model's own
    layer.requires_grad_(False)
    with saved_bytes(layer) as counted:
        layer(rows).sum()
    assert counted.total == 0


def test_a_tensor_that_is_kept_twice_counts_once() -> None:
    value = torch.randn(10, requires_grad=True)
    with saved_bytes() as counted:
        (value * value).sum()
    assert counted.total == 10 * 4


def test_without_gradients_nothing_is_kept() -> None:
    with saved_bytes() as counted, torch.no_grad():
        torch.randn(10, requires_grad=True).exp().sum()
    assert counted.total == 0


def test_nothing_is_held_when_the_loss_is_gone_and_gradients_are_the_same() -> None:
    layer, rows = nn.Linear(8, 4), torch.randn(16, 8)
    with saved_bytes(layer):
        hidden = layer(rows).exp()  # exp keeps its own output
        loss = hidden.sum()
    loss.backward()
    kept, layer.weight.grad = layer.weight.grad, None
    layer(rows).exp().sum().backward()
    assert torch.equal(kept, layer.weight.grad)
    with saved_bytes(layer):
        hidden = layer(rows).exp()
        loss = hidden.sum()
    gone = weakref.ref(hidden)
    del hidden, loss
    gc.collect()
    assert gone() is None
