"""When a second pass runs, and at which threshold: cases that can be checked in the head."""

import math

import pytest

from frozenlm.decoding import Generation
from frozenlm.errors import ConfigError
from frozenlm.recursion.when import When, confidence, tune_threshold


def test_confidence_is_the_geometric_mean_of_token_probabilities() -> None:
    assert confidence(Generation("paris", [5, 3], [math.log(0.9), math.log(0.4)], "eos")) == pytest.approx(0.6)
    assert confidence(Generation(" ", [3], [0.0], "eos")) == 0.0


def test_who_pays() -> None:
    assert When().pays(1.0)
    below = When("below_confidence", 0.5)
    assert below.pays(0.49) and not below.pays(0.5)
    assert not When("below_confidence", 0.0).pays(0.0)


@pytest.mark.parametrize("rule", [("sometimes", None), ("below_confidence", None), ("below_confidence", -0.1)])
def test_rules_that_say_nothing(rule: tuple) -> None:
    with pytest.raises(ConfigError, match="below_confidence"):
        When(*rule)
    with pytest.raises(ConfigError, match="never looked at"):
        When("always", 0.5)


SURE = [0.1, 0.3, 0.5, 0.7, 0.9]
FIRST = [0, 0, 1, 1, 1]


def test_a_second_pass_that_helps_the_unsure_only() -> None:
    found = tune_threshold(SURE, FIRST, [1, 1, 1, 0, 0])
    assert (found.threshold, found.share) == (0.5, 2 / 5)
    assert (found.score, found.never, found.always) == (5 / 5, 3 / 5, 3 / 5)
    assert [When("below_confidence", found.threshold).pays(one) for one in SURE] == [True, True, False, False, False]


def test_extremes() -> None:
    assert tune_threshold(SURE, FIRST, [0] * 5).threshold == 0.0
    everyone = tune_threshold(SURE, [0] * 5, [1] * 5)
    assert everyone.share == 1.0 and all(When("below_confidence", everyone.threshold).pays(one) for one in SURE)


def test_a_price_and_a_budget_spare_second_passes() -> None:
    second = [1, 1, 1, 1, 1]
    assert tune_threshold([0.1, 0.2, 0.3, 0.9], [0, 1, 1, 0], second[:4]).share == 1.0
    # The last two thirds of the way bring one right answer for three second passes: 0.33 each.
    assert tune_threshold([0.1, 0.2, 0.3, 0.9], [0, 1, 1, 0], second[:4], price=0.4).share == 1 / 4
    assert tune_threshold([0.1, 0.2, 0.3, 0.9], [0, 0, 0, 0], second[:4], max_share=0.5).share == 1 / 2


def test_equal_confidences_pay_together() -> None:
    found = tune_threshold([0.2, 0.2, 0.8], [0, 1, 1], [1, 0, 0])
    assert found.share == 0.0  # one gained, one lost: not worth it, and not to be had apart


@pytest.mark.parametrize("rows", [([], [], []), ([0.1], [1], [])])
def test_nothing_to_tune_on(rows: tuple) -> None:
    with pytest.raises(ConfigError, match="at least one"):
        tune_threshold(*rows)
