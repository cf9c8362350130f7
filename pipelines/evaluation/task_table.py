"""Figures of tasks as tables for people: one line a task and one for their mean, in percent with 95% intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

_HEADINGS = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "matthews": "Matthews",
    "em": "EM",
    "f1": "F1",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "bleu": "BLEU",
}
_MEANS = {"mean": "mean", "mean_seen": "mean of those trained on", "mean_unseen": "mean of the others"}


def task_table(metrics: Mapping[str, Any], *, title: str | None = None) -> Table:
    """The content of one `metrics.json` of `evaluate_tasks`."""
    table = Table(title=title or "95% intervals in brackets", caption=_caption(metrics))
    for heading in ("task", "n", "metric", "score", "others", "majority"):
        table.add_column(heading, justify="right" if heading in ("n", "score", "majority") else "left")
    for name, task in metrics["tasks"].items():
        others = [f"{_HEADINGS[k]} {_percent(v)}" for k, v in task["figures"].items() if k != task["metric"]]
        majority = task.get("majority_accuracy")
        table.add_row(
            Text(f"{name} (not trained on)" if name in metrics.get("unseen", ()) else name),
            f"{task['n']:,}",
            _HEADINGS[task["metric"]],
            _with_interval(task["score"], task["ci95"]),
            ", ".join(others),
            "-" if majority is None else _percent(majority),
        )
    table.add_section()
    for key, name in _MEANS.items():
        if (mean := metrics.get(key)) is not None:
            rows = f"{metrics['n']:,}" if key == "mean" else ""
            table.add_row(name, rows, "", _with_interval(mean["score"], mean["ci95"]), "", "", style="bold")
    return table


def task_comparison_table(comparison: Mapping[str, Any]) -> Table:
    """The result of `pipelines.evaluation.task_figures.compare_tasks`."""
    table = Table(
        title=Text(f"a = {comparison['a']}\nb = {comparison['b']}\n{comparison['n']:,} rows"),
        title_justify="left",
        caption="interval: paired bootstrap within tasks, 95%; p: McNemar's test for accuracy and EM, else bootstrap",
    )
    for heading in ("task", "metric", "a", "b", "b - a", "interval", "only a / only b", "p"):
        table.add_column(heading, justify="left" if heading in ("task", "metric") else "right")
    for name, found in comparison["tasks"].items():
        table.add_row(Text(name), _HEADINGS[found["metric"]], *_cells(found))
    table.add_section()
    table.add_row("mean", "", *_cells(comparison["mean"]), style="bold")
    return table


def _cells(found: Mapping[str, Any]) -> list[str]:
    p = found.get("p_mcnemar", found["p_bootstrap"])
    return [
        _percent(found["a"]),
        _percent(found["b"]),
        f"{100 * found['difference']:+.1f}",
        f"[{100 * found['low']:+.1f}, {100 * found['high']:+.1f}]",
        f"{found['only_a']} / {found['only_b']}" if "only_a" in found else "-",
        f"{p:.4f}" if p >= 0.0001 else "< 0.0001",
    ]


def _caption(metrics: Mapping[str, Any]) -> str:
    parts = [
        f"{name} weights changed: {metrics[f'{key}_weights_changed']} of {metrics[f'{key}_weights']}"
        for key, name in (("lm", "LM"), ("encoder", "encoder"))
        if f"{key}_weights" in metrics
    ]
    if metrics["inputs_cut"]:
        parts.append(f"{metrics['inputs_cut']:,} inputs cut to fit")
    if metrics.get("encoder_inputs_cut"):
        parts.append(f"{metrics['encoder_inputs_cut']:,} cut for the encoder")
    if metrics.get("demonstrations_dropped"):
        parts.append(f"{metrics['demonstrations_dropped']:,} demonstrations dropped")
    if metrics.get("rows_per_second"):
        parts.append(f"{metrics['rows_per_second']:.1f} rows/s")
    return "; ".join(parts)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _with_interval(share: float, interval: Sequence[float] | None) -> str:
    return _percent(share) + (f" [{_percent(interval[0])}, {_percent(interval[1])}]" if interval else "")
