"""How sure a figure is, and whether two runs differ.

A share of questions gets Wilson's score interval, which stays honest at 0 and at n of n, where a bootstrap says
"certain". A mean or a ratio gets the percentile bootstrap over questions (Efron and Tibshirani 1993), its seed fixed.
Two runs over the same questions are compared by the paired bootstrap and, for yes-or-no scores, by McNemar's test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import ShapeError

Floats = NDArray[np.float64]
_DRAWS_AT_ONCE = 4_000_000


def wilson(share: float, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share of `n` questions.

    Raises:
        ShapeError: `n` is 0.
    """
    if n < 1:
        raise ShapeError(f"an interval needs at least one question, got n={n}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * float(np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)))
    return max(0.0, middle - half), min(1.0, middle + half)


def resampled_means(values: Floats, *, resamples: int = 2000, seed: int = 0) -> Floats:
    """Means of bootstrap samples of the rows.

    Args:
        values: [N, M]: N questions, M scores of each. The same questions are drawn for every score.

    Returns:
        [resamples, M]

    Raises:
        ShapeError: `values` is not [N, M] with N >= 1.
    """
    if values.ndim != 2 or len(values) == 0:
        raise ShapeError(f"expected scores [N, M] with N >= 1, got shape {values.shape}")
    n = len(values)
    rng = np.random.default_rng(seed)
    means = np.empty((resamples, values.shape[1]))
    step = max(1, _DRAWS_AT_ONCE // n)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(0, n, size=(rows, n)) + n * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
        means[start : start + rows] = counts @ values / n
    return means


def bootstrap(
    values: Floats,
    statistic: Callable[[Floats], Floats] = lambda means: means[:, 0],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Percentile interval of `statistic`, a function of means [B, M] -> [B]; None where it is defined nowhere."""
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = statistic(resampled_means(values, resamples=resamples, seed=seed))
    drawn = drawn[np.isfinite(drawn)]
    if drawn.size == 0:
        return None
    low, high = np.quantile(drawn, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


@dataclass(frozen=True, slots=True)
class Difference:
    """One score in two runs: `difference` is b - a, with its 95% interval and two-sided p-value."""

    a: float
    b: float
    difference: float
    low: float
    high: float
    p_bootstrap: float


def paired_bootstrap(a: Floats, b: Floats, *, resamples: int = 10_000, seed: int = 0) -> Difference:
    """Compare two runs over the same questions.

    The p-value is the share of resamples whose difference, centred on 0, is at least as large as the one seen.

    Args:
        a, b: [N] scores of the same N questions, in the same order.

    Raises:
        ShapeError: other shapes.
    """
    if a.shape != b.shape or a.ndim != 1:
        raise ShapeError(f"expected two score lists of one length, got shapes {a.shape} and {b.shape}")
    each = (b - a).astype(np.float64)
    seen = float(each.mean())
    drawn = resampled_means(each[:, None], resamples=resamples, seed=seed)[:, 0]
    as_far = int((np.abs(drawn - seen) >= abs(seen) - 1e-12).sum())
    low, high = np.quantile(drawn, [0.025, 0.975])
    p = (1 + as_far) / (1 + resamples)
    return Difference(float(a.mean()), float(b.mean()), seen, float(low), float(high), p)


@dataclass(frozen=True, slots=True)
class McNemar:
    """Questions that only one of two runs gets right, and the exact two-sided p-value of the split."""

    only_a: int
    only_b: int
    p: float


def mcnemar(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> McNemar:
    """McNemar's test in its exact form: a binomial test of the discordant questions against one half.

    Raises:
        ShapeError: `a` and `b` are not [N] both.
    """
    from scipy.stats import binomtest  # a second of imports that only this function needs

    if a.shape != b.shape or a.ndim != 1:
        raise ShapeError(f"expected two lists of one length, got shapes {a.shape} and {b.shape}")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    p = float(binomtest(only_b, only_a + only_b, 0.5).pvalue) if only_a + only_b else 1.0
    return McNemar(only_a, only_b, p)
