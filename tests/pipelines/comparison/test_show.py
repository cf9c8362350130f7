"""What is shown of a comparison of many methods: nothing is cut off, what is trained stands beside what is kept."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipelines.comparison.figures import figures
from pipelines.comparison.plots import _figure, _number, _style
from pipelines.comparison.show import comparison_table, rows, write_report
from tests.pipelines.comparison.test_comparison import result

TASKS = ("trec", "sst2", "ag_news", "rte", "mrpc", "boolq")
METHODS = [f"a_method_of_name_{number}" for number in range(24)]


def many() -> list[dict[str, Any]]:
    history = [{"step": step, "score": 0.5} for step in (100, 200)]
    about = {"history": history, "saved_bytes": 5 * 2**20, "lm_parameters": 2**24, "seconds_per_step": 0.1}
    return [
        result(method, task, seed, 0.5 + place / 1000 + seed / 100, **about | {"trained_parameters": 2**20 + place})
        for place, method in enumerate(METHODS)
        for task in TASKS
        for seed in (0, 1)
    ]


@pytest.mark.parametrize("width", [60, 80, 120, 300])
def test_no_cell_is_cut_off(width: int) -> None:
    console = Console(width=width, file=io.StringIO())
    console.print(comparison_table(many(), reference=METHODS[0], title="many"))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    lines = text.splitlines()
    assert max(map(len, lines)) <= width and "…" not in text
    headings, cells = rows(figures(many(), METHODS[0]))
    for method, *numbers in cells:
        own = " ".join(line for line in lines if method in line.split())
        assert all(number in own for number in numbers)
    assert all(any(heading in line for line in lines) for heading in headings)


def test_a_name_wider_than_the_terminal_goes_on_in_a_further_line() -> None:
    console = Console(width=40, file=io.StringIO())
    console.print(comparison_table([result("m" * 50, "x", 0, 0.5)], reference=None, title="long"))
    assert console.file.getvalue().count("m") >= 50  # type: ignore[attr-defined]


def test_trained_and_kept_numbers_and_the_bytes_of_a_step() -> None:
    lines = [
        result("a", "x", 0, 0.5, trained_parameters=100, kept_parameters=7, saved_bytes=1000),
        result("a", "x", 1, 0.5, trained_parameters=100, kept_parameters=5, saved_bytes=900),
        result("old", "x", 0, 0.5, saved_bytes=1000),
        result("asked", "x", 0, 0.5, trained_parameters=0, kept_parameters=0),
    ]
    new, old, asked = figures(lines)
    assert (new.trained_parameters, new.kept_parameters) == (100, 7)
    assert (new.saved_bytes, new.step_bytes) == (1000, 1000 + 16 * 100)
    assert (old.kept_parameters, old.step_bytes) == (None, 1000 + 16 * 10)
    pruned = figures([result("d", "x", 0, 0.5, trained_parameters=10, saved_bytes=1000, kind="diff_pruning")])[0]
    assert pruned.step_bytes is None  # what a line of before calls trained is what was left of it
    assert (asked.kept_parameters, asked.saved_bytes, asked.step_bytes) == (0, None, None)
    headings, cells = rows([new, old, asked])
    shown = [dict(zip(headings, line, strict=True)) for line in cells]
    assert [(line["trained"], line["kept"]) for line in shown] == [("100", "7"), ("10", "-"), ("0", "0")]


def test_each_method_looks_unlike_all_others() -> None:
    assert len({tuple(_style(number).items()) for number in range(1, 281)}) == 280


def test_numbers_of_crowded_points_do_not_lie_on_each_other() -> None:
    figure, axes = _figure()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    _number(axes, {number: (0.5, 0.5 + number / 100) for number in range(1, 9)})
    figure.draw_without_rendering()
    boxes = [text.get_bbox_patch().get_window_extent() for text in axes.texts]
    assert not any(one.overlaps(other) for place, one in enumerate(boxes) for other in boxes[:place])


def test_a_report_of_many_methods_names_each(tmp_path: Path) -> None:
    page = write_report(many(), tmp_path, reference=METHODS[0], title="many")[2].read_text()
    assert all(f"<td>{method}</td>" in page for method in METHODS)
    assert all(f"<th>{heading}</th>" in page for heading in ("trained", "kept", "MiB a step", "MiB kept"))
