"""What stands before the LM costs: retrievers, the search in an index, re-rankers."""

from __future__ import annotations

from typing import Any

from frozenlm import cost as flops
from frozenlm.shapes import ModelShape
from pipelines import config as c
from pipelines import model_sizes
from pipelines.cost_types import SPECIAL, Assumed, Component, Cost
from pipelines.errors import ConfigError, CorpusError, retrieval_errors
from retrievers.corpus import estimate_passages

_NOT_COUNTED = {"bm25": "BM25 looks words up and adds", "precomputed": "its hits are read from a file"}


def retrieval(config: c.Retrieval, assumed: Assumed) -> Cost:
    """Of kind `retrieval`."""
    found = Cost()
    _retriever(found, config, config.retriever, assumed, "retriever")
    return found


def reranker(config: c.RerankerJob, assumed: Assumed) -> Cost:
    """Of kind `reranker`."""
    found = retrieval(config, assumed)
    block = config.reranker
    if isinstance(block, c.LMLikelihood):
        found.not_counted.append("reranker: this config names no LM that could rank")
    else:
        shape = model_sizes.cross_encoder_shape(block)
        _cross_encoder(found, config, block, shape, assumed)
    return found


def passages(config: Any, lm: ModelShape, assumed: Assumed) -> Cost:
    """What stands before the LM: nothing with a closed book."""
    if not c.retrieves(config):
        return Cost()
    found = retrieval(config, assumed)
    block = config.reranker
    if isinstance(block, c.LMLikelihood):
        depth = min(config.rerank_depth, config.retrieve_k)
        one = flops.score(lm, assumed.passage_tokens, assumed.question_tokens).total
        found.components["reranker"] = Component(depth * one)
        found.assumptions["rerank_depth"] = depth
    elif block is not None:
        try:
            _cross_encoder(found, config, block, model_sizes.cross_encoder_shape(block), assumed)
        except ConfigError as error:
            found.not_counted.append(str(error))
    return found


def _retriever(found: Cost, config: c.Retrieval, block: Any, assumed: Assumed, name: str) -> None:
    if isinstance(block, c.Hybrid):
        for member, inner in block.members.items():
            _retriever(found, config, inner, assumed, f"{name}.{member}")
    elif isinstance(block, c.Dense):
        _dense(found, config, block, assumed, name)
    else:
        found.not_counted.append(f"{name}: {_NOT_COUNTED.get(block.kind, 'what the plug-in does')}")


def _dense(found: Cost, config: c.Retrieval, block: c.Dense, assumed: Assumed, name: str) -> None:
    try:
        shape = model_sizes.encoder_shape(block.encoder, "encoder", model=block.encoder.question_model)
    except ConfigError as error:
        found.not_counted.append(f"{name}: {error}")
        return
    tokens = min(assumed.question_tokens + SPECIAL - 1, block.encoder.max_length)
    found.components[name] = Component(flops.encode(shape, tokens), shape.parameters)
    found.assumptions["question_tokens"] = assumed.question_tokens
    count = _indexed(config.corpus)
    if block.index not in ("exact", "flat"):
        found.not_counted.append(f"{name}: the search in its {block.index} index")
    elif count is None:
        found.not_counted.append(f"{name}: the search in its index, since the corpus is not here")
    else:
        found.components[f"{name}.search"] = Component(2 * shape.hidden_size * count)
        found.assumptions["indexed_passages"] = count


def _indexed(corpus: c.Corpus | None) -> int | None:
    """About how many passages a corpus has; None where it is not here."""
    if corpus is None or corpus.limit is not None:
        return corpus.limit if corpus is not None else None
    try:
        with retrieval_errors():
            return estimate_passages(corpus.path, corpus.format)
    except CorpusError:
        return None


def _cross_encoder(
    found: Cost, config: c.RerankerJob | c.FrozenReader, block: c.CrossEncoder, shape: ModelShape, assumed: Assumed
) -> None:
    depth = min(config.rerank_depth, config.retrieve_k)
    tokens = min(assumed.question_tokens + assumed.passage_tokens + SPECIAL, block.max_length)
    trained = shape.parameters if block.checkpoint is not None else 0
    found.components["reranker"] = Component(flops.encode(shape, tokens, texts=depth), shape.parameters, trained)
    found.assumptions |= {"rerank_depth": depth, "rerank_tokens": tokens}
