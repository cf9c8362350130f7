"""What a comparison of methods would train, one line a method: a run on the first task, and how many runs there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table

from pipelines.config import MethodComparison
from pipelines.cost_types import Assumed
from pipelines.cost_words import said, short
from pipelines.errors import ConfigError

KEYS = ("trained_parameters", "parameter_ratio", "memory", "not_counted", "stages")


def comparison_plan(
    config: MethodComparison, describe: Callable[..., dict[str, Any]], assumed: Assumed | None = None
) -> dict[str, Any]:
    """Of every method that is trained what `pipelines.dry_run.describe` says of a run of it.

    Returns:
        kind, lm_parameters, dtype, assumptions, flops of all runs; methods: of each its name and kind,
        trained_parameters, parameter_ratio, memory, stages, flops_per_run, runs (a task and a seed each, and one
        a task for each further learning rate), flops of all of these.

    Raises:
        ConfigError: no method is trained; and CheckpointError, as `pipelines.dry_run.describe`.
    """
    trained = [method for method in config.methods if method.trains]
    if not trained:
        raise ConfigError("no method of this comparison is trained; there is nothing to plan")
    methods: list[dict[str, Any]] = []
    found: dict[str, Any] = {}
    for method in trained:
        found = describe(config.one(method, config.tasks[0], 0), assumed)
        runs = (config.seeds + len(method.learning_rates) - 1) * len(config.tasks)
        about = {"name": method.name, "kind": method.kind, "runs": runs}
        about |= {"flops_per_run": found["flops"], "flops": runs * found["flops"]}
        methods.append(about | {key: found[key] for key in KEYS})
    common = {
        key: found["assumptions"][key] for key in ("input_tokens", "answer_tokens") if key in found["assumptions"]
    }
    return {
        "kind": config.kind,
        "lm_parameters": found["lm_parameters"],
        "dtype": found["dtype"],
        "flops": sum(one["flops"] for one in methods),
        "methods": methods,
        "assumptions": common,
    }


def planned_methods_table(plan: dict[str, Any]) -> Group:
    """What `comparison_plan` returns, for the eye."""
    title = f"would compare, around {plan['lm_parameters']:,} frozen parameters in {plan['dtype']}:"
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    for heading in ("method", "trained", "of the LM", "memory", "activations", "FLOPs a run", "runs"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for one in plan["methods"]:
        held = [f"{short(one['memory'][part])}B" for part in ("total", "activations")]
        share = f"{100 * one['parameter_ratio']:.3g}%"
        numbers = short(one["trained_parameters"]), share, *held, short(one["flops_per_run"]), str(one["runs"])
        table.add_row(one["name"], *numbers)
    table.add_section()
    table.add_row("in all", "", "", "", "", short(plan["flops"]), str(sum(one["runs"] for one in plan["methods"])))
    return Group(table, said(plan["assumptions"] | {"activations": "estimated, at the longest row"}))
