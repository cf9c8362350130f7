"""A comparison for people: a table, two plots, and one self-contained HTML page that holds both."""

from __future__ import annotations

import base64
import html
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from frozenlm.checkpoint import atomic_write_bytes
from pipelines.comparison.figures import MethodFigures, curves, figures, transfer
from pipelines.comparison.runs import Result
from pipelines.errors import MissingExtraError

CAPTION = "percent: mean ± standard deviation over (n) seeds; of the tasks' mean the 95% interval over rows and seeds"
SCORES, CURVES, PAGE = "scores.png", "curves.png", "comparison.html"


def rows(found: Sequence[MethodFigures]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells; scores in percent."""
    tasks = list(found[0].tasks) if found else []
    headings = ["method", *tasks, "mean", "of reference", "trained", "of the LM", "s a step", "MiB kept a step"]
    return headings, [
        [
            one.method,
            *(_over_seeds(one.tasks[task]) for task in tasks),
            _mean(one),
            "-" if one.of_reference is None else f"{100 * one.of_reference:.1f}%",
            f"{one.trained_parameters:,}",
            f"{100 * one.share:.3f}%",
            "-" if one.seconds_per_step is None else f"{one.seconds_per_step:.3f}",
            "-" if one.saved_bytes is None else f"{one.saved_bytes / 2**20:.0f}",
        ]
        for one in found
    ]


def comparison_table(results: Sequence[Result], *, reference: str | None, title: str) -> Table:
    """All methods, one line each."""
    headings, cells = rows(figures(results, reference))
    table = Table(title=title, caption=CAPTION)
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="left" if place == 0 else "right")
    for line in cells:
        table.add_row(*line)
    return table


def write_report(results: Sequence[Result], out: Path | str, *, reference: str | None, title: str) -> list[Path]:
    """Write `scores.png`, `curves.png` and `comparison.html`.

    Raises:
        MissingExtraError: matplotlib is not installed.
        CheckpointError: a file cannot be written.
    """
    out, found = Path(out), figures(results, reference)
    pictures = {SCORES: _scores(found), CURVES: _curves(results, found)}
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


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError('drawing a comparison needs matplotlib: pip install "frozenlm[plots]"') from error
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Any) -> bytes:
    from io import BytesIO

    held = BytesIO()
    figure.savefig(held, format="png")
    return held.getvalue()


def _scores(found: Sequence[MethodFigures]) -> bytes:
    """Mean score against the share of parameters that is trained."""
    figure = _figure(8, 5)
    axes = figure.add_subplot()
    for one in found:
        if one.mean is None:
            continue
        if not one.share:
            axes.axhline(100 * one.mean, linestyle=":", color="grey")
            axes.annotate(one.method, (1, 100 * one.mean), xycoords=("axes fraction", "data"), ha="right", size=8)
            continue
        axes.errorbar(100 * one.share, 100 * one.mean, yerr=100 * (one.spread or 0), fmt="o", capsize=3)
        axes.annotate(one.method, (100 * one.share, 100 * one.mean), xytext=(5, 4), textcoords="offset points", size=8)
    axes.set_xscale("log")
    axes.set_xlabel("trained, % of the LM's parameters")
    axes.set_ylabel("mean over tasks, %")
    axes.grid(alpha=0.25)
    return _png(figure)


def _curves(results: Sequence[Result], found: Sequence[MethodFigures]) -> bytes:
    """Dev score against steps."""
    figure = _figure(8, 5)
    axes = figure.add_subplot()
    for one in found:
        curve = curves(results, one.method)
        if curve:
            axes.plot(list(curve), [100 * score for score in curve.values()], marker=".", label=one.method)
    axes.set_xlabel("step")
    axes.set_ylabel("dev score, mean over tasks, %")
    axes.grid(alpha=0.25)
    if axes.lines:
        figure.legend(loc="outside right center", fontsize=8)
    return _png(figure)


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
