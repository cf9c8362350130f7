"""-log p of many tokens without the logits of all of them at once.

Over whole texts the head is the memory peak: n positions x V logits in float32, and the softmax as often again. So the
head runs on some positions at a time, and where a gradient is wanted it is taken at once, within the forward pass: what
is kept for the backward pass is [n, H'] and no logit, and nothing is computed twice. The gradient is the plain one.
Shapes: n positions, H' width of the final hidden states, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Head = Callable[[Tensor], Tensor]
CHUNK = 1024  # positions: 32k words x 1024 x 4 bytes is 134 MB of logits


def token_losses(hidden: Tensor, targets: Tensor, head: Head, *, chunk: int = CHUNK) -> Tensor:
    """-log p of each target, in nats.

    hidden: [n, H'] final hidden states; differentiable, once
    targets: [n] token ids
    head: [m, H'] -> [m, V], with nothing trained in it
    chunk: positions at a time

    Returns [n] float32.
    """
    return _TokenLosses.apply(hidden, targets, head, chunk)


class _TokenLosses(torch.autograd.Function):
    """Each loss depends on its own position only, so one stored row of gradient a position is all of the Jacobian."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, head: Head, chunk: int) -> Tensor:
        learns = ctx.needs_input_grad[0]
        losses, gradients = [], []
        with torch.set_grad_enabled(learns):
            for states, ids in zip(hidden.split(chunk), targets.split(chunk), strict=True):
                states = states.detach().requires_grad_(learns)
                found = functional.cross_entropy(head(states).float(), ids, reduction="none")
                losses.append(found.detach())
                if learns:
                    gradients.extend(torch.autograd.grad(found.sum(), states))
        if learns:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> Any:
        (gradients,) = ctx.saved_tensors
        return gradients * outputs[0].unsqueeze(1).to(gradients.dtype), None, None, None
