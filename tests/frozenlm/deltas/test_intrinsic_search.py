"""The search for d90 on scores that are known."""

import math
from pathlib import Path

import pytest

from frozenlm.deltas.intrinsic_search import D90, d90_search, powers
from frozenlm.errors import CheckpointError, ConfigError


@pytest.mark.parametrize("needed", [1, 2, 3, 8, 64, 100, 128])
def test_it_finds_the_smallest_that_reaches(needed: int) -> None:
    calls = []

    def evaluate(d: int) -> float:
        calls.append(d)
        return 0.72 if d >= needed else 0.71

    found = d90_search(evaluate, powers(1, 128), full_score=0.8)
    assert found.dimension == 2 ** math.ceil(math.log2(needed))
    assert found.target == pytest.approx(0.72) and found.is_monotone
    assert len(calls) == len(set(calls)) <= 1 + 3  # the largest, then halves of the 8 on the grid


def test_a_target_out_of_reach() -> None:
    found = d90_search(lambda d: 0.5, [10, 20, 30], full_score=0.8)
    assert found.dimension is None and found.scores == {30: 0.5}


def test_scores_that_do_not_rise_are_shown() -> None:
    scores = {1: 0.0, 2: 1.0, 4: 0.0, 8: 1.0}
    found = d90_search(scores.__getitem__, [1, 2, 4, 8], full_score=1.0)
    assert found.dimension == 2 and found.scores == {1: 0.0, 2: 1.0, 8: 1.0} and found.is_monotone
    assert not D90(8, 0.9, {1: 1.0, 4: 0.0, 8: 1.0}).is_monotone


def test_it_goes_on_where_it_was(tmp_path: Path) -> None:
    path, calls = tmp_path / "d90.json", []

    def evaluate(d: int) -> float:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(d)
        return d / 100

    with pytest.raises(KeyboardInterrupt):
        d90_search(evaluate, [5, 10, 20, 40, 80], full_score=0.2, path=path)
    first = list(calls)
    calls.clear()
    found = d90_search(evaluate, [5, 10, 20, 40, 80], full_score=0.2, path=path)
    assert found.dimension == 20 and not set(first) & set(calls)
    calls.clear()
    assert d90_search(evaluate, [5, 10, 20, 40, 80], full_score=0.2, path=path) == found and not calls
    with pytest.raises(CheckpointError, match="is of a search for"):
        d90_search(evaluate, [5, 10], full_score=0.3, path=path)
    path.write_text("{}")
    with pytest.raises(CheckpointError, match="not a file of this search"):
        d90_search(evaluate, [5, 10], full_score=0.2, path=path)


def test_grids() -> None:
    assert powers(8, 64) == [8, 16, 32, 64]
    assert powers(100, 399) == [100, 200]
    assert powers(100, 400, per_octave=2) == [100, 141, 200, 283, 400]
    with pytest.raises(ConfigError, match="a grid needs"):
        powers(0, 4)


def test_bad_input() -> None:
    for dims in ([], [0, 1], [2, 1], [1, 1]):
        with pytest.raises(ConfigError, match="dims is"):
            d90_search(lambda d: 1.0, dims, full_score=1.0)
    for full in (0.0, -1.0, math.nan):
        with pytest.raises(ConfigError, match="is no target"):
            d90_search(lambda d: 1.0, [1], full_score=full)
    with pytest.raises(ConfigError, match="score at dimension 4 is nan"):
        d90_search(lambda d: math.nan, [1, 4], full_score=1.0)
