"""`frozenlm pretrain`: the connector of neural recursion as a language model on plain text, the LM frozen (arXiv
2204.10019, section 4.2, where this "was vital").

Our choices: blocks of dev text, spread evenly over all of it, are held out; the best step is the one with the lowest
perplexity on them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from frozenlm.lm_tasks import Example
from frozenlm.recursion.loss import mean_recursion_loss, recursion_loss, rows_read
from frozenlm.recursion.neural import RecursiveLM
from frozenlm.recursion.pretraining import TokenBlocks
from frozenlm.training import fit
from pipelines import build_recursion
from pipelines import config as c
from pipelines.build import Log, frozen_lm, module_folder
from pipelines.errors import ConfigError, ShapeError
from pipelines.training.plain_text import held_out, texts
from pipelines.training.settings import loop_settings
from pipelines.training.summary import summary, trained_parameters


def pretrain_connector(config: c.NeuralRecursion, *, restart: bool, log: Log) -> dict[str, Any]:
    """Pretrain the config's connector and save it into the workspace. An interrupted run goes on.

    Raises:
        ConfigError: no pretraining block, no text, an LM that is not decoder-only, or a block length beyond its window.
    """
    block = config.pretraining
    if block is None:
        raise ConfigError("this config has no pretraining block; name the text to pretrain the connector on")
    lm = frozen_lm(config.lm)
    connector = build_recursion.new_connector(config, lm)
    try:
        blocks = TokenBlocks.of_texts(lm, texts(block), length=block.length)
    except ShapeError as error:
        raise ConfigError(f"pretraining has nothing to read: {error}") from error
    train, dev = _split(blocks, block.dev_blocks)
    log(f"{len(blocks.tokens):,} tokens in {len(train)} blocks of {block.length} for training, {len(dev)} for dev")
    model = RecursiveLM(lm, connector)
    cache = build_recursion.first_pass_cache(config, lm, lambda: rows_read([*train, *dev]), block.name, log)
    one_pass = mean_recursion_loss(model, dev, first_pass=cache)  # the gate is zero: this is what one pass says
    log(f"dev perplexity of one pass: {math.exp(one_pass):.3f}")

    def loss(batch: list[Example]) -> tuple[torch.Tensor, int]:
        return recursion_loss(model, batch, cache)

    folder = module_folder(config, block.name)
    result = fit(
        connector,
        examples=train,
        loss=loss,
        out=folder.parent / f"{block.name}.run",
        settings=loop_settings(block, config.seed),
        evaluate=lambda: -mean_recursion_loss(model, dev, first_pass=cache),
        identity={
            "blocks": blocks.fingerprint,
            "dev_blocks": len(dev),
            "connector": config.connector.model_dump(mode="json", exclude={"name", "missing"}),
        }
        | (cache.identity if cache is not None else {}),
        lm=lm,
        trackers=block.trackers,
        log=log,
        restart=restart,
    )
    connector.save(folder, lm)
    log(f"connector saved: {folder}")
    return {
        "module": str(folder),
        "trained_parameters": trained_parameters(connector),
        "tokens": len(blocks.tokens),
        "one_pass_perplexity": math.exp(one_pass),
        "perplexity": math.exp(-result.best_score) if result.best_score is not None else None,
        "rows_over_cache_budget": cache.counts.over_budget if cache is not None else None,
    } | summary(result)


class _Some(Sequence[Example]):
    """Some blocks of a text, without a copy of their tokens."""

    def __init__(self, blocks: TokenBlocks, places: Sequence[int]) -> None:
        self.blocks, self.places = blocks, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self.blocks[place] for place in self.places[index]]
        return self.blocks[self.places[index]]


def _split(blocks: TokenBlocks, dev_blocks: int) -> tuple[_Some, _Some]:
    """Training and dev blocks; the latter spread evenly."""
    count = len(blocks)
    if dev_blocks >= count:
        raise ConfigError(
            f"the text makes {count} blocks of {blocks.length} tokens, and dev_blocks holds {dev_blocks} of them out; "
            "give more text, shorter blocks or fewer dev_blocks"
        )
    train, dev = held_out(count, dev_blocks)
    return _Some(blocks, train), _Some(blocks, dev)
