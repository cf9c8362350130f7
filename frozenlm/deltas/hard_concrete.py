"""The hard-concrete distribution: gates in [0, 1] that are exactly 0 or 1 part of the time and still have a gradient.

Louizos et al. 2018, "Learning Sparse Neural Networks through L0 Regularization", arXiv 1712.01312, in the form of
DiffPruning (arXiv 2012.07463, section 2.2: no temperature, stretch (-1.5, 1.5)):

    u ~ U(0, 1),   s = sigmoid(logit(u) + alpha),   z = min(1, max(0, 3 s - 1.5))
    P(z != 0) = sigmoid(alpha - log(1.5 / 1.5)),    P(z = 1) = sigmoid(alpha - log 5)

The gradient of z by alpha is 3 s (1 - s) where 0 < z < 1, and 0 elsewhere.
"""

import math

import torch
from torch import Tensor

LOW, HIGH = -1.5, 1.5
EPSILON = 1e-6  # keeps logit(u) finite


def gates(alpha: Tensor, uniform: Tensor | None = None) -> Tensor:
    """One gate for each alpha.

    Args:
        alpha: any shape.
        uniform: numbers in [0, 1) of the same shape; None for the gates of evaluation, which are not random: s is
            sigmoid(alpha).
    """
    noise = 0.0 if uniform is None else torch.logit(uniform, eps=EPSILON)
    return (torch.sigmoid(alpha + noise) * (HIGH - LOW) + LOW).clamp(0, 1)


def open_probability(alpha: Tensor) -> Tensor:
    """P(z != 0), differentiable: summed up it is the expected L0 norm."""
    return torch.sigmoid(alpha - math.log(-LOW / HIGH))
