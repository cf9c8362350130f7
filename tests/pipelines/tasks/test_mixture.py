"""Shares of tasks, and the order in which rows come."""

from collections import Counter

import pytest

from pipelines.errors import ConfigError
from pipelines.tasks.mixture import mixture, shares
from pipelines.tasks.task import Task, TaskRow


def _task(name: str, size: int) -> Task:
    rows = [TaskRow(f"{name}/train/{i}", name, f"x{i}", "y") for i in range(1, size + 1)]
    return Task(name, "bleu", (), {"train": rows})


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"a": 0.1, "b": 0.9}),
        ({"cap": 300}, {"a": 0.25, "b": 0.75}),
        ({"cap": 50}, {"a": 0.5, "b": 0.5}),
        ({"temperature": 2}, {"a": 0.25, "b": 0.75}),  # 10 : 30
        ({"temperature": 1e9}, {"a": 0.5, "b": 0.5}),
        ({"weights": {"a": 9}}, {"a": 0.5, "b": 0.5}),
        ({"weights": {"b": 0}}, {"a": 1.0, "b": 0.0}),
        ({"temperature": 1e-4}, {"a": 0.0, "b": 1.0}),
    ],
)
def test_shares(options: dict, expected: dict) -> None:
    assert shares({"a": 100, "b": 900}, **options) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cap": 0}, "mixture cap is 0"),
        ({"temperature": 0}, "mixture temperature is 0"),
        ({"temperature": float("nan")}, "mixture temperature is nan"),
        ({"weights": {"a": -1}}, "the mixture weight of 'a' is -1"),
        ({"weights": {"a": float("inf")}}, "the mixture weight of 'a' is inf"),
        ({"weights": {"a": 0, "b": 0}}, "no task of the mixture has a weight above 0"),
        ({"weights": {"c": 1}}, "unknown task 'c'; known: a, b"),
    ],
)
def test_refused_shares(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        shares({"a": 100, "b": 900}, **options)


def test_a_task_without_rows() -> None:
    with pytest.raises(ConfigError, match="task 'b' has no rows"):
        shares({"a": 3, "b": 0})
    assert shares({"a": 3, "b": 0}, weights={"b": 0}) == {"a": 1.0, "b": 0.0}
    with pytest.raises(ConfigError, match="task 'a' has no rows"):
        mixture([_task("a", 3)], draws=1, split="dev")


def test_counts_follow_the_shares() -> None:
    rows = mixture([_task("a", 100), _task("b", 300)], draws=4000)
    assert rows.shares == pytest.approx({"a": 0.25, "b": 0.75})
    # 1,000 and 3,000 but for chance (standard deviation 27).
    assert 900 < rows.counts["a"] < 1100
    assert rows.counts["a"] + rows.counts["b"] == len(rows) == 4000
    assert rows.repeated == {"a": rows.counts["a"] - 100, "b": rows.counts["b"] - 300}


def test_no_row_comes_again_before_all_have_come() -> None:
    rows = mixture([_task("a", 5), _task("b", 7)], draws=200, seed=3)
    for name, size in (("a", 5), ("b", 7)):
        own = [row.id for row in rows if row.task == name]
        epochs = [own[i : i + size] for i in range(0, len(own), size)]
        assert all(len(set(epoch)) == len(epoch) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1
        counts = Counter(own).values()
        assert max(counts) - min(counts) <= 1


def test_a_cap_hides_no_row() -> None:
    rows = mixture([_task("a", 50)], draws=50, cap=5)
    assert len({row.id for row in rows}) == 50
    assert rows.repeated == {"a": 0}


def test_the_seed_decides_everything() -> None:
    tasks = [_task("a", 20), _task("b", 20)]
    assert mixture(tasks, draws=60, seed=1) == mixture(tasks, draws=60, seed=1)
    assert mixture(tasks, draws=60, seed=1) != mixture(tasks, draws=60, seed=2)
    assert mixture(tasks, draws=60, seed=1)[:30] == mixture(tasks, draws=30, seed=1)


def test_a_tasks_own_order_does_not_depend_on_the_others() -> None:
    alone = [row.id for row in mixture([_task("a", 20)], draws=20)]
    mixed = [row.id for row in mixture([_task("a", 20), _task("b", 20)], draws=30) if row.task == "a"]
    assert mixed == alone[: len(mixed)]


def test_a_task_of_weight_zero_is_reported_with_zero() -> None:
    rows = mixture([_task("a", 3), _task("b", 3)], draws=4, weights={"b": 0})
    assert (rows.counts, rows.repeated) == ({"a": 4, "b": 0}, {"a": 1, "b": 0})


def test_refused_mixtures() -> None:
    with pytest.raises(ConfigError, match="a mixture of 0 draws"):
        mixture([_task("a", 3)], draws=0)
    with pytest.raises(ConfigError, match="two tasks of the mixture have one name"):
        mixture([_task("a", 3), _task("a", 3)], draws=1)
    with pytest.raises(ConfigError, match="no task of the mixture"):
        mixture([], draws=1)
