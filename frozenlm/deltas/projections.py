"""Random projections from d numbers to N weights: Fastfood, which needs memory for N numbers, and a dense matrix.

Fastfood: Le et al. 2013, arXiv 1408.3060, as Li et al. use it (1804.08838, section 7 of the supplement). For a block of
b weights, b a power of two, theta is padded to b numbers and goes through H G P H B: signs B, a Walsh-Hadamard
transform H, a permutation P, Gaussian factors G, H again. As many independent blocks stand below each other as N
weights need, so one projection costs N log b and not N^2 or N d. Our choice: b is at least 1024, however small d is,
so that the few factors of a small block do not repeat over all weights.

Both have columns of unit length, as in 1804.08838: a step in theta moves the weights as far. (For Fastfood it holds
exactly before the last block is cut to N.) The numbers are drawn on the CPU from a seed, so every machine has the same.
"""

import hashlib
import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from frozenlm.errors import ConfigError, ShapeError

SMALLEST_BLOCK = 2**10
CHUNK = 2**16  # numbers that go through all five factors together: 256 KB, so that a CPU core keeps them in its cache
FACTOR_BITS = 5
DENSE_LIMIT = 2**26  # numbers of a dense matrix: 256 MB in float32


class Projection(Protocol):
    """A fixed linear map from [d] to [N]."""

    def __call__(self, theta: Tensor) -> Tensor:
        """theta [d] -> [N], differentiable."""
        ...

    def digest(self) -> str:
        """Of a part of the numbers drawn, to notice when they come out otherwise."""
        ...


class Fastfood:
    """Blocks of H G P H B.

    Args:
        weights: N.
        dimension: d.
        seed: of the signs, permutations and factors.
    """

    def __init__(self, weights: int, dimension: int, seed: int) -> None:
        self.weights, self.dimension = weights, dimension
        self.block = max(SMALLEST_BLOCK, 2 ** (dimension - 1).bit_length())
        count = -(-weights // self.block)
        generator = torch.Generator().manual_seed(seed)
        size = (count, self.block)
        self._signs = torch.randint(2, size, generator=generator, dtype=torch.int8) * 2 - 1
        self._factors = torch.randn(size, generator=generator)
        self._factors /= self._factors.norm(dim=1, keepdim=True) * math.sqrt(weights)
        self._order = torch.empty(count * self.block, dtype=torch.int32 if weights < 2**30 else torch.int64)
        for k in range(count):
            start = k * self.block
            self._order[start : start + self.block] = torch.randperm(self.block, generator=generator) + start

    def __call__(self, theta: Tensor) -> Tensor:
        _check_width(theta, self.dimension)
        self._move(theta.device)
        with torch.autocast(theta.device.type, enabled=False):
            projected: Tensor = _Fastfood.apply(theta, self)
            return projected

    def forward(self, theta: Tensor) -> Tensor:
        """P theta: [d] -> [N], without a gradient."""
        padded = torch.nn.functional.pad(theta, (0, self.block - self.dimension))
        out = theta.new_empty(self._factors.shape)
        for some, order in self._chunks():
            mixed = hadamard(self._signs[some] * padded)
            shuffled = mixed.flatten().index_select(0, order).view_as(mixed)
            out[some] = hadamard(shuffled * self._factors[some].to(theta.dtype))
        return out.flatten()[: self.weights]

    def backward(self, of_weights: Tensor) -> Tensor:
        """P^T g: [N] -> [d], the gradient of `forward`."""
        blocks = torch.nn.functional.pad(of_weights, (0, self._factors.numel() - self.weights)).view_as(self._factors)
        total = of_weights.new_zeros(self.block)
        for some, order in self._chunks():
            scaled = hadamard(blocks[some]) * self._factors[some].to(of_weights.dtype)
            sorted_ = torch.zeros_like(scaled).flatten().index_add_(0, order, scaled.flatten()).view_as(scaled)
            total += (hadamard(sorted_) * self._signs[some]).sum(0)
        return total[: self.dimension]

    def digest(self) -> str:
        first = (self._signs[0], self._factors[0], self._order[: self.block])
        return _sha256(*first)

    def _chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """Blocks that are worked on together, and their permutation; an accelerator takes all at once."""
        count = len(self._factors)
        rows = max(1, CHUNK // self.block) if self._factors.device.type == "cpu" else count
        for start in range(0, count, rows):
            end = min(start + rows, count)
            yield slice(start, end), self._order[start * self.block : end * self.block] - start * self.block

    def _move(self, device: torch.device) -> None:
        if self._signs.device != device:
            self._signs, self._factors, self._order = (x.to(device) for x in (self._signs, self._factors, self._order))


class _Fastfood(torch.autograd.Function):
    """The projection is linear, so its gradient needs nothing of the forward pass, and no [N] is kept for it."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, projection: Fastfood) -> Tensor:
        ctx.projection = projection
        return projection.forward(theta)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *of_weights: Tensor) -> tuple[Tensor, None]:
        return ctx.projection.backward(of_weights[0]), None


class Dense:
    """A Gaussian matrix [N, d] with columns of unit length, for small models.

    Raises:
        ConfigError: the matrix would be too large.
    """

    def __init__(self, weights: int, dimension: int, seed: int) -> None:
        if weights * dimension > DENSE_LIMIT:
            raise ConfigError(
                f"a dense projection from {dimension} to {weights} has {weights * dimension} numbers, more than "
                f"{DENSE_LIMIT}; use fastfood, or fewer weights or dimensions"
            )
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(weights, dimension, generator=generator)
        self._matrix = drawn / drawn.norm(dim=0)

    def __call__(self, theta: Tensor) -> Tensor:
        _check_width(theta, self._matrix.shape[1])
        self._matrix = self._matrix.to(theta.device)
        with torch.autocast(theta.device.type, enabled=False):
            return self._matrix.to(theta.dtype) @ theta

    def digest(self) -> str:
        return _sha256(self._matrix[0])


def hadamard(x: Tensor) -> Tensor:
    """The Walsh-Hadamard transform H x along the last dimension n, a power of two: H H^T = n I, not normalised.

    H is a Kronecker product of small ones, so the transform is a few small matrix products: n times the sum of their
    widths, n log n up to a constant, faster than butterflies through memory. Its gradient is H itself, by autograd.

    Raises:
        ShapeError: n is not a power of two.
    """
    n = x.shape[-1]
    if n < 1 or n & (n - 1):
        raise ShapeError(f"a Walsh-Hadamard transform needs a power of two, got {n} numbers; pad with zeros")
    shape, left = x.shape, n.bit_length() - 1
    after = 1
    while left:
        bits = min(FACTOR_BITS, left)
        small = _hadamard_matrix(bits).to(x)
        # One axis of 2^bits at a time, the innermost first.
        x = x.reshape(-1, 2**bits) @ small if after == 1 else small @ x.reshape(-1, 2**bits, after)
        after, left = after * 2**bits, left - bits
    return x.reshape(shape)


@lru_cache
def _hadamard_matrix(bits: int) -> Tensor:
    """H of 2^bits, Sylvester's: entry (i, j) is -1 to the number of bits that i and j share."""
    one = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    matrix = torch.ones(1, 1)
    for _ in range(bits):
        matrix = torch.kron(one, matrix)
    return matrix


def _check_width(theta: Tensor, dimension: int) -> None:
    if theta.shape != (dimension,):
        raise ShapeError(f"the projection is from [{dimension}], got {list(theta.shape)}")


def _sha256(*tensors: Tensor) -> str:
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()
