"""A comparison for people: a table, two plots, and one self-contained HTML page that holds both."""

from __future__ import annotations

import base64
import html
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from frozenlm.checkpoint import atomic_write_bytes
from pipelines.comparison.figures import MethodFigures, figures, transfer
from pipelines.comparison.plots import curves_plot, scores_plot
from pipelines.comparison.results import Result

CAPTION = (
    "Percent: mean ± standard deviation over (n) seeds; of the tasks' mean the 95% interval over rows and seeds. "
    "Trained: what the optimizer moves; kept: what serves it. MiB a step: what it keeps for its backward pass, and 16 "
    "bytes a trained number (value, gradient, AdamW's two moments)."
)
HEADINGS = ("method", "mean", "of reference", "trained", "kept", "of the LM", "s a step", "MiB a step", "MiB kept")
SCORES, CURVES, PAGE = "scores.png", "curves.png", "comparison.html"


def rows(found: Sequence[MethodFigures]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells, the tasks last; scores in percent, bytes as they are defined by `MethodFigures`."""
    tasks = list(found[0].tasks) if found else []
    return [*HEADINGS, *tasks], [
        [
            one.method,
            _mean(one),
            "-" if one.of_reference is None else f"{100 * one.of_reference:.1f}%",
            f"{one.trained_parameters:,}",
            "-" if one.kept_parameters is None else f"{one.kept_parameters:,}",
            f"{100 * one.share:.3f}%",
            "-" if one.seconds_per_step is None else f"{one.seconds_per_step:.3f}",
            _mebibytes(one.step_bytes),
            _mebibytes(one.saved_bytes),
            *(_over_seeds(one.tasks[task]) for task in tasks),
        ]
        for one in found
    ]


def comparison_table(results: Sequence[Result], *, reference: str | None, title: str) -> Group:
    """All methods, one line each; the scores of each task in a table of their own."""
    headings, cells = rows(figures(results, reference))
    about, tasks = slice(1, len(HEADINGS)), slice(len(HEADINGS), None)
    parts = [_Columns([line[0], *line[part]] for line in (headings, *cells)) for part in (about, tasks)]
    return Group(Text(title, style="bold"), *parts, Text(CAPTION, style="dim"))


class _Columns:
    """A table whose columns go on in a further one where the terminal has no room; nothing is cut off.

    lines: of cells, the headings first; the first cell of each is repeated
    """

    def __init__(self, lines: Iterable[Sequence[str]]) -> None:
        self._columns = list(zip(*lines, strict=True))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        first, *rest = self._columns
        yield ""
        while rest:
            fits = 1
            while fits < len(rest) and self._width([first, *rest[: fits + 1]], console, options) <= options.max_width:
                fits += 1
            yield self._table([first, *rest[:fits]])
            yield ""
            rest = rest[fits:]

    def _width(self, columns: Sequence[Sequence[str]], console: Console, options: ConsoleOptions) -> int:
        boundless = options.update(max_width=10**6)
        return Measurement.get(console, boundless, self._table(columns)).maximum

    @staticmethod
    def _table(columns: Sequence[Sequence[str]]) -> Table:
        table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False, show_edge=False)
        for place, (heading, *_) in enumerate(columns):
            table.add_column(heading, justify="right" if place else "left", overflow="fold")
        for line in zip(*(column[1:] for column in columns), strict=True):
            table.add_row(*line)
        return table


def write_report(results: Sequence[Result], out: Path | str, *, reference: str | None, title: str) -> list[Path]:
    """Write `scores.png`, `curves.png` and `comparison.html`.

    Raises:
        MissingExtraError: matplotlib is not installed.
        CheckpointError: a file cannot be written.
    """
    out, found = Path(out), figures(results, reference)
    pictures = {SCORES: scores_plot(found), CURVES: curves_plot(results, found)}
    for name, figure in pictures.items():
        atomic_write_bytes(out / name, figure)
    atomic_write_bytes(out / PAGE, _page(results, found, pictures, title).encode())
    return [out / name for name in (SCORES, CURVES, PAGE)]


def _over_seeds(scores: Sequence[float]) -> str:
    if not scores:
        return "-"
    spread = f" ± {100 * statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
    return f"{100 * statistics.mean(scores):.1f}{spread} ({len(scores)})"


def _mean(one: MethodFigures) -> str:
    if one.mean is None or one.interval is None:
        return "-"
    low, high = (100 * end for end in one.interval)
    return f"{100 * one.mean:.1f} [{low:.1f}, {high:.1f}]"


def _mebibytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 2**20:.0f}"


def _page(results: Sequence[Result], found: Sequence[MethodFigures], pictures: dict[str, bytes], title: str) -> str:
    headings, cells = rows(found)
    parts = [f"<h1>{html.escape(title)}</h1>", _table(headings, cells)]
    parts.append(f"<p>{html.escape(CAPTION)}</p>")
    for name, data in pictures.items():
        parts.append(f'<img alt="{name}" src="data:image/png;base64,{base64.b64encode(data).decode()}">')
    for one in found:
        matrix = transfer(results, one.method)
        if any(len(row) > 1 for row in matrix.values()):
            tasks = list(one.tasks)
            lines = [
                [source, *(f"{100 * row[task]:.1f}" if task in row else "-" for task in tasks)]
                for source, row in matrix.items()
            ]
            parts += [f"<h2>{html.escape(one.method)}: trained for, measured on</h2>", _table(["", *tasks], lines)]
    return _HTML.replace("TITLE", html.escape(title)).replace("BODY", "\n".join(parts))


def _table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in headings)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>" for line in lines)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


_HTML = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>TITLE</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid #ccc; padding: .2rem .6rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; }
</style></head><body>
BODY
</body></html>
"""
