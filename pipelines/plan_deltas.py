"""What training a delta would take: around the LM of a mixture of tasks, or beside a head around an encoder.

Bytes that are kept and FLOPs are those of the largest micro-batch, whose rows are all as long as the config allows.
DiffPruning (arXiv 2012.07463, section 3.2) is trained twice: with gates, and pruned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from frozenlm.architectures import Use, meta_model
from frozenlm.deltas.footprint import Run, kept_bytes, read_and_answer, read_and_label, step_flops
from frozenlm.deltas.outline import META, Subset, places_of
from frozenlm.footprint import step_bytes, weight_bytes
from frozenlm.shapes import ModelShape, parameter_count
from frozenlm.task_heads import ClassificationHead, causal_first
from pipelines import config as c
from pipelines.config_deltas import PartialLayers
from pipelines.cost_classification import label_names, text_tokens
from pipelines.cost_deltas import delta_sizes, outlined_delta
from pipelines.cost_tasks import check_room
from pipelines.cost_types import Assumed
from pipelines.cost_words import short
from pipelines.errors import ConfigError
from pipelines.model_sizes import lm_dtype, model_config
from pipelines.plan import Plan, PlannedLM, at_once, shown


@dataclass(frozen=True)
class _Host:
    """A frozen model, without weights, and how a step runs it.

    run: (the head, or None) -> a step's forward pass
    """

    config: Any
    model: Any
    use: Use
    dtype: torch.dtype
    name: str
    assumptions: dict[str, Any]
    run: Callable[[nn.Module | None], Run]
    make_head: Callable[[], nn.Module | None] = lambda: None


def tuned_lm(config: c.Multitask, block: c.DeltaBlock, training: c.Loop, assumed: Assumed) -> list[Plan]:
    """A delta on tasks."""
    lm, answer = PlannedLM.of(config.lm), config.input.answer_tokens
    check_room(config, lm.shape)
    tokens = config.input.max_tokens if assumed.input_tokens is None else assumed.input_tokens
    sizes = {"rows": at_once(training), "tokens": tokens, "answer_tokens": answer}
    assumptions = {"input_tokens": tokens, "answer_tokens": answer}
    host = _Host(
        *(lm.config, lm.model, "lm", lm.dtype, block.name, assumptions), run=lambda _: partial(read_and_answer, **sizes)
    )
    return _phases(host, block, training)


def tuned_encoder(config: c.Classification, training: c.Loop, assumed: Assumed) -> list[Plan]:
    """A head, with a delta or alone."""
    found = model_config(config.encoder, "encoder")
    dtype = lm_dtype(config.encoder, found)
    model = meta_model(found, "encoder", dtype=dtype)
    check_pool(config, model)
    tokens, labels = text_tokens(config, ModelShape.of_encoder(model), assumed.input_tokens), label_names(config)

    def make_head() -> nn.Module:
        with META:
            return ClassificationHead(labels, model.config.hidden_size, pool=config.pool)

    host = _Host(
        *(found, model, "encoder", dtype, config.name, {"input_tokens": tokens, "labels": len(labels)}),
        run=lambda head: partial(read_and_label, rows=at_once(training), tokens=tokens, head=head),
        make_head=make_head,
    )
    return _phases(host, config.delta, training)


def check_pool(config: c.Classification, model: Any) -> None:
    """As a head's `create` does, of a model without weights. An attention that does not go through transformers'
    interface tells nothing before it is run.

    Raises:
        ConfigError: `pool: first` on a causal model.
    """
    if config.pool != "first":
        return
    try:
        places = places_of(model)
    except ConfigError:
        return
    if set(places) == {"decoder"}:
        raise causal_first(type(model).__name__)


def _phases(host: _Host, block: c.DeltaBlock | None, loop: c.Loop) -> list[Plan]:
    if block is None:
        return [_plan(host, None, loop)]
    sizes = delta_sizes(block, host.model)
    delta = outlined_delta(block, host.model)
    if not isinstance(block, c.DiffPruning):
        return [_plan(host, delta, loop, left_out=_of_lower_states(block))]
    first, pruned = _plan(host, delta, loop, phase="gated"), Subset(delta.flat, sizes.served)
    again = loop.model_copy(update={"steps": max(1, round(block.retrain * loop.steps))})
    return [first, _plan(host, pruned, again, phase="pruned")]


def _of_lower_states(block: c.DeltaBlock) -> list[str]:
    if not isinstance(block, PartialLayers) or not block.lower_states.kept:
        return []
    budget = f"{short(block.lower_states.byte_budget)}B"
    return [
        f"states below, kept: at most {budget} of memory; the FLOPs below that they save from a row's second time on"
    ]


def _plan(host: _Host, delta: Any, loop: c.Loop, *, phase: str = "", left_out: Sequence[str] = ()) -> Plan:
    head = host.make_head()
    shapes = [tuple(p.shape) for part in (delta, head) if part is not None for p in part.parameters()]
    rows = at_once(loop)
    step = step_flops(host.model, host.run(head), delta=delta)
    kept = kept_bytes(host.config, host.use, host.run(head), dtype=host.dtype, delta=delta, head=head)
    memory = step_bytes(frozen=weight_bytes(host.model), trained=shapes, optimizer=loop.optimizer, activations=kept)
    return Plan(
        module=host.name,
        trained_parameters=sum(torch.Size(shape).numel() for shape in shapes),
        lm_parameters=parameter_count(host.model),
        dtype=shown(host.dtype),
        loop=loop,
        rows=rows,
        row_flops=step // rows,
        memory=memory,
        assumptions=host.assumptions,
        not_counted=list(left_out),
        phase=phase,
    )
