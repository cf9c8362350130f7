"""Which rows of many tasks a run of N draws sees.

Examples-proportional mixing with an artificial limit and a temperature: Raffel et al. 2020, "Exploring the Limits of
Transfer Learning with a Unified Text-to-Text Transformer", arXiv 1910.10683, section 3.5.2: a task of n rows is drawn
with probability proportional to min(n, cap) ** (1 / temperature). Our addition: a weight a task, a factor on that.

Each task's rows are visited in shuffled epochs: none comes again before all have come. The order of one task does not
depend on the others. Everything is a pure function of its arguments.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pipelines.errors import ConfigError
from pipelines.suggest import did_you_mean
from pipelines.tasks.task import Task, TaskRow


class MixedRows(list[TaskRow]):
    """The rows of a run, in order.

    Attributes:
        shares: task -> the probability that it was drawn with.
        counts: task -> its rows in the run, repetitions counted.
        repeated: task -> how many of these had come before.
    """

    def __init__(self, rows: Iterable[TaskRow], *, shares: Mapping[str, float]) -> None:
        super().__init__(rows)
        self.shares = dict(shares)
        drawn = Counter(row.task for row in self)
        different = Counter(task for task, _ in {(row.task, row.id) for row in self})
        self.counts = {task: drawn[task] for task in shares}
        self.repeated = {task: drawn[task] - different[task] for task in shares}


def shares(
    sizes: Mapping[str, int],
    *,
    cap: int | None = None,
    temperature: float = 1.0,
    weights: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Task -> probability; they sum to 1.

    sizes: task -> rows
    cap: rows above so many do not count towards a task's share; None for no limit
    temperature: 1 is proportional to size; the larger, the more even
    weights: task -> factor, 1 where not named; 0 leaves a task out

    Raises: ConfigError for a cap below 1, a temperature that is not above 0, a weight that is negative or not finite,
        an unknown task, or nothing left to draw from.
    """
    if cap is not None and cap < 1:
        raise ConfigError(f"mixture cap is {cap}; expected at least 1 row, or None")
    if not (math.isfinite(temperature) and temperature > 0):
        raise ConfigError(f"mixture temperature is {temperature}; expected a number above 0")
    given = dict(weights or {})
    for task, weight in given.items():
        if task not in sizes:
            raise ConfigError(f"the mixture weighs an unknown task {task!r}{did_you_mean(task, sorted(sizes))}")
        if not (math.isfinite(weight) and weight >= 0):
            raise ConfigError(f"the mixture weight of {task!r} is {weight}; expected 0 or more")
    for task, size in sizes.items():
        if size < 1 and given.get(task, 1.0) > 0:
            raise ConfigError(f"task {task!r} has no rows to draw from; give it some, or the weight 0")
    # In logarithms, so that neither a huge size nor a small temperature overflows.
    logs = {
        task: math.log(given.get(task, 1.0)) + math.log(size if cap is None else min(size, cap)) / temperature
        for task, size in sizes.items()
        if given.get(task, 1.0) > 0
    }
    if not logs:
        raise ConfigError("no task of the mixture has a weight above 0; give at least one")
    most = max(logs.values())
    parts = {task: math.exp(logs[task] - most) if task in logs else 0.0 for task in sizes}
    total = math.fsum(parts.values())
    return {task: part / total for task, part in parts.items()}


def mixture(
    tasks: Sequence[Task],
    *,
    draws: int,
    cap: int | None = None,
    temperature: float = 1.0,
    weights: Mapping[str, float] | None = None,
    seed: int = 0,
    split: str = "train",
) -> MixedRows:
    """`draws` rows; a task is drawn by its share each time, and gives its next row. As `shares` for the rest.

    Raises: ConfigError for fewer than 1 draw, two tasks of one name; as `shares`.
    """
    if draws < 1:
        raise ConfigError(f"a mixture of {draws} draws; expected at least 1")
    rows = {task.name: task.rows.get(split, ()) for task in tasks}
    if len(rows) != len(tasks):
        raise ConfigError(f"two tasks of the mixture have one name: {sorted(task.name for task in tasks)}")
    chances = shares({name: len(own) for name, own in rows.items()}, cap=cap, temperature=temperature, weights=weights)
    names = [name for name, chance in chances.items() if chance > 0]
    visits = {name: shuffled_epochs(rows[name], seed=f"{seed}/{name}") for name in names}
    drawn = random.Random(f"{seed}").choices(names, [chances[name] for name in names], k=draws)
    return MixedRows((next(visits[name]) for name in drawn), shares=chances)


def shuffled_epochs(rows: Sequence[TaskRow], *, seed: str) -> Iterator[TaskRow]:
    """All rows in random order, then all in another order, and so on without end.

    Raises: ConfigError without a row.
    """
    if not rows:
        raise ConfigError("there is no row to visit; expected at least one")
    rng = random.Random(seed)
    while True:
        yield from rng.sample(list(rows), len(rows))
