"""Partial layers: which weights they are, and that no gradient goes below them."""

import pytest
import torch

from frozenlm.deltas.attach import attach, hooked
from frozenlm.deltas.partial_layers import PartialLayers, last_stack
from frozenlm.errors import ConfigError
from frozenlm.lm_tasks import Example, prompt_loss
from tests.toys import toy_encoder, toy_lm, toy_model

EXAMPLES = [Example.of(range(5, 10 + k), [40 + k, 41]) for k in range(3)]


def count(host, **sizes) -> int:
    return sum(parameter.numel() for parameter in PartialLayers.create(host, **sizes).parameters())


def test_sizes() -> None:
    # Toy models: H 32, F 64 (gpt2: 128), 4 heads over 2 key-value heads in llama; a norm has 2 H, llama's H.
    opt = 4 * 32 * 32 + 2 * 32 * 64 + 9 * 32 + 64
    assert count(toy_lm("opt")) == PartialLayers.parameter_count(opt, 1) == opt
    assert count(toy_lm("opt"), blocks=2, final_norm=True) == PartialLayers.parameter_count(opt, 2, 64)
    assert count(toy_lm("gpt2"), blocks=2) == 2 * (12 * 32 * 32 + 13 * 32)
    llama = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32
    assert count(toy_lm("llama"), final_norm=True) == llama + 32
    t5_decoder = 8 * 32 * 32 + 2 * 32 * 64 + 3 * 32
    assert count(toy_lm("t5")) == t5_decoder
    assert count(toy_encoder("bert")) == 4 * 24 * 24 + 2 * 24 * 48 + 9 * 24 + 48


def test_of_an_encoder_decoder_it_is_the_decoder() -> None:
    assert [name for name, _ in last_stack(toy_model("bart"))] == ["model.decoder.layers.0", "model.decoder.layers.1"]
    names = PartialLayers.create(toy_lm("t5"), final_norm=True).flat.names
    assert all(name.startswith(("decoder.block.1.", "decoder.final_layer_norm.")) for name in names)


@pytest.mark.parametrize("name", ["gpt2", "opt", "llama"])
def test_no_graph_is_recorded_below(name: str) -> None:
    lm = toy_lm(name)
    (_, below), (_, top) = last_stack(lm.model)
    seen = {}

    def note(which):
        def hook(module, args, kwargs, output):
            seen[which] = (output if isinstance(output, torch.Tensor) else output[0]).requires_grad

        return hook

    with attach(lm, PartialLayers.create(lm)), hooked([(below, note("below")), (top, note("top"))]):
        prompt_loss(lm, None, EXAMPLES)
    assert seen == {"below": False, "top": True}


def test_bad_input() -> None:
    lm = toy_lm("bart")
    for blocks in (0, 3):
        with pytest.raises(ConfigError, match="expected 1 to 2"):
            PartialLayers.create(lm, blocks=blocks)
    with pytest.raises(ConfigError, match="no norm behind its last block"):
        PartialLayers.create(lm, final_norm=True)
