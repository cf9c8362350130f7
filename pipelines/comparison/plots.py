"""The two pictures of a comparison: score against trained parameters, and dev score against steps.

A method goes by its place in the table, a number, and by one marker and colour in both; names stand beside the axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

from pipelines.comparison.figures import MethodFigures, curves
from pipelines.comparison.results import Result
from pipelines.errors import MissingExtraError

SIZE = (11, 7.5)  # inches
MARKERS, LINES = "osD^vPX", ("-", "--", ":", "-.")
NUMBER = 8  # points, size of a method's number
ROOM = (16, 13)  # points across and down that a number takes


def scores_plot(found: Sequence[MethodFigures]) -> bytes:
    """A PNG: mean over tasks against the share of parameters that is trained; lines for what trains nothing.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure, axes = _figure()
    drawn = {number: one for number, one in enumerate(found, start=1) if one.mean is not None}
    handles, points = [], {}
    axes.set_xscale("log")
    for number, one in drawn.items():
        style, height = _style(number), 100 * (one.mean or 0)
        if one.share:
            style |= {"linestyle": "none"}
            axes.plot([100 * one.share], [height], markersize=6, zorder=3, **style)
            axes.errorbar([100 * one.share], [height], yerr=100 * (one.spread or 0), color=style["color"], alpha=0.4)
            points[number] = 100 * one.share
        else:
            style |= {"marker": ""}
            axes.axhline(height, linewidth=1, **style)
        handles.append(_handle(f"{number}  {one.method}  {height:.1f}", style))
    axes.set_xlabel("trained, % of the LM's parameters")
    axes.set_ylabel("mean over tasks, %")
    axes.grid(alpha=0.25)
    if handles:
        figure.legend(handles=handles, loc="outside right upper", fontsize=9)
    figure.draw_without_rendering()  # so that places are known
    left, right = axes.get_xlim()
    edge = left**0.03 * right**0.97
    _number(axes, {number: (points.get(number, edge), 100 * (one.mean or 0)) for number, one in drawn.items()})
    return _png(figure)


def curves_plot(results: Sequence[Result], found: Sequence[MethodFigures]) -> bytes:
    """A PNG: mean dev score against steps, of methods that have run on all tasks; the best at the end is named first.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure, axes = _figure()
    drawn: list[tuple[float, Any]] = []
    for number, one in enumerate(found, start=1):
        if curve := curves(results, one.method):
            heights = [100 * score for score in curve.values()]
            (line,) = axes.plot(
                list(curve), heights, label=f"{number}  {one.method}  {heights[-1]:.1f}", **_style(number)
            )
            drawn.append((heights[-1], line))
    axes.set_xlabel("step")
    axes.set_ylabel("dev score, mean over tasks, %")
    axes.grid(alpha=0.25)
    if drawn:
        handles = [line for _, line in sorted(drawn, key=lambda pair: -pair[0])]
        figure.legend(handles=handles, loc="outside right upper", fontsize=9, handlelength=4)
    return _png(figure)


def _style(number: int) -> dict[str, Any]:
    """A colour, marker and line of its own for each of the first 280 methods."""
    place = number - 1
    return {
        "color": f"C{place % 10}",
        "marker": MARKERS[place % len(MARKERS)],
        "linestyle": LINES[place // 10 % len(LINES)],
    }


def _number(axes: Any, points: dict[int, tuple[float, float]]) -> None:
    """Write each number near its point, where there is room: off other points, and off numbers already written."""
    scale = 72 / axes.figure.dpi  # pixels to points
    at = {number: tuple(scale * axes.transData.transform(point)) for number, point in points.items()}
    taken: list[tuple[float, float]] = list(at.values())
    rings = list(product((13, 22, 32, 43), range(0, 360, 30)))
    for number, (x, y) in at.items():
        moves = [(radius * math.cos(math.radians(a)), radius * math.sin(math.radians(a))) for radius, a in rings]
        crowd = [sum(abs(x + dx - u) < ROOM[0] and abs(y + dy - v) < ROOM[1] for u, v in taken) for dx, dy in moves]
        dx, dy = moves[crowd.index(min(crowd))]
        taken.append((x + dx, y + dy))
        axes.annotate(
            str(number),
            points[number],
            xytext=(dx, dy),
            textcoords="offset points",
            ha="center",
            va="center",
            size=NUMBER,
            arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": "grey"},
            bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": _style(number)["color"]},
        )


def _handle(label: str, style: dict[str, Any]) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], label=label, **style)


def _figure() -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError('drawing a comparison needs matplotlib: pip install "frozenlm[plots]"') from error
    figure = Figure(figsize=SIZE, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _png(figure: Any) -> bytes:
    from io import BytesIO

    held = BytesIO()
    figure.savefig(held, format="png")
    return held.getvalue()
