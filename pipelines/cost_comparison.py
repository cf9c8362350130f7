"""What the methods of a comparison cost, one line a method: each as its own config on the first task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from pipelines.config import MethodComparison
from pipelines.cost_types import Assumed
from pipelines.cost_words import said, short

KEYS = ("trained_parameters", "parameter_ratio", "flops_per_input", "flops_ratio_to_one_pass", "not_counted")


def comparison_cost(
    config: MethodComparison, cost: Callable[..., dict[str, Any]], assumed: Assumed | None
) -> dict[str, Any]:
    """Of every method what `cost` (`pipelines.cost`) says of it alone, with what is assumed there.

    Returns:
        kind; lm_parameters and flops_one_pass, of the frozen LM or encoder; assumptions; methods: of each its name and
        kind, trained_parameters, parameter_ratio, flops_per_input, flops_ratio_to_one_pass, not_counted.

    Raises:
        ConfigError, CheckpointError: as `cost`.
    """
    methods: list[dict[str, Any]] = []
    found: dict[str, Any] = {}
    for method in config.methods:
        found = cost(config.one(method, config.tasks[0], 0), assumed)
        methods.append({"name": method.name, "kind": method.kind} | {key: found[key] for key in KEYS})
    first = {key: found[key] for key in ("lm_parameters", "flops_one_pass")}
    common = {
        key: found["assumptions"][key] for key in ("input_tokens", "answer_tokens") if key in found["assumptions"]
    }
    return {"kind": config.kind, **first, "methods": methods, "assumptions": common}


def methods_table(found: dict[str, Any], *, title: str | None = None) -> Group:
    """What `comparison_cost` returns, for the eye."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    for heading in ("method", "trained", "of the LM", "FLOPs an input", "passes"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for one in found["methods"]:
        share, passes = f"{100 * one['parameter_ratio']:.3g}%", f"{one['flops_ratio_to_one_pass']:.3f}"
        table.add_row(one["name"], short(one["trained_parameters"]), share, short(one["flops_per_input"]), passes)
    table.add_section()
    table.add_row("the frozen model alone", short(found["lm_parameters"]), "", short(found["flops_one_pass"]), "")
    missing = [
        Text(f"not counted: {one['name']}: {line}", style="yellow")
        for one in found["methods"]
        for line in one["not_counted"]
    ]
    return Group(table, said(found["assumptions"]), *missing)
