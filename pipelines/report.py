"""Figures as tables for people: shares in percent with their 95% intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

_HEADINGS = {
    "em": "EM",
    "f1": "F1",
    "subspan_em": "subspan EM",
    "recall_at_context": "recall@context",
    "ndcg@10": "nDCG@10",
    "mrr": "MRR",
}


def metrics_table(results: Mapping[str, Mapping[str, Any]], *, title: str | None = None) -> Table:
    """One row a run, one column a figure that any of them has.

    Args:
        results: name of the run -> content of its metrics.json.
    """
    table = Table(title=title or "95% intervals in brackets")
    table.add_column("run")
    cells = {name: _cells(metrics) for name, metrics in results.items()}
    headings = list(dict.fromkeys(heading for row in cells.values() for heading in row))
    for heading in headings:
        table.add_column(heading, justify="right")
    for name, row in cells.items():
        table.add_row(name, *(row.get(heading, "-") for heading in headings))
    return table


def comparison_table(comparison: Mapping[str, Any]) -> Table:
    """The result of `pipelines.evaluation.compare.compare`."""
    table = Table(
        title=Text(f"a = {comparison['a']}\nb = {comparison['b']}\n{comparison['n']:,} questions"),
        title_justify="left",
        caption="interval: paired bootstrap, 95%; p: McNemar's exact test for yes-or-no scores, else the bootstrap's",
    )
    for heading in ("score", "a", "b", "b - a", "interval", "only a / only b", "p"):
        table.add_column(heading, justify="left" if heading == "score" else "right")
    for name, score in comparison["scores"].items():
        wins = f"{score['only_a']} / {score['only_b']}" if "only_a" in score else "-"
        p = score.get("p_mcnemar", score["p_bootstrap"])
        table.add_row(
            _heading(name),
            _percent(score["a"]),
            _percent(score["b"]),
            f"{100 * score['difference']:+.1f}",
            f"[{100 * score['low']:+.1f}, {100 * score['high']:+.1f}]",
            wins,
            f"{p:.4f}" if p >= 0.0001 else "< 0.0001",
        )
    return table


def _cells(metrics: Mapping[str, Any]) -> dict[str, str]:
    cells = {"n": f"{metrics['n']:,}"}
    for name, heading in _HEADINGS.items():
        if metrics.get(name) is not None:
            cells[heading] = _with_interval(metrics[name], metrics["ci95"].get(name))
    if metrics.get("em_given_context") is not None:
        cells["EM / recall"] = f"{metrics['em_given_context']:.3f}"
    for k, value in metrics["recall_at"].items():
        if value is not None:
            cells[f"recall@{k}"] = _percent(value)
    total = sum(metrics["seconds"].values())
    cells["questions/s"] = f"{metrics['n'] / total:.1f}" if total else "-"
    if metrics.get("lm_weights_changed") is not None:
        cells["LM weights changed"] = f"{metrics['lm_weights_changed']} of {metrics['lm_weights']}"
    return cells


def _heading(name: str) -> str:
    base, _, k = name.partition("_at.")
    return f"{base.replace('_', ' ')}@{k}" if k else _HEADINGS.get(name, name)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _with_interval(share: float, interval: list[float] | None) -> str:
    return _percent(share) + (f" [{_percent(interval[0])}, {_percent(interval[1])}]" if interval else "")
