"""What a frozen LM costs that reads passages and answers, and how many tokens it reads."""

from __future__ import annotations

from typing import Any

from frozenlm.shapes import ModelShape
from pipelines import config as c
from pipelines import model_sizes
from pipelines.cost_retrieval import passages
from pipelines.cost_types import Assumed, Cost
from pipelines.errors import ConfigError


def reader(config: c.FrozenReader | c.ClosedBook, assumed: Assumed) -> Cost:
    """Of kinds `frozen_reader` and `closed_book`."""
    lm = model_sizes.lm_shape(config.lm)
    return answered(passages(config, lm, assumed), config, lm, assumed)


def answered(found: Cost, config: Any, lm: ModelShape, assumed: Assumed) -> Cost:
    """Add one pass over the passages and the question to what is found."""
    tokens, read = input_tokens(config, lm, assumed)
    block = config.generation
    answer = block.max_new_tokens if assumed.answer_tokens is None else assumed.answer_tokens
    soft = config.prompt.length if config.prompt else 0
    found.read_by_lm(lm, tokens, answer, beams=block.num_beams, soft_tokens=soft)
    found.assumptions |= {"passages": read, "question_tokens": assumed.question_tokens}
    if read:
        found.assumptions["passage_tokens"] = assumed.passage_tokens
    return found


def input_tokens(config: Any, lm: ModelShape, assumed: Assumed) -> tuple[int, int]:
    """Tokens of text that the LM reads, soft tokens left out, and how many passages are among them.

    Raises:
        ConfigError: they do not fit the window, or there is none.
    """
    question, passage, room = assumed.question_tokens, assumed.passage_tokens, _room(config, lm)
    wanted = question if assumed.input_tokens is None else assumed.input_tokens
    if wanted > room:
        raise ConfigError(
            f"{wanted} tokens of input do not fit: window, answer reserve and soft tokens leave {room}; assume fewer, "
            "or widen the window"
        )
    fitting = max(0, (room if assumed.input_tokens is None else wanted) - question) // passage
    taken = min(fitting, _offered(config)) if c.retrieves(config) else 0
    return (question + taken * passage if assumed.input_tokens is None else wanted), taken


def _offered(config: Any) -> int:
    """The most passages that the packer gets and may keep."""
    limits = [config.retrieve_k, config.packing.max_passages]
    limits += [config.rerank_depth, config.rerank_k] if config.reranker is not None else []
    return min(limit for limit in limits if limit is not None)


def _room(config: Any, lm: ModelShape) -> int:
    """Tokens that are left for the text."""
    limits = [limit for limit in (config.lm.window or lm.window, config.packing.max_tokens) if limit is not None]
    if not limits:
        raise ConfigError("this LM has no window of its own; set packing.max_tokens (tokens, question and answer too)")
    kept = config.packing.answer_reserve + getattr(config, "reserved_tokens", 0)
    return min(limits) - kept - (config.prompt.length if config.prompt else 0)
