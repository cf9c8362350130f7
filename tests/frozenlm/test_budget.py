"""Sizes fitted to a number of trained parameters."""

import pytest

from frozenlm.errors import ConfigError
from frozenlm.prompts.attempt import Attempt
from frozenlm.prompts.budget import fit_to_budget
from frozenlm.prompts.idpg import IDPG
from frozenlm.prompts.input_dependent import PAPER, InputDependentPrompt
from frozenlm.prompts.task_prompts import TaskPrompts


@pytest.mark.parametrize(("budget", "size"), [(10, 1), (19, 1), (20, 2), (105, 10), (10**9, 10**8)])
def test_the_largest_size_within_the_budget(budget: int, size: int) -> None:
    assert fit_to_budget(lambda size: 10 * size, budget) == size


@pytest.mark.parametrize(("budget", "size"), [(40, 4), (79, 4), (80, 8), (125, 12)])
def test_sizes_in_steps(budget: int, size: int) -> None:
    assert fit_to_budget(lambda size: 10 * size, budget, step=4) == size


def test_any_count_that_grows() -> None:
    assert fit_to_budget(lambda size: size**2 + 3, 103) == 10


def test_a_budget_below_the_smallest_size_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"budget of 39 .* smallest size, 4, trains 40"):
        fit_to_budget(lambda size: 10 * size, 39, step=4)


def test_a_count_that_does_not_grow_is_an_error() -> None:
    with pytest.raises(ConfigError, match="does not grow"):
        fit_to_budget(lambda size: 7, 100)


def test_a_step_below_one_is_an_error() -> None:
    with pytest.raises(ConfigError, match="step is 0"):
        fit_to_budget(lambda size: size, 100, step=0)


def test_every_method_at_one_budget() -> None:
    budget = 10_000  # H 100 and E 100
    assert fit_to_budget(lambda length: length * 100, budget) == 100
    # 4 tasks: 400 a soft token
    tasks = fit_to_budget(lambda length: TaskPrompts.parameter_count(tasks=4, length=length, hidden_size=100), budget)
    assert tasks == 25
    # P 10: W0 1000; each of d costs 1 + 100 + 1000
    idpg = {"encoder_size": 100, "hidden_size": 100, "length": 10}
    assert fit_to_budget(lambda d: IDPG.parameter_count(bottleneck=d, **idpg), budget) == 9_000 // 1_101 == 8
    # n 10: W0 1000, the shared 10 x 10 x 10; ten of d cost 10 + (100 + 1000) x 10 / 10
    phm = fit_to_budget(lambda d: IDPG.parameter_count(bottleneck=d, phm=10, **idpg), budget, step=10)
    assert phm == 8_000 // 1_110 * 10 == 70
    # P 10, one target: 1000, norm 200; each of r costs 200
    attempt = fit_to_budget(lambda r: Attempt.parameter_count(hidden_size=100, length=10, width=r), budget)
    assert attempt == 8_800 // 200 == 44


def test_id_pt_has_the_width_of_its_own_count() -> None:
    sizes = {**PAPER, "hidden_size": 4096, "encoder_size": 768, "feed_forward": None}

    def count(width: int) -> int:
        return InputDependentPrompt.parameter_count(**sizes | {"width": width})

    assert fit_to_budget(count, count(PAPER["width"]), step=PAPER["heads"]) == PAPER["width"]
    assert fit_to_budget(count, count(PAPER["width"]) - 1, step=PAPER["heads"]) == PAPER["width"] - PAPER["heads"]
    # as long as its numbers of a plain prompt: 25.2M / 4096
    assert fit_to_budget(lambda length: length * 4096, count(PAPER["width"])) == count(PAPER["width"]) // 4096
