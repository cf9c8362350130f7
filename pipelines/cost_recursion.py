"""What both forms of recursion cost, by their config; the arithmetic is `frozenlm.recursion.cost`'s."""

from __future__ import annotations

from typing import Any

from frozenlm import cost as flops
from frozenlm.recursion import cost as recursion
from frozenlm.recursion.connector import Connector
from frozenlm.shapes import ModelShape
from pipelines import config as c
from pipelines import model_sizes
from pipelines.build_recursion import sizes, tuned_share
from pipelines.cost_reading import answered, input_tokens
from pipelines.cost_retrieval import passages
from pipelines.cost_types import Assumed, Component, Cost
from pipelines.errors import ConfigError

CANDIDATE_TOKENS = 6  # of one candidate and what parts it from the next; all samples different


def neural(config: c.NeuralRecursion, assumed: Assumed) -> Cost:
    """Of kind `neural_recursion`."""
    lm, beams = model_sizes.lm_shape(config.lm), config.generation.num_beams
    if lm.kind != "decoder":
        raise ConfigError("neural recursion needs a decoder-only LM")
    found = passages(config, lm, assumed)
    before = found.flops
    found = answered(found, config, lm, assumed)
    tokens, answer = found.assumptions["input_tokens"], found.assumptions["answer_tokens"]
    shape = sizes(config.connector)
    added = recursion.neural(lm, shape, tokens=tokens, answer_tokens=answer, beams=beams)
    count = Connector.parameter_count(lm.head // (2 * lm.vocab_size), lm.hidden_size, shape)
    found.components["earlier_passes"] = Component(added.earlier)
    found.components["connector"] = Component(added.connector, count, count)
    found.assumptions["passes"] = shape.passes
    found.paying_share = 1.0
    if config.when.rule == "below_confidence":
        plain = config.plain_prompt
        soft = plain.length if plain is not None else 0
        alone = flops.generate(lm, tokens + soft, answer).total
        read_once = plain is None or plain.position == "suffix"
        shared = flops.generate(lm, tokens, answer).reading if read_once else 0
        found.components["plain_pass"] = Component(alone - shared, soft * lm.hidden_size)
        found.assumptions["plain_pass_read_once"] = read_once
        found.spare(before + alone, tuned_share(config))
    return found


def textual(config: c.TextualRecursion, assumed: Assumed) -> Cost:
    """Of kind `textual_recursion`."""
    lm, n = model_sizes.lm_shape(config.lm), config.candidates.n
    found = answered(passages(config, lm, assumed), config, lm, assumed)
    alone = found.flops
    tokens = found.assumptions["input_tokens"]
    passes = textual_flops(config, lm, assumed)
    first = found.components.pop("prompt", Component(0))
    one_pass = first.flops + sum(found.components.pop(name).flops for name in ("lm_prefill", "lm_decoding"))
    shared = passages_read_once(config, lm, tokens, assumed)
    found.paying_share = float(config.answer_by == "second_pass")
    if config.when.rule == "below_confidence":
        # The first answer's reading of what stands before the question is the candidates' too.
        read = lm.body.at(tokens - question_tokens(config, tokens, assumed)) if shared else 0
        found.components["first_answer"] = Component(one_pass - read)
        found.spare(alone, tuned_share(config))
    found.components["first_pass_reading"] = Component(passes.candidates.reading, lm.parameters)
    found.components["candidates"] = Component(passes.candidates.answering, first.parameters, first.trained)
    second = config.second_pass.prompt
    if config.answer_by == "second_pass":
        size = (second.length if second is not None else 0) * lm.hidden_size
        found.components["second_pass"] = Component(passes.second.total, size, size)
    soft = [block.length if block is not None else 0 for block in (config.prompt, second)]
    found.assumptions |= {"candidates": n, "candidate_tokens": CANDIDATE_TOKENS, "soft_tokens": soft}
    found.assumptions["passages_read_once"] = shared
    return found


def second_pass_tokens(config: c.TextualRecursion, tokens: int) -> int:
    """What pass 2 of textual recursion reads of text, where pass 1 reads `tokens`; all samples different."""
    return tokens + config.candidates.n * CANDIDATE_TOKENS


def question_tokens(config: Any, tokens: int, assumed: Assumed) -> int:
    """Of `tokens` that the LM reads, those that stand behind the passages."""
    return min(tokens, assumed.question_tokens) if c.retrieves(config) else tokens


def passages_read_once(config: c.TextualRecursion, lm: ModelShape, tokens: int, assumed: Assumed) -> bool:
    """Whether both passes go on from one reading of what stands before the question."""
    behind = all(block is None or block.position == "suffix" for block in (config.prompt, config.second_pass.prompt))
    return tokens > question_tokens(config, tokens, assumed) and lm.kind == "decoder" and behind


def textual_flops(config: c.TextualRecursion, lm: ModelShape, assumed: Assumed) -> recursion.TextualCost:
    """Both passes of textual recursion."""
    tokens = input_tokens(config, lm, assumed)[0]
    question = question_tokens(config, tokens, assumed)
    soft = [block.length if block is not None else 0 for block in (config.prompt, config.second_pass.prompt)]
    most = config.generation.max_new_tokens
    return recursion.textual(
        lm,
        before=tokens - question,
        first=question + soft[0],
        second=second_pass_tokens(config, question) + soft[1],
        answer_tokens=most if assumed.answer_tokens is None else assumed.answer_tokens,
        n=config.candidates.n,
        shared=passages_read_once(config, lm, tokens, assumed),
    )
