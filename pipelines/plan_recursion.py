"""What training recursion would take: the prompts of the textual form, and both stages of the neural one."""

from __future__ import annotations

from math import prod

from frozenlm.footprint import step_bytes
from frozenlm.recursion import cost as flops
from frozenlm.recursion.footprint import connector_shapes, loss_bytes, row_activations
from pipelines import config as c
from pipelines.build_recursion import sizes
from pipelines.cost_reading import input_tokens
from pipelines.cost_recursion import second_pass_tokens, textual_flops
from pipelines.cost_types import Assumed
from pipelines.cost_words import short
from pipelines.errors import ConfigError
from pipelines.plan import Plan, PlannedLM, at_once, shown, soft_prompt


def textual(config: c.TextualRecursion, training: c.TextualTraining, assumed: Assumed) -> list[Plan]:
    """The prompt of pass 1, once on all questions and once for each fold of cross-fitting, and that of pass 2."""
    first, second = config.prompt, config.second_pass.prompt
    if first is None and second is None:
        raise ConfigError("training textual recursion needs at least one prompt block")
    lm, answer = PlannedLM.of(config.lm), config.packing.answer_reserve
    tokens = input_tokens(config, lm.shape, assumed)[0]
    plans = []
    if first is not None:
        runs = 1 if second is None else 1 + training.folds
        plans.append(soft_prompt(lm, first, training, tokens=tokens, answer=answer, runs=runs))
    if second is not None:
        loop = config.second_pass.training or training
        plans.append(soft_prompt(lm, second, loop, tokens=second_pass_tokens(config, tokens), answer=answer))
        drawn = short(textual_flops(config, lm.shape, assumed).candidates.total)
        plans[-1].not_counted.append(f"sampling candidates for training and dev questions: {drawn} FLOPs a question")
    return plans


def neural(config: c.NeuralRecursion, training: c.NeuralTraining, assumed: Assumed) -> list[Plan]:
    """The connector and the prompt of the last pass, in one loop."""
    lm, answer = PlannedLM.of(config.lm), config.packing.answer_reserve
    tokens = input_tokens(config, lm.shape, assumed)[0]
    return [_connector(config, lm, config.connector.name, training, config.prompt, tokens, answer)]


def pretraining(config: c.NeuralRecursion) -> list[Plan]:
    """The connector as a language model, on blocks of which every token but the first is predicted."""
    block = config.pretraining
    if block is None:
        raise ConfigError("this config has no pretraining block; name the text to pretrain the connector on")
    return [_connector(config, PlannedLM.of(config.lm), block.name, block, None, 1, block.length)]


def _connector(
    config: c.NeuralRecursion,
    lm: PlannedLM,
    name: str,
    loop: c.Loop,
    prompt: c.LastPassPrompt | None,
    tokens: int,
    answer: int,
) -> Plan:
    shape, made = lm.shape, sizes(config.connector)
    if shape.kind != "decoder":
        raise ConfigError("neural recursion needs a decoder-only LM")
    state_size, soft = shape.head // (2 * shape.vocab_size), prompt.length if prompt is not None else 0
    trained = connector_shapes(state_size, shape.hidden_size, made)
    trained += [(soft, shape.hidden_size)] if prompt is not None else []
    rows, read = at_once(loop), tokens + answer - 1
    kept = row_activations(lm.config, made, dtype=lm.dtype, tokens=read, soft_tokens=soft)
    ends = loss_bytes(rows * answer, state_size=state_size, vocab_size=shape.vocab_size, itemsize=lm.dtype.itemsize)
    cached = config.first_pass_cache.kind != "off"
    row = flops.trained_row(shape, made, tokens=tokens, answer_tokens=answer, soft_tokens=soft, first_pass=not cached)
    memory = step_bytes(frozen=lm.bytes, trained=trained, optimizer=loop.optimizer, activations=rows * kept + ends)
    assumptions = {"input_tokens": tokens, "answer_tokens": answer, "passes": made.passes, "first_pass_kept": cached}
    once = f"pass 1, once a row: {short(shape.body.at(read))} FLOPs"
    parameters = sum(prod(one) for one in trained)
    return Plan(
        name if prompt is None else f"{name}, {prompt.name}",
        parameters,
        shape.parameters,
        shown(lm.dtype),
        loop,
        rows,
        row,
        memory,
        assumptions,
        not_counted=[once] if cached else [],
    )
