"""`frozenlm cost`: parameters of what is trained and of the LM, and the FLOPs of one input by component.

Nothing is loaded, read or downloaded but a model's config.json (`pipelines.model_sizes`), and the dev figures of a
tuned threshold. How many tokens a question, a passage and an answer have is assumed, and what was assumed stands in the
result; FLOPs are counted as `frozenlm.shapes` says. "One pass" is the frozen LM alone, reading the same text and
answering once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from pipelines import config as c
from pipelines import cost_reading, cost_recursion, cost_retrieval, cost_tasks
from pipelines.cost_classification import classification
from pipelines.cost_comparison import comparison_cost, methods_table
from pipelines.cost_prompting import prompting
from pipelines.cost_types import Assumed, Cost
from pipelines.cost_words import said, short
from pipelines.errors import ConfigError


def cost(config: Any, assumed: Assumed | None = None) -> dict[str, Any]:
    """Parameters and FLOPs of a config's pipeline for one input.

    Returns:
        kind, trained_parameters, lm_parameters, lm_embedding_parameters, parameter_ratio, flops_per_input,
        flops_one_pass, flops_ratio_to_one_pass, flops_spared_input, second_pass_share, flops_mean, components,
        assumptions, not_counted. Of recursion for unsure inputs only, flops_per_input is what such an input costs,
        flops_spared_input what another one does, and flops_mean what they cost with the share that dev had. Of a
        comparison of methods what `pipelines.cost_comparison` says.

    Raises:
        ConfigError: a model that is not at hand and whose architecture the config does not give; no room for the input.
        CheckpointError: a model folder whose config.json is missing or damaged.
    """
    if isinstance(config, c.MethodComparison):
        return comparison_cost(config, cost, assumed)
    function = COSTS.get(config.kind)
    if function is None:
        raise ConfigError(f"the cost of a config of kind {config.kind} is not known; it is of {', '.join(COSTS)}")
    return function(config, assumed or Assumed()).record(config.kind)


COSTS: dict[str, Callable[[Any, Assumed], Cost]] = {
    "retrieval": cost_retrieval.retrieval,
    "reranker": cost_retrieval.reranker,
    "frozen_reader": cost_reading.reader,
    "closed_book": cost_reading.reader,
    "textual_recursion": cost_recursion.textual,
    "neural_recursion": cost_recursion.neural,
    "multitask": cost_tasks.multitask,
    "classification": classification,
    "prompting": prompting,
}


def cost_table(found: dict[str, Any], *, title: str | None = None) -> Group:
    """What `cost` returns, for the eye: one component a line, then the sums and what they rest on."""
    if "methods" in found:
        return methods_table(found, title=title)
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    for heading in ("component", "parameters", "trained", "FLOPs an input", "share"):
        table.add_column(heading, justify="left" if heading == "component" else "right")
    total = found["flops_per_input"]
    for name, part in found["components"].items():
        share = f"{100 * part['flops'] / total:.1f}%" if total else "-"
        numbers = (short(part["parameters"]), short(part["trained_parameters"]), short(part["flops"]))
        table.add_row(name.replace("_", " "), *numbers, share)
    table.add_section()
    everything = sum(part["parameters"] for part in found["components"].values())
    table.add_row("in all", short(everything), short(found["trained_parameters"]), short(total), "")
    if found["flops_spared_input"] is not None:
        spared, share, mean = found["flops_spared_input"], found["second_pass_share"], found["flops_mean"]
        table.add_row("an input that is spared", "", "", short(spared), "")
        if mean is not None:
            table.add_row(f"mean ({100 * share:.1f}% recurse, on dev)", "", "", short(mean), "")
    if found["flops_one_pass"]:
        ratios = f"{100 * found['parameter_ratio']:.3g}% of the LM", f"{found['flops_ratio_to_one_pass']:.3f} passes"
        table.add_row("beside the LM alone", "", *ratios, "")
    missing = [Text(f"not counted: {one}", style="yellow") for one in found["not_counted"]]
    return Group(table, said(found["assumptions"]), *missing)
