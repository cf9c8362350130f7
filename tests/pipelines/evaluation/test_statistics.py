"""Intervals and tests against closed forms and scipy."""

import numpy as np
import pytest
from scipy import stats

from pipelines.errors import ShapeError
from pipelines.evaluation.statistics import bootstrap, mcnemar, paired_bootstrap, resampled_means, wilson


@pytest.mark.parametrize(("right", "n"), [(0, 10), (3, 10), (10, 10), (1805, 3610)])
def test_wilson_is_scipys(right: int, n: int) -> None:
    expected = stats.binomtest(right, n).proportion_ci(method="wilson")
    assert wilson(right / n, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_widths_that_one_should_know() -> None:
    low, high = wilson(0.5, 3610)
    assert (high - low) / 2 == pytest.approx(0.016, abs=0.0005)  # EM 50 % on NQ: 1.6 points
    low, high = wilson(0.35, 1000)
    assert (high - low) / 2 == pytest.approx(0.030, abs=0.0005)


def test_bootstrap_agrees_with_the_normal_interval_and_is_repeatable() -> None:
    values = np.random.default_rng(1).normal(2.0, 1.0, (1000, 1))
    low, high = bootstrap(values, resamples=4000)
    half = 1.96 * values.std() / np.sqrt(1000)
    assert low == pytest.approx(values.mean() - half, abs=0.01)
    assert high == pytest.approx(values.mean() + half, abs=0.01)
    assert bootstrap(values, resamples=4000) == (low, high)
    assert bootstrap(values, resamples=4000, seed=1) != (low, high)


def test_a_constant_has_no_width() -> None:
    assert bootstrap(np.full((7, 1), 0.25)) == (0.25, 0.25)


def test_scores_of_one_question_are_drawn_together() -> None:
    values = np.array([[1.0, 2.0], [3.0, 6.0], [5.0, 10.0]])
    means = resampled_means(values, resamples=50)
    assert means[:, 1] == pytest.approx(2 * means[:, 0])
    assert set(np.unique(np.round(means[:, 0] * 3))) <= set(range(3, 16, 2))


def test_large_n_is_drawn_in_pieces_and_stays_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(20.0)[:, None]
    once = resampled_means(values, resamples=30)
    monkeypatch.setattr("pipelines.evaluation.statistics._DRAWS_AT_ONCE", 60)
    assert np.array_equal(once, resampled_means(values, resamples=30))


def test_a_ratio_defined_nowhere() -> None:
    assert bootstrap(np.zeros((4, 2)), lambda means: means[:, 0] / means[:, 1]) is None


def test_paired_bootstrap() -> None:
    a = np.array([0.0] * 60 + [1.0] * 40)
    b = np.array([0.0] * 40 + [1.0] * 60)  # 20 questions better, none worse
    result = paired_bootstrap(a, b)
    assert (result.a, result.b, result.difference) == (0.4, 0.6, pytest.approx(0.2))
    # One standard error is sqrt(0.2 * 0.8 / 100) = 0.04.
    assert result.low == pytest.approx(0.12, abs=0.015)
    assert result.high == pytest.approx(0.28, abs=0.015)
    assert result.p_bootstrap < 0.001


def test_paired_bootstrap_of_equal_runs() -> None:
    a = np.array([0.0, 1.0, 1.0])
    result = paired_bootstrap(a, a)
    assert (result.difference, result.low, result.high, result.p_bootstrap) == (0.0, 0.0, 0.0, 1.0)


def test_paired_bootstrap_p_is_near_the_t_tests() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=400)
    b = a + rng.normal(0.08, 1.0, size=400)
    assert paired_bootstrap(a, b).p_bootstrap == pytest.approx(stats.ttest_rel(a, b).pvalue, abs=0.02)


def test_mcnemar_by_hand() -> None:
    a = np.array([1, 1, 0, 0, 0, 0, 0, 1], dtype=bool)
    b = np.array([1, 0, 1, 1, 1, 1, 1, 1], dtype=bool)
    result = mcnemar(a, b)
    assert (result.only_a, result.only_b) == (1, 5)
    assert result.p == pytest.approx(2 * (1 + 6) / 2**6)  # P(X <= 1) + P(X >= 5), X ~ Bin(6, 1/2)
    assert mcnemar(a, a).p == 1.0


def test_shapes() -> None:
    with pytest.raises(ShapeError):
        wilson(0.5, 0)
    with pytest.raises(ShapeError):
        resampled_means(np.zeros((0, 1)))
    with pytest.raises(ShapeError):
        paired_bootstrap(np.zeros(3), np.zeros(4))
    with pytest.raises(ShapeError):
        mcnemar(np.zeros(3, bool), np.zeros(4, bool))
