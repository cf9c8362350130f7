"""Parameters and FLOPs from the meta device: sums done by hand, and torch's own counter at other sizes."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import pytest
import torch
from transformers import BertConfig, DynamicCache, MixtralConfig

from frozenlm.architectures import meta_model
from frozenlm.errors import ConfigError
from frozenlm.shapes import Crossing, Growth, ModelShape, count_flops, growth, measured, read
from tests.toys import DECODERS, NAMES, VOCAB_SIZE, WINDOW, toy_model

H, INNER, LAYERS, HEADS, KV_HEADS, D = 32, 64, 2, 4, 2, 8  # of the toy LMs; HEADS x D = H
MATRICES = {  # numbers of one layer that every token is multiplied with
    "gpt2": 4 * H * H + 2 * H * (4 * H),
    "opt": 4 * H * H + 2 * H * INNER,
    "llama": 2 * H * H + 2 * H * (KV_HEADS * D) + 3 * H * INNER,
    "qwen2": 2 * H * H + 2 * H * (KV_HEADS * D) + 3 * H * INNER,
    "t5": 4 * H * H + 2 * H * INNER,
    "bart": 4 * H * H + 2 * H * INNER,
}


def toy_meta(name: str) -> Any:
    return meta_model(toy_model(name).config, "lm", dtype=torch.float32)


@cache
def toy_shape(name: str) -> ModelShape:
    return ModelShape.of_lm(toy_meta(name))


def test_growth_is_read_off_three_runs_and_holds_for_any_number() -> None:
    found = growth(lambda q: 7 + 5 * q + 3 * q * q)
    assert found == Growth(7, 5, 3)
    assert found.at(10) == 7 + 50 + 300
    assert found.at(2, before=8) == 7 + 10 + 3 * 2 * 10  # two queries, ten keys
    assert Growth(0, 5, 3).one_by_one(3, before=4) == 3 * 5 + 3 * (5 + 6 + 7)


@pytest.mark.parametrize("name", NAMES)
def test_a_body_by_hand(name: str) -> None:
    """2 FLOPs a multiply-add: the matrices for each token, and queries x keys twice (scores, then values)."""
    shape = toy_shape(name)
    assert shape.body == Growth(0, 2 * LAYERS * MATRICES[name], 4 * HEADS * D * LAYERS)
    assert shape.body.at(50) == 2 * LAYERS * MATRICES[name] * 50 + 4 * 50 * 50 * H * LAYERS
    assert shape.head == 2 * H * VOCAB_SIZE


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_a_decoder_that_reads_an_encoder_by_hand(name: str) -> None:
    """Its cross-attention has four matrices more: two for each of its tokens, two for each of the encoder's."""
    shape = toy_shape(name)
    assert shape.kind == "encoder-decoder"
    assert shape.decoder == Growth(0, 2 * LAYERS * (MATRICES[name] + 2 * H * H), 4 * H * LAYERS)
    assert shape.crossing == Crossing(memory=2 * LAYERS * 2 * H * H, pair=4 * H * LAYERS)


@pytest.mark.parametrize("name", DECODERS)
def test_equals_torchs_counter_at_other_sizes_and_after_a_cache(name: str) -> None:
    model, body = toy_meta(name), toy_shape(name).body
    assert count_flops(partial(read, model.base_model, 61)) == body.at(61)
    cache = DynamicCache()
    first = count_flops(partial(read, model.base_model, 9, cache=cache))
    later = count_flops(partial(read, model.base_model, 4, cache=cache, before=9))
    assert (first, later) == (body.at(9), body.at(4, before=9))


def test_an_encoder_by_hand_its_pooler_once_a_text() -> None:
    config = BertConfig(
        vocab_size=50, hidden_size=H, intermediate_size=INNER, num_hidden_layers=LAYERS, num_attention_heads=HEADS
    )
    encoder = ModelShape.of_encoder(meta_model(config, "encoder"))
    assert encoder.body == Growth(2 * H * H, 2 * LAYERS * (4 * H * H + 2 * H * INNER), 4 * H * LAYERS)
    ranker = ModelShape.of_encoder(meta_model(config, "cross_encoder"))
    assert ranker.body == Growth(2 * H * H + 2 * H, encoder.body.token, encoder.body.pair)
    assert (encoder.kind, encoder.head) == ("encoder", 0)


@pytest.mark.skipif(not hasattr(torch.ops.aten, "_grouped_mm"), reason="needs torch's grouped matrix product")
def test_of_a_mixture_of_experts_only_those_that_are_used_count() -> None:
    sizes = {"hidden_size": H, "intermediate_size": INNER, "num_hidden_layers": 1, "num_attention_heads": HEADS}
    experts = {"num_key_value_heads": KV_HEADS, "num_local_experts": 4, "num_experts_per_tok": 2}
    config = MixtralConfig(vocab_size=50, dtype=torch.bfloat16, **sizes, **experts)
    attention, router, used = 2 * H * H + 2 * H * (KV_HEADS * D), H * 4, 2 * 3 * H * INNER
    assert ModelShape.of_lm(meta_model(config, "lm")).body.token == 2 * (attention + router + used)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_those_of_the_real_model_tied_ones_once(name: str) -> None:
    real, shape = toy_model(name), toy_shape(name)
    assert shape.parameters == sum(parameter.numel() for parameter in real.parameters())
    assert (shape.hidden_size, shape.vocab_size) == (H, VOCAB_SIZE)
    assert shape.window == (None if name == "t5" else WINDOW)


def test_embeddings_are_counted_apart() -> None:
    assert toy_shape("gpt2").embeddings == VOCAB_SIZE * H + WINDOW * H  # tokens and positions
    assert toy_shape("llama").embeddings == VOCAB_SIZE * H  # its head is another matrix


def test_a_model_that_looks_at_values_is_refused() -> None:
    def looks() -> None:
        torch.zeros(1, device="meta").item()

    with pytest.raises(ConfigError, match=r"cannot be run without its weights.*meta.*GPT-2, OPT, Llama"):
        measured(count_flops, looks)
