"""Pretraining on plain text: blocks, losses over all positions, perplexity, and a run that is cut and taken up."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from frozenlm.errors import ConfigError, ShapeError
from frozenlm.recursion.connector import Connector
from frozenlm.recursion.loss import rows_read
from frozenlm.recursion.pass_cache import FirstPassCache
from frozenlm.recursion.pretraining import TokenBlocks, perplexity, pretraining_loss
from frozenlm.recursion.sizes import ConnectorSizes
from frozenlm.rows import Tokens
from frozenlm.train_settings import TrainSettings
from frozenlm.training import fit
from tests.frozenlm.recursion.connectors import open_connector
from tests.toys import BOS, EOS, toy_lm

TEXTS = ["the cat sat on the mat", "", "the capital of france is paris", "a dog sat on a cat", "blue is a river"] * 3
SETTINGS = TrainSettings(steps=6, batch_size=3, learning_rate=0.01, save_every=2, eval_every=3)


# --- blocks


def test_every_token_but_the_first_is_predicted_once():
    blocks = TokenBlocks([10, 11, 12, 13, 14, 15, 16, 17], length=3)
    assert [(block.context, block.answer) for block in blocks] == [
        ((10,), (11, 12, 13)),
        ((13,), (14, 15, 16)),
        ((16,), (17,)),
    ]
    assert rows_read(blocks) == [(10, 11, 12), (13, 14, 15), (16,)]
    assert len(TokenBlocks(range(7), length=3)) == 2  # no block of one token
    assert blocks[-1] == blocks[2] and blocks[1:] == [blocks[1], blocks[2]]
    with pytest.raises(IndexError, match="block 3 of 3"):
        blocks[3]


def test_texts_are_opened_closed_and_joined():
    lm = toy_lm()
    blocks = TokenBlocks.of_texts(lm, ["the cat", "", "a dog"], length=4)
    cat, dog = lm.encode("the cat"), lm.encode("a dog")
    assert blocks.tokens.tolist() == [*lm.bos_ids, *cat, EOS, *lm.bos_ids, *dog, EOS]
    assert set(lm.bos_ids) <= {BOS}
    assert sum(len(block.answer) for block in blocks) == len(blocks.tokens) - 1


def test_a_text_beyond_a_batch_of_texts_is_read_too():
    lm = toy_lm()
    many = TokenBlocks.of_texts(lm, (word for word in ["cat", "dog"] * 1001), length=8)
    assert len(many.tokens) == 2002 * (len(lm.bos_ids) + 2)


def test_the_fingerprint_is_of_tokens_and_length():
    one = TokenBlocks([1, 2, 3], length=2)
    assert one.fingerprint == TokenBlocks(np.array([1, 2, 3]), length=2).fingerprint
    assert len({one.fingerprint, TokenBlocks([1, 2, 3], length=1).fingerprint, TokenBlocks([1, 2], length=2)}) == 3


def test_bad_blocks():
    with pytest.raises(ConfigError, match="length of at least 1"):
        TokenBlocks([1, 2], length=0)
    with pytest.raises(ShapeError, match="the text has 1 tokens"):
        TokenBlocks([1], length=4)
    with pytest.raises(ShapeError, match="the text has 0 tokens"):
        TokenBlocks.of_texts(toy_lm(), ["", ""], length=4)
    with pytest.raises(ConfigError, match="do not fit the LM's window of 96"):
        TokenBlocks.of_texts(toy_lm(), TEXTS, length=97)


# --- losses


def test_with_a_closed_gate_the_perplexity_is_the_lms_own():
    lm = toy_lm("llama")
    blocks = TokenBlocks.of_texts(lm, TEXTS, length=8)
    scores = lm.score([[Tokens(block.context)] for block in blocks], [block.answer for block in blocks])
    wanted = math.exp(-sum(scores) / (len(blocks.tokens) - 1))
    assert perplexity(lm, Connector.create(lm), blocks, batch_size=2) == pytest.approx(wanted, rel=1e-4)


def test_the_loss_is_that_of_the_logits_of_all_positions():
    lm = toy_lm("opt")
    connector = open_connector(lm)
    blocks = TokenBlocks(range(20, 33), length=6)
    loss, units = pretraining_loss(lm, connector, blocks)
    assert units == 12
    read = torch.tensor([block.context + block.answer for block in blocks])
    embeds = lm.embed(read[:, :-1])
    states = lm.model.base_model(inputs_embeds=embeds).last_hidden_state
    logits = lm.model(inputs_embeds=connector(embeds, states, torch.ones(2, 6))).logits
    wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), read[:, 1:].flatten(), reduction="sum")
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_pretraining_lowers_the_perplexity_of_the_frozen_lm(tmp_path: Path):
    lm = toy_lm("llama")
    blocks = TokenBlocks.of_texts(lm, TEXTS, length=8)
    connector = Connector.create(lm)
    before = perplexity(lm, connector, blocks)
    result = train(lm, connector, blocks, tmp_path)
    assert perplexity(lm, connector, blocks) < 0.8 * before
    assert result.verification is not None and result.verification.changed == 0


# --- a run that is cut


def train(lm, connector, blocks, out, *, first_pass=None, stop_at=None):
    calls = []

    def loss(part):
        calls.append(part)
        if stop_at is not None and len(calls) > stop_at:
            raise KeyboardInterrupt
        return pretraining_loss(lm, connector, part, first_pass)

    return fit(
        connector,
        examples=blocks,
        loss=loss,
        evaluate=lambda: -perplexity(lm, connector, blocks, first_pass=first_pass),
        out=out,
        settings=SETTINGS,
        identity={"blocks": blocks.fingerprint},
        lm=lm,
        progress=False,
    )


@pytest.mark.parametrize("cached", [False, True], ids=["pass 1 run", "pass 1 kept"])
def test_a_run_that_is_cut_ends_in_the_same_bits(tmp_path: Path, cached: bool):
    lm = toy_lm()
    blocks = TokenBlocks.of_texts(lm, TEXTS, length=8)
    sizes = ConnectorSizes(dropout=0.2)

    def first_pass():
        return FirstPassCache(lm, rows_read(blocks), folder=tmp_path / "states") if cached else None

    whole = Connector.create(lm, sizes)
    train(lm, whole, blocks, tmp_path / "whole", first_pass=first_pass())
    with pytest.raises(KeyboardInterrupt):
        train(lm, Connector.create(lm, sizes), blocks, tmp_path / "cut", first_pass=first_pass(), stop_at=3)
    again = Connector.create(lm, sizes)
    result = train(lm, again, blocks, tmp_path / "cut", first_pass=first_pass())
    assert 0 < result.resumed_from < SETTINGS.steps
    state = again.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in whole.state_dict().items())
