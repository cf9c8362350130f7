"""`frozenlm train --dry-run`: what a training run would train, hold in memory and compute, without loading a model.

Weights and optimizer state are counted, activations estimated (`frozenlm.footprint`) at the longest row that the config
allows: a full window and an answer as long as its reserve. How many tokens passages and questions have is assumed as in
`pipelines.cost`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich import box
from rich.console import Group
from rich.table import Table

from frozenlm import cost as flops
from frozenlm.architectures import meta_model
from frozenlm.footprint import StepBytes, encoder_activations, prompt_activations, step_bytes, weight_bytes
from frozenlm.shapes import ModelShape
from pipelines import config as c
from pipelines.cost import SPECIAL, Assumed, cost, input_tokens, said, short
from pipelines.errors import ConfigError
from pipelines.model_sizes import lm_dtype, model_config


@dataclass(frozen=True)
class Plan:
    """One training run.

    module: the name it is saved under
    rows: that run at once; forward and backward FLOPs of one of them: `row_flops`
    """

    module: str
    trained_parameters: int
    lm_parameters: int | None
    dtype: str
    rows: int
    row_flops: int
    memory: StepBytes
    assumptions: dict[str, Any]


def describe(config: Any, assumed: Assumed | None = None) -> dict[str, Any]:
    """The plan of a training run as JSON values.

    Returns:
        kind, module, trained_parameters, lm_parameters, parameter_ratio, dtype, steps, batch_size, rows_at_once,
        flops_per_step, flops, memory (bytes: frozen, trained, gradients, optimizer, activations, total), assumptions.

    Raises:
        ConfigError: nothing to train in this config, or a model that is not at hand (`pipelines.model_sizes`).
        CheckpointError: a model folder whose config.json is missing or damaged.
    """
    training = getattr(config, "training", None)
    if training is None:
        raise ConfigError(f"this config of kind {config.kind} has no training block; there is nothing to train")
    function = PLANS.get(config.kind)
    if function is None:
        raise ConfigError(f"no plan for training a config of kind {config.kind}; there is one for {', '.join(PLANS)}")
    plan = function(config, training, assumed or Assumed())
    a_batch = plan.rows * training.gradient_accumulation * plan.row_flops
    return {
        "kind": config.kind,
        "module": plan.module,
        "trained_parameters": plan.trained_parameters,
        "lm_parameters": plan.lm_parameters,
        "parameter_ratio": plan.trained_parameters / plan.lm_parameters if plan.lm_parameters else None,
        "dtype": plan.dtype,
        "steps": training.steps,
        "batch_size": training.batch_size,
        "rows_at_once": plan.rows,
        "flops_per_step": a_batch,
        "flops": training.steps * a_batch,
        "memory": asdict(plan.memory) | {"total": plan.memory.total},
        "assumptions": plan.assumptions,
    }


def _prompt(config: c.FrozenReader | c.ClosedBook, training: c.PromptTraining, assumed: Assumed) -> Plan:
    block = config.prompt
    if block is None:
        raise ConfigError("training a reader needs both a prompt and a training block")
    found = model_config(config.lm, "lm")
    dtype = lm_dtype(config.lm, found)
    model = meta_model(found, "lm", dtype=dtype)
    lm = ModelShape.of_lm(model)
    tokens, answer = input_tokens(config, lm, assumed)[0], config.packing.answer_reserve
    remembered = block.position == "suffix" and lm.kind == "decoder"
    rows = _at_once(training)
    kept = prompt_activations(
        found, dtype=dtype, tokens=tokens, answer_tokens=answer, length=block.length, remembered=remembered
    )
    memory = step_bytes(
        frozen=weight_bytes(model),
        trained=[(block.length, lm.hidden_size)],
        optimizer=training.optimizer,
        activations=rows * kept,
    )
    whole = flops.score(lm, tokens + block.length, answer).total
    read = flops.score(lm, tokens, answer).reading if remembered else 0
    return Plan(
        block.name,
        block.length * lm.hidden_size,
        lm.parameters,
        str(dtype).removeprefix("torch."),
        rows,
        read + 2 * (whole - read),  # back through a frozen LM costs as much as forth
        memory,
        {"input_tokens": tokens, "answer_tokens": answer, "context_read_once": remembered},
    )


def _mixture(config: c.Multitask, training: c.TaskTraining, assumed: Assumed) -> Plan:
    """A prompt method on tasks: every input as long as the config allows."""
    block = config.prompt
    if block is None:
        raise ConfigError("training on tasks needs both a prompt and a training block")
    found = model_config(config.lm, "lm")
    dtype = lm_dtype(config.lm, found)
    model = meta_model(found, "lm", dtype=dtype)
    lm = ModelShape.of_lm(model)
    tokens = config.input.max_tokens if assumed.input_tokens is None else assumed.input_tokens
    answer = config.input.answer_tokens
    counted = cost(config, Assumed(input_tokens=tokens, answer_tokens=1))
    trained = counted["trained_parameters"]
    remembered = block.position == "suffix" and lm.kind == "decoder"
    rows = _at_once(training)
    kept = prompt_activations(
        found, dtype=dtype, tokens=tokens, answer_tokens=answer, length=block.length, remembered=remembered
    )
    frozen, encoding = weight_bytes(model), 0
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
    shown = str(dtype).removeprefix("torch.")
    return Plan(block.name, trained, lm.parameters, shown, rows, row_flops, memory, assumptions)


def _reranker(config: c.RerankerJob, training: c.RerankerTraining, assumed: Assumed) -> Plan:
    block = config.reranker
    if not isinstance(block, c.CrossEncoder) or block.checkpoint is None:
        raise ConfigError("training needs reranker.kind cross_encoder with a checkpoint (the name to save under)")
    found = model_config(block, "reranker")
    model = meta_model(found, "cross_encoder", dtype=torch.float32)
    shape = ModelShape.of_encoder(model)
    tokens = min(assumed.question_tokens + assumed.passage_tokens + SPECIAL, block.max_length)
    rows = _at_once(training) * (1 + training.negatives)
    dtype = torch.bfloat16 if training.precision == "bf16" else torch.float32
    memory = step_bytes(
        frozen=0,
        trained=[tuple(parameter.shape) for parameter in model.parameters()],
        optimizer=training.optimizer,
        activations=rows * encoder_activations(found, dtype=dtype, tokens=tokens),
    )
    return Plan(
        block.checkpoint,
        shape.parameters,
        None,
        str(dtype).removeprefix("torch."),
        rows,
        3 * flops.encode(shape, tokens),  # back through trained weights costs twice what forth does
        memory,
        {"pair_tokens": tokens, "passages_a_question": 1 + training.negatives},
    )


def _at_once(training: c.Loop) -> int:
    """Examples of the largest micro-batch."""
    return -(-training.batch_size // training.gradient_accumulation)


PLANS: dict[str, Callable[[Any, Any, Assumed], Plan]] = {
    "reranker": _reranker,
    "frozen_reader": _prompt,
    "closed_book": _prompt,
    "multitask": _mixture,
}


def plan_table(plan: dict[str, Any]) -> Group:
    """What `describe` returns, for the eye."""
    title = f"would train: {plan['module']}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE, show_header=False)
    share = f" ({100 * plan['parameter_ratio']:.3g}% of the LM)" if plan["parameter_ratio"] else ""
    table.add_row("trained parameters", f"{plan['trained_parameters']:,}{share}")
    if plan["lm_parameters"]:
        table.add_row("LM", f"{plan['lm_parameters']:,} parameters, {plan['dtype']}")
    table.add_row("steps x batch", f"{plan['steps']:,} x {plan['batch_size']} (rows at once: {plan['rows_at_once']})")
    table.add_row("FLOPs", f"{short(plan['flops_per_step'])} a step, {short(plan['flops'])} in all")
    table.add_section()
    for name, size in plan["memory"].items():
        table.add_row(f"memory: {name}", f"{short(size)}B" + (" (estimate)" if name == "activations" else ""))
    return Group(table, said(plan["assumptions"]))
