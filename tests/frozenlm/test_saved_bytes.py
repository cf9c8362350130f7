"""What autograd keeps, in bytes that can be counted by hand."""

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
