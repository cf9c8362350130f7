"""Prefix tuning and P-tuning v2: what is trained, what it begins as, what is kept."""

import pytest
import torch
from torch import Tensor
from transformers import MistralConfig, MistralForCausalLM

from frozenlm.attention_places import keys_values, places
from frozenlm.deltas.attach import Delta, attach
from frozenlm.deltas.p_tuning_v2 import PTuningV2
from frozenlm.deltas.p_tuning_v2 import parameter_count as p_tuning_v2_count
from frozenlm.deltas.prefix_initializers import from_real_text, random_numbers, zeros
from frozenlm.deltas.prefix_parameters import holds_prefixes
from frozenlm.deltas.prefix_tuning import PrefixTuning, parameter_count
from frozenlm.errors import CheckpointError, ConfigError, ShapeError
from frozenlm.lm import FrozenLM
from frozenlm.lm_tasks import Example, prompt_loss
from frozenlm.memory import Memory
from frozenlm.mixed import PromptMemories
from frozenlm.rows import Tokens
from tests.toys import DECODERS, ENCODERS, NAMES, WINDOW, toy_encoder, toy_lm, toy_tokenizer

EXAMPLES = [Example.of(range(5, 10 + k), [40 + k, 41]) for k in range(3)]
TEXT = "who was the king of france"
KINDS = (PrefixTuning, PTuningV2)


def size(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def outputs(host, module) -> Tensor:
    """[n, ...] of a few texts with the delta attached."""
    with torch.no_grad(), attach(host, *[module] if module else []):
        if hasattr(host, "features"):
            return torch.cat([host.features([text])[0][0] for text in ("who was king", "blue")])
        return torch.cat(host.token_logprobs([[Tokens(e.context)] for e in EXAMPLES], [e.answer for e in EXAMPLES]))


@pytest.mark.parametrize("name", NAMES)
def test_parameters_by_formula(name: str) -> None:
    lm = toy_lm(name)
    sizes = places(lm.model)
    direct = PrefixTuning.create(lm, 5, reparametrise=False)
    a_place = 5 * 2 * 2 * 8 * (2 if name in ("llama", "qwen2") else 4)  # P, keys and values, L, D, K
    assert size(direct) == a_place * len(sizes) == parameter_count(sizes, 5, reparametrise=False)
    assert set(direct.state_dict()) == {f"prefixes.{place}" for place in sizes}
    network = PrefixTuning.create(lm, 5, embedding_size=6, middle_size=7)
    outputs_of_one = a_place // 5
    assert size(network) == (5 * 6 + 7 * 6 + 7 + outputs_of_one * 7 + outputs_of_one) * len(sizes)
    assert size(network) == parameter_count(sizes, 5, embedding_size=6, middle_size=7)
    assert size(PTuningV2.create(lm, 5)) == size(direct) == p_tuning_v2_count(sizes, 5)
    parts = ("embedding", "widen.weight", "widen.bias", "out.weight", "out.bias")
    assert set(network.state_dict()) == {f"networks.{place}.{part}" for place in sizes for part in parts}


@pytest.mark.parametrize("name", DECODERS)
def test_a_prefix_that_has_just_begun_is_its_text(name: str) -> None:
    lm = toy_lm(name)
    ids = lm.encode(TEXT)
    module = PTuningV2.create(lm, len(ids), init=from_real_text(TEXT))
    with torch.no_grad():
        read = lm.token_logprobs([[Tokens((*ids, *e.context))] for e in EXAMPLES], [e.answer for e in EXAMPLES])
    torch.testing.assert_close(outputs(lm, module), torch.cat(read), rtol=0, atol=1e-4)


@pytest.mark.parametrize("middle", [6, 40])
def test_the_network_begins_at_the_same_prefix(middle: int) -> None:
    lm = toy_lm("llama")
    network = PrefixTuning.create(lm, 6, middle_size=middle, init=from_real_text(TEXT))
    real = keys_values(lm.model, lm.encode(TEXT))["decoder"]
    torch.testing.assert_close(network()["decoder"], real, rtol=0, atol=1e-4)
    again = PrefixTuning.create(lm, 6, middle_size=middle, init=from_real_text(TEXT))
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), again.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("name", [*NAMES, "bert"])
def test_collapsed_and_loaded_are_bit_equal(name: str, tmp_path) -> None:
    host = toy_encoder("bert") if name == "bert" else toy_lm(name)
    module = PrefixTuning.create(host, 4, middle_size=16)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1)
    module.eval().save(tmp_path, host)
    expected, collapsed, loaded = outputs(host, module), module.collapse(), PrefixTuning.load(tmp_path, host)
    assert not torch.allclose(expected, outputs(host, None), atol=1e-3)
    for other in (collapsed, loaded):
        assert set(other.state_dict()) == {f"prefixes.{place}" for place in places(host.model)}
        assert torch.equal(outputs(host, other), expected)


