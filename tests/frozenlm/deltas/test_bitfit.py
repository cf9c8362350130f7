"""BitFit: every bias and nothing else, once each."""

from typing import Any

import pytest
import torch
from torch import nn

from frozenlm.checkpoint import load_module
from frozenlm.deltas.attach import attach, key
from frozenlm.deltas.bitfit import KIND, BitFit, parameter_count
from frozenlm.errors import CheckpointError, ConfigError
from tests.frozenlm.deltas.checks import LOGITS_ROWS, check_padding, logits, noisy
from tests.toys import NAMES, toy_encoder, toy_lm

BARE = ("llama", "t5")


def bitfit(lm: Any, **settings: Any) -> BitFit:
    return BitFit.create(lm, **{"extra": lm.model.config.model_type in BARE, **settings})


def count(delta: nn.Module) -> int:
    return sum(parameter.numel() for parameter in delta.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_identity_at_first_then_not_and_saved_exactly(tmp_path: Any, name: str) -> None:
    lm = toy_lm(name)
    delta, plain = bitfit(lm), logits(lm)
    with attach(lm, delta):
        assert torch.equal(logits(lm), plain)
    noisy(delta)
    delta.save(tmp_path, lm)
    with attach(lm, delta):
        changed = logits(lm)
    with attach(lm, BitFit.load(tmp_path, lm)):
        assert torch.equal(logits(lm), changed) and not torch.equal(changed, plain)
    assert torch.equal(logits(lm), plain)
    assert set(load_module(tmp_path, kind=KIND)[0]) == {f"offsets.{name}" for name in delta.offsets}


def test_which_biases() -> None:
    gpt2 = bitfit(toy_lm("gpt2"))
    block = [32, 3 * 32, 32, 32, 4 * 32, 32]  # ln_1, c_attn, c_proj, ln_2, c_fc, c_proj
    assert count(gpt2) == parameter_count([*block, *block, 32]) == 2 * 11 * 32 + 32
    assert count(bitfit(toy_lm("gpt2"), norms=False)) == 2 * 9 * 32
    opt = bitfit(toy_lm("opt"), which="query_and_intermediate")
    assert set(opt.offsets) == {
        key(f"model.decoder.layers.{k}.{name}.bias") for k in (0, 1) for name in ("self_attn.q_proj", "fc1")
    }
    assert count(bitfit(toy_lm("opt"), which=["fc2"])) == 2 * 32


def test_an_lm_with_few_biases_trains_those_or_more() -> None:
    assert count(bitfit(toy_lm("qwen2"))) == 2 * (32 + 16 + 16)  # query, key, value
    assert count(bitfit(toy_lm("qwen2"), extra=True)) == 2 * (32 + 16 + 16 + 32 + 64 + 64 + 32)
    assert count(bitfit(toy_lm("llama"))) == count(bitfit(toy_lm("qwen2"), extra=True))


@pytest.mark.parametrize("name", BARE)
def test_an_lm_without_biases_fails_loudly(name: str) -> None:
    with pytest.raises(ConfigError, match="extra=True"):
        BitFit.create(toy_lm(name))


def test_the_offset_is_what_is_added() -> None:
    lm = toy_lm("opt")
    delta = bitfit(lm)
    nn.init.constant_(delta.offsets[key("model.decoder.layers.0.fc1.bias")], 0.5)
    layer = lm.model.model.decoder.layers[0].fc1
    own = layer.bias
    with attach(lm, delta):
        assert torch.equal(layer.bias, own + 0.5)
    assert layer.bias is own


def test_an_extra_bias_is_added_to_the_output() -> None:
    lm = toy_lm("llama")
    delta, layer, seen = bitfit(lm), lm.model.model.layers[0].mlp.down_proj, []
    nn.init.constant_(delta.offsets[key("model.layers.0.mlp.down_proj.bias")], 0.5)
    with attach(lm, delta):
        handle = layer.register_forward_hook(lambda m, args, output: seen.append((args[0], output)))
        lm.forward(LOGITS_ROWS)
        handle.remove()
    assert torch.equal(seen[0][1], layer(seen[0][0]) + 0.5)


def test_a_shared_part_gets_one_offset() -> None:
    lm = toy_lm("opt")
    model = lm.model
    model.model.decoder.layers[1].fc1 = model.model.decoder.layers[0].fc1
    shared = type(lm).from_model(model, lm.tokenizer)
    delta = bitfit(shared)
    assert key("model.decoder.layers.0.fc1.bias") in delta.offsets
    assert key("model.decoder.layers.1.fc1.bias") not in delta.offsets
    nn.init.constant_(delta.offsets[key("model.decoder.layers.0.fc1.bias")], 0.5)
    with attach(shared, delta):
        assert torch.equal(model.model.decoder.layers[1].fc1.bias, model.model.decoder.layers[0].fc1.bias)


def test_an_encoder_leaves_its_pooler_alone() -> None:
    encoder = toy_encoder("bert")
    delta, plain = BitFit.create(encoder), encoder.vectors(["who was king"])
    assert not any(name.startswith("pooler") for name in delta.offsets) and "embeddings/LayerNorm/bias" in delta.offsets
    with attach(encoder, delta):
        assert torch.equal(encoder.vectors(["who was king"]), plain)
        encoder.vectors(["who was king"]).sum().backward()
    assert all(parameter.grad is not None for parameter in delta.parameters())


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_padding_changes_nothing(name: str, side: str) -> None:
    lm = toy_lm(name, padding_side=side)
    check_padding(lm, noisy(bitfit(lm)))


def test_a_half_precision_lm_keeps_float32_offsets() -> None:
    lm = toy_lm("opt")
    lm = type(lm).from_model(lm.model, lm.tokenizer, dtype="bfloat16")
    delta, plain = bitfit(lm), logits(lm)
    with attach(lm, delta):
        assert torch.equal(logits(lm), plain)
        lm.token_logprobs(LOGITS_ROWS, [[7]])[0].sum().backward()
    assert {(p.dtype, p.grad is None) for p in delta.parameters()} == {(torch.float32, False)}


def test_bad_settings(tmp_path: Any) -> None:
    lm = toy_lm()
    with pytest.raises(ConfigError, match="expected all"):
        BitFit.create(lm, which="some")
    with pytest.raises(ConfigError, match="or not all"):  # GPT-2's queries have no layer of their own
        BitFit.create(lm, which="query_and_intermediate")
    with pytest.raises(ConfigError, match="no biases"):
        BitFit.create(lm, which=["q_proj"])
    bitfit(lm).save(tmp_path, lm)
    with pytest.raises(CheckpointError, match="another LM"):
        BitFit.load(tmp_path, toy_lm(seed=1))
    with pytest.raises(CheckpointError, match="do not fit this model"):
        BitFit.load(tmp_path, toy_lm("llama"), allow_other_lm=True)
    with pytest.raises(ConfigError, match="another"), attach(toy_lm("llama"), bitfit(lm)):
        pass
