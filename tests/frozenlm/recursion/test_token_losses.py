"""Losses with the head in chunks against the plain ones, with their gradients."""

import pytest
import torch
from torch.nn import functional

from frozenlm.recursion.token_losses import token_losses
from tests.toys import toy_lm


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_equal_to_cross_entropy_with_its_gradient(chunk):
    head = toy_lm("llama").engine.head
    targets = torch.tensor([5, 4, 3, 2, 1, 0, 127])
    ours, plain = numbers(7, 32).requires_grad_(), numbers(7, 32).requires_grad_()
    found = token_losses(ours, targets, head, chunk=chunk)
    wanted = functional.cross_entropy(head(plain), targets, reduction="none")
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    weights = torch.arange(7.0)  # each position has its own share in what is made of the losses
    (found * weights).sum().backward()
    (wanted * weights).sum().backward()
    torch.testing.assert_close(ours.grad, plain.grad, atol=1e-5, rtol=0)
    assert not ours.grad[0].any()


def test_uniform_logits():
    """A head that says nothing: log 4 for each of 4 words."""
    found = token_losses(numbers(3, 2), torch.tensor([0, 1, 3]), lambda states: states.new_zeros(len(states), 4))
    torch.testing.assert_close(found, torch.full((3,), 4.0).log())


def test_the_head_sees_no_more_than_a_chunk_and_each_position_once():
    seen = []

    def head(states):
        seen.append(len(states))
        return states @ numbers(2, 4)

    token_losses(numbers(7, 2).requires_grad_(), torch.zeros(7, dtype=torch.long), head, chunk=3).sum().backward()
    assert seen == [3, 3, 1]


def test_without_gradient_none_is_taken():
    with torch.no_grad():
        assert not token_losses(numbers(2, 2), torch.tensor([0, 1]), lambda states: states).requires_grad


def test_autocast():
    hidden = numbers(4, 32).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = token_losses(hidden, torch.tensor([1, 2, 3, 4]), toy_lm("llama").engine.head)
    found.sum().backward()
    assert found.dtype == torch.float32 and hidden.grad.dtype == torch.float32 and bool(hidden.grad.any())