@pytest.mark.parametrize("offset", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_settings_are_saved(kind, offset: bool, tmp_path) -> None:
    lm = toy_lm()
    module = kind.create(lm, 3, position_offset=offset)
    assert isinstance(module, Delta) and module.length == 3 and module.positions_taken == 3 * offset
    module.save(tmp_path, lm)
    loaded = kind.load(tmp_path, lm)
    assert loaded.position_offset is offset and torch.equal(outputs(lm, loaded), outputs(lm, module))
    with pytest.raises(CheckpointError, match="another LM"):
        kind.load(tmp_path, toy_lm(seed=1))
    kind.load(tmp_path, toy_lm(seed=1), allow_other_lm=True)
    with pytest.raises(CheckpointError, match="takes prefixes"):
        kind.load(tmp_path, toy_lm("llama"), allow_other_lm=True)  # another number of heads


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", NAMES)
def test_rows_alone_and_in_a_batch(name: str, side: str) -> None:
    lm = toy_lm(name, padding_side=side)
    module = PTuningV2.create(lm, 4)
    together = outputs(lm, module)
    with torch.no_grad(), attach(lm, module):
        alone = [lm.token_logprobs([[Tokens(e.context)]], [e.answer])[0] for e in EXAMPLES]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ENCODERS)
def test_texts_of_an_encoder_alone_and_in_a_batch(name: str) -> None:
    encoder = toy_encoder(name)
    module = PTuningV2.create(encoder, 4)
    texts = ["who was the king of france", "blue", ""]
    with torch.no_grad(), attach(encoder, module):
        together = encoder.vectors(texts)
        alone = torch.cat([encoder.vectors([text]) for text in texts])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("offset", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", DECODERS)
def test_a_batch_whose_rows_have_different_prefixes(name: str, side: str, offset: bool) -> None:
    lm = toy_lm(name, padding_side=side)
    modules = [
        PrefixTuning.create(lm, 3, init=random_numbers(0.5), position_offset=offset, reparametrise=False, seed=1),
        PrefixTuning.create(lm, 6, position_offset=offset),
        PTuningV2.create(lm, 2, init=zeros(), position_offset=offset),
    ]
    rows, answers = [[Tokens(e.context)] for e in EXAMPLES], [e.answer for e in EXAMPLES]
    memory = Memory.concatenate([module.as_memory(lm) for module in modules])
    assert memory.lengths.tolist() == [3 * offset, 6 * offset, 2 * offset]
    with torch.no_grad():
        together = lm.token_logprobs(rows, answers, memory=memory)
        written = lm.generate(rows, memory=memory, max_new_tokens=4)
        for k, module in enumerate(modules):
            with attach(lm, module):
                alone = lm.token_logprobs(rows[k : k + 1], answers[k : k + 1])[0]
                assert written[k].ids == lm.generate(rows[k : k + 1], max_new_tokens=4)[0].ids
            torch.testing.assert_close(together[k], alone, rtol=0, atol=1e-4)


def test_only_a_plain_decoder_keeps_a_prefix_as_a_memory() -> None:
    t5, gpt2 = toy_lm("t5"), toy_lm()
    with pytest.raises(ConfigError, match="is an encoder-decoder"):
        PrefixTuning.create(t5, 2).as_memory(t5)
    module = PTuningV2.create(gpt2, 2)
    with attach(gpt2, module), pytest.raises(ConfigError, match="is changed"):
        module.as_memory(gpt2)


def sliding(name: str) -> FrozenLM:
    """An LM whose layers slide a window of 8 tokens; Mistral's config does not say so layer by layer."""
    if name == "qwen2":
        return toy_lm("qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MistralConfig(vocab_size=128, num_key_value_heads=2, sliding_window=8, **sizes)
    return FrozenLM.from_model(MistralForCausalLM(config).eval(), toy_tokenizer())


@pytest.mark.parametrize("name", ["mistral", "qwen2"])
def test_a_window_that_slides_would_lose_a_memory(name: str) -> None:
    lm = sliding(name)
    assert not holds_prefixes(lm)
    module = PTuningV2.create(lm, 3)
    with pytest.raises(ConfigError, match="slides a window"):
        module.as_memory(lm)
    assert PromptMemories(lm).of(module) is None
    assert holds_prefixes(toy_lm("qwen2"))


@pytest.mark.parametrize("name", NAMES)
def test_every_number_gets_a_gradient(name: str) -> None:
    lm = toy_lm(name)
    module = PrefixTuning.create(lm, 4, reparametrise=False)
    with attach(lm, module):
        prompt_loss(lm, None, EXAMPLES)[0].backward()
    # A key that all heads of a row give no weight to is possible, a value is not.
    assert all((p.grad[:, 1] != 0).all() and (p.grad[:, 0] != 0).any() for p in module.parameters())
    assert all(p.grad is None for p in lm.model.parameters())


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_some_places_of_an_encoder_decoder(name: str) -> None:
    lm = toy_lm(name)
    for chosen in (["cross"], ["encoder", "decoder"]):
        module = PrefixTuning.create(lm, 3, places=chosen, middle_size=8)
        assert list(module()) == chosen
        assert not torch.allclose(outputs(lm, module), outputs(lm, None), atol=1e-3)


def test_zeros_are_not_nothing() -> None:
    """Queries meet 2 keys of 0: each gives e^0 to the softmax and nothing to the sum."""
    lm = toy_lm()
    module = PTuningV2.create(lm, 2, init=zeros())
    assert not any(p.any() for p in module.parameters())
    assert not torch.allclose(outputs(lm, module), outputs(lm, None), atol=1e-3)


def test_bad_sizes_and_places() -> None:
    lm = toy_lm()
    for change, words in (
        ({"length": 0}, "at least 1 key"),
        ({"places": ["cross"]}, "this model has decoder"),
        ({"places": []}, "this model has decoder"),
        ({"places": "decoder"}, "this model has decoder"),
        ({"middle_size": 0}, "at least 1, got 32 and 0"),
        ({"init": from_real_text("")}, "has no token"),
        ({"length": WINDOW + 1}, f"the model has {WINDOW} positions"),
    ):
        with pytest.raises(ConfigError, match=words):
            PrefixTuning.create(lm, **{"length": 3} | change)
    with pytest.raises(ConfigError, match=f"the model has {WINDOW} positions"):
        PTuningV2.create(toy_encoder("bert"), WINDOW + 1)
    with pytest.raises(ConfigError, match="above 0"):
        random_numbers(0)
    with pytest.raises(ConfigError, match="at least one of"):
        PrefixTuning({})
    with pytest.raises(ShapeError, match=r"\[L, 2, P, K, D\]"):
        PTuningV2({"decoder": torch.zeros(2, 3)})
    with pytest.raises(ShapeError, match="one length"):
        PTuningV2({"decoder": torch.zeros(2, 2, 3, 4, 8), "cross": torch.zeros(2, 2, 2, 4, 8)})
    with pytest.raises(ConfigError, match="NaN"):
        PTuningV2({"decoder": torch.full((2, 2, 3, 4, 8), torch.nan)})
    with pytest.raises(ShapeError, match="the initialiser made"):
        PTuningV2.create(lm, 3, init=lambda host, length, generator: {"decoder": torch.zeros(1)})
