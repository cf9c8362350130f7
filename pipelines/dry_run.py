"""`frozenlm train --dry-run`, `frozenlm pretrain --dry-run`: what a training would train, hold in memory and compute,
without loading a model.

Weights and optimizer state are counted, activations estimated (`frozenlm.footprint`) at the longest row that the config
allows: a full window and an answer as long as its reserve. How many tokens passages and questions have is assumed as in
`frozenlm cost` (`pipelines.cost_types`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from frozenlm import cost as flops
from frozenlm.architectures import meta_model
from frozenlm.footprint import encoder_activations, prompt_activations, step_bytes, weight_bytes
from frozenlm.shapes import ModelShape
from pipelines import config as c
from pipelines.config_prompting import NOTHING_TO_TRAIN
from pipelines.cost import cost
from pipelines.cost_reading import input_tokens
from pipelines.cost_types import SPECIAL, Assumed
from pipelines.cost_words import said, short
from pipelines.errors import ConfigError
from pipelines.model_sizes import lm_dtype, model_config
from pipelines.plan import Plan, PlannedLM, at_once, pretrained_prompt, shown, soft_prompt
from pipelines.plan_comparison import comparison_plan, planned_methods_table
from pipelines.plan_deltas import tuned_encoder, tuned_lm
from pipelines.plan_prompting import learned_prompt
from pipelines.plan_recursion import neural, pretraining, textual


def describe(config: Any, assumed: Assumed | None = None, *, pretrain: bool = False) -> dict[str, Any]:
    """The plan of a training, or of a pretraining, as JSON values.

    Returns:
        kind, module, trained_parameters, lm_parameters, parameter_ratio, dtype, flops, memory (bytes: frozen, trained,
        gradients, optimizer, activations, total; of the run that takes most), assumptions and not_counted of all of it;
        stages: of each module that is trained its runs, steps, batch_size, rows_at_once, flops_per_step and the like.
        Where there is one, what it says stands beside the others too.

    Raises:
        ConfigError: nothing to train in this config, or a model that is not at hand (`pipelines.model_sizes`).
        CheckpointError: a model folder whose config.json is missing or damaged.
    """
    if isinstance(config, c.MethodComparison) and not pretrain:
        return comparison_plan(config, describe, assumed)
    plans = _pretrained(config) if pretrain else _trained(config, assumed or Assumed())
    fullest = max(plans, key=lambda plan: plan.memory.total)
    trained: dict[str, int] = {}
    for plan in plans:
        trained[plan.module] = max(plan.trained_parameters, trained.get(plan.module, 0))
    numbers, lm = sum(trained.values()), fullest.lm_parameters
    alone = plans[0].record() if len(plans) == 1 else {}
    return alone | {
        "kind": config.kind,
        "module": ", ".join(trained),
        "trained_parameters": numbers,
        "lm_parameters": lm,
        "parameter_ratio": numbers / lm if lm else None,
        "dtype": fullest.dtype,
        "flops": sum(plan.flops for plan in plans),
        "memory": fullest.record()["memory"],
        "assumptions": fullest.assumptions,
        "not_counted": [line for plan in plans for line in plan.not_counted],
        "stages": [plan.record() for plan in plans],
    }


def _trained(config: Any, assumed: Assumed) -> list[Plan]:
    training = getattr(config, "training", None)
    if isinstance(config, c.PromptingJob) and not config.prompting.learns:
        raise ConfigError(NOTHING_TO_TRAIN)
    if training is None:
        raise ConfigError(f"this config of kind {config.kind} has no training block; there is nothing to train")
    function = PLANS.get(config.kind)
    if function is None:
        raise ConfigError(f"no plan for training a config of kind {config.kind}; there is one for {', '.join(PLANS)}")
    return function(config, training, assumed)


def _pretrained(config: Any) -> list[Plan]:
    if isinstance(config, c.Multitask):
        return pretrained_prompt(config)
    if not isinstance(config, c.NeuralRecursion):
        raise ConfigError(
            f"a config of kind {config.kind} has nothing to pretrain; neural_recursion has a connector, multitask a "
            "prompt"
        )
    return pretraining(config)


def _reader(config: c.FrozenReader | c.ClosedBook, training: c.PromptTraining, assumed: Assumed) -> list[Plan]:
    block = config.prompt
    if block is None:
        raise ConfigError("training a reader needs both a prompt and a training block")
    lm = PlannedLM.of(config.lm)
    tokens = input_tokens(config, lm.shape, assumed)[0]
    return [soft_prompt(lm, block, training, tokens=tokens, answer=config.packing.answer_reserve)]


def _mixture(config: c.Multitask, training: c.TaskTraining, assumed: Assumed) -> list[Plan]:
    """A prompt method or a delta on tasks: every input as long as the config allows."""
    if config.delta is not None:
        return tuned_lm(config, config.delta, training, assumed)
    block = config.prompt
    if block is None:
        raise ConfigError(
            "training on tasks needs a prompt or a delta, and a training block; there is nothing to train"
        )
    planned = PlannedLM.of(config.lm)
    lm = planned.shape
    tokens = config.input.max_tokens if assumed.input_tokens is None else assumed.input_tokens
    answer = config.input.answer_tokens
    counted = cost(config, Assumed(input_tokens=tokens, answer_tokens=1))
    trained = counted["trained_parameters"]
    remembered = block.position == "suffix" and lm.kind == "decoder"
    rows = at_once(training)
    kept = prompt_activations(
        planned.config,
        dtype=planned.dtype,
        tokens=tokens,
        answer_tokens=answer,
        length=block.length,
        remembered=remembered,
    )
    frozen, encoding = planned.bytes, 0
    if isinstance(block, c.InputDependent | c.IDPG) and config.encoder is not None:
        reader = model_config(config.encoder, "encoder")
        held = lm_dtype(config.encoder, reader)
        frozen += weight_bytes(meta_model(reader, "encoder", dtype=held))
        encoding = counted["components"]["encoder"]["flops"] + counted["components"]["prompt"]["flops"]
        if isinstance(block, c.InputDependent) and block.encoder_prompt:
            read = counted["assumptions"]["encoder_tokens"] + block.encoder_prompt
            kept += encoder_activations(reader, dtype=held, tokens=read, use="encoder")
            encoding *= 2  # the encoder prompt's gradient goes back through all of it
    memory = step_bytes(frozen=frozen, trained=[(trained,)], optimizer=training.optimizer, activations=rows * kept)
    whole = flops.score(lm, tokens + block.length, answer).total
    again = flops.score(lm, tokens, answer).reading if remembered else 0
    assumptions = {"input_tokens": tokens, "answer_tokens": answer, "context_read_once": remembered}
    row_flops = again + 2 * (whole - again) + encoding
    dtype = shown(planned.dtype)
    return [Plan(block.name, trained, lm.parameters, dtype, training, rows, row_flops, memory, assumptions)]


def _reranker(config: c.RerankerJob, training: c.RerankerTraining, assumed: Assumed) -> list[Plan]:
    block = config.reranker
    if not isinstance(block, c.CrossEncoder) or block.checkpoint is None:
        raise ConfigError("training needs reranker.kind cross_encoder with a checkpoint (the name to save under)")
    found = model_config(block, "reranker")
    model = meta_model(found, "cross_encoder", dtype=torch.float32)
    shape = ModelShape.of_encoder(model)
    tokens = min(assumed.question_tokens + assumed.passage_tokens + SPECIAL, block.max_length)
    rows = at_once(training) * (1 + training.negatives)
    dtype = torch.bfloat16 if training.precision == "bf16" else torch.float32
    memory = step_bytes(
        frozen=0,
        trained=[tuple(parameter.shape) for parameter in model.parameters()],
        optimizer=training.optimizer,
        activations=rows * encoder_activations(found, dtype=dtype, tokens=tokens),
    )
    row_flops = 3 * flops.encode(shape, tokens)  # back through trained weights costs twice what forth does
    assumptions = {"pair_tokens": tokens, "passages_a_question": 1 + training.negatives}
    numbers = shape.parameters
    return [Plan(block.checkpoint, numbers, None, shown(dtype), training, rows, row_flops, memory, assumptions)]


PLANS: dict[str, Callable[[Any, Any, Assumed], list[Plan]]] = {
    "reranker": _reranker,
    "frozen_reader": _reader,
    "closed_book": _reader,
    "textual_recursion": textual,
    "neural_recursion": neural,
    "multitask": _mixture,
    "classification": tuned_encoder,
    "prompting": learned_prompt,
}


def plan_table(plan: dict[str, Any]) -> Group:
    """What `describe` returns, for the eye."""
    if "methods" in plan:
        return planned_methods_table(plan)
    title = f"would train: {plan['module']}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE, show_header=False)
    share = f" ({100 * plan['parameter_ratio']:.3g}% of the LM)" if plan["parameter_ratio"] else ""
    table.add_row("trained parameters", f"{plan['trained_parameters']:,}{share}")
    if plan["lm_parameters"]:
        table.add_row("LM", f"{plan['lm_parameters']:,} parameters, {plan['dtype']}")
    for stage in plan["stages"]:
        named = f"{stage['phase'] or stage['module']}: " if len(plan["stages"]) > 1 else ""
        runs = f", {stage['runs']} runs" if stage["runs"] > 1 else ""
        at_once = f"(rows at once: {stage['rows_at_once']}){runs}"
        table.add_row(f"{named}steps x batch", f"{stage['steps']:,} x {stage['batch_size']} {at_once}")
        table.add_row(f"{named}FLOPs", f"{short(stage['flops_per_step'])} a step, {short(stage['flops'])} in all")
    table.add_section()
    for name, size in plan["memory"].items():
        estimate = " (estimate)" if name == "activations" and size else ""
        table.add_row(f"memory: {name}", f"{short(size) if size else 0}B{estimate}")
    missing = [Text(f"not counted: {line}", style="yellow") for line in plan["not_counted"]]
    return Group(table, said(plan["assumptions"]), *missing)
