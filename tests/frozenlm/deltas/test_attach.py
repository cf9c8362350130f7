"""In and out of a frozen model: what is inside changes the logits, and nothing is ever left behind."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from frozenlm.context_cache import ContextCache
from frozenlm.deltas.attach import (
    Delta,
    Host,
    attach,
    blocks,
    hooked,
    key,
    parameter_of,
    replaced,
    target_modules,
    unkey,
)
from frozenlm.errors import CheckpointError, ConfigError, FrozenViolationError, ShapeError
from frozenlm.lm_tasks import Example, prompt_loss
from frozenlm.prompts.soft_prompt import SoftPrompt
from frozenlm.rows import Tokens
from tests.test_frozen import state_of
from tests.toys import DECODERS, ENCODERS, NAMES, toy_encoder, toy_encoder_model, toy_lm, toy_model

EXAMPLES = [Example.of(range(5, 10 + k), [40 + k, 41]) for k in range(3)]


class Shift(nn.Module):
    """Adds a trained offset to one weight."""

    def __init__(self, name: str, shape: torch.Size) -> None:
        super().__init__()
        self.name, self.offset = name, nn.Parameter(torch.zeros(shape))

    def attached(self, model):
        return replaced(model, {self.name: parameter_of(model, self.name) + self.offset})

    def save(self, folder, lm) -> None:
        raise NotImplementedError


def shift(host) -> Shift:
    name = target_modules(host.model)[0] + ".weight"
    return Shift(name, parameter_of(host.model, name).shape)


def losses(lm) -> torch.Tensor:
    return prompt_loss(lm, None, EXAMPLES)[0]


@pytest.mark.parametrize("name", NAMES)
def test_inside_changes_outside_stays(name: str) -> None:
    lm = toy_lm(name)
    delta, before, plain = shift(lm), state_of(lm.model), losses(lm)
    with attach(lm, delta):
        assert torch.equal(losses(lm), plain)
        losses(lm).backward()
    assert delta.offset.grad.abs().sum() > 0 and all(p.grad is None for p in lm.model.parameters())
    with torch.no_grad():
        delta.offset.add_(1.0)
    with attach(lm, delta):
        assert lm.is_changed and not torch.equal(losses(lm), plain)
    assert torch.equal(losses(lm), plain) and not lm.is_changed
    assert state_of(lm.model) == before
    lm.assert_unchanged()


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_records_gradients_for_a_delta_only(name: str) -> None:
    encoder = toy_encoder(name)
    delta = shift(encoder)
    assert isinstance(encoder, Host) and isinstance(delta, Delta)
    assert not encoder.features(["who was king"])[0].requires_grad
    with attach(encoder, delta):
        encoder.features(["who was king"])[0].sum().backward()
        with torch.no_grad():
            assert not encoder.features(["who was king"])[0].requires_grad
    assert delta.offset.grad.abs().sum() > 0
    encoder.assert_unchanged()


def test_two_deltas_of_one_weight_add_up() -> None:
    lm = toy_lm("llama")
    one, two, both = shift(lm), shift(lm), shift(lm)
    with torch.no_grad():
        one.offset.fill_(0.25)
        two.offset.fill_(0.5)
        both.offset.fill_(0.75)
    with attach(lm, one, two):
        added = losses(lm)
    with attach(lm, both):
        assert torch.allclose(losses(lm), added, atol=1e-5)


def test_an_exception_leaves_nothing() -> None:
    lm = toy_lm()
    before = state_of(lm.model)
    with pytest.raises(RuntimeError, match="midway"), attach(lm, shift(lm)):
        raise RuntimeError("midway")
    assert state_of(lm.model) == before and not lm.is_changed


def test_what_is_left_behind_is_found() -> None:
    class Leaves(Shift):
        @contextmanager
        def attached(self, model):
            model.get_submodule(self.name.rpartition(".")[0]).register_forward_hook(lambda *_: None)
            yield

    lm = toy_lm()
    name = target_modules(lm.model)[0] + ".weight"
    leaves = Leaves(name, parameter_of(lm.model, name).shape)
    with pytest.raises(FrozenViolationError, match="after a delta was detached"), attach(lm, leaves):
        pass


def test_a_tied_weight_is_replaced_wherever_it_stands() -> None:
    model = toy_model("qwen2")
    name = "model.embed_tokens.weight"
    assert model.lm_head.weight is parameter_of(model, name)
    with replaced(model, {name: torch.zeros(model.lm_head.weight.shape)}):
        assert not model.lm_head.weight.any()
    assert model.lm_head.weight is parameter_of(model, name) and model.lm_head.weight.any()


def test_hooks_stand_for_the_while() -> None:
    lm = toy_lm()
    plain, layer = losses(lm), lm.model.get_submodule(target_modules(lm.model)[0])
    with hooked([(layer, lambda module, args, kwargs, output: output * 0)]):
        assert not torch.equal(losses(lm), plain)
    with hooked([(layer, lambda module, args, kwargs: ((args[0] * 0,), kwargs))], before=True):
        assert not torch.equal(losses(lm), plain)
    assert torch.equal(losses(lm), plain)


@pytest.mark.parametrize("name", DECODERS)
def test_memories_of_inside_and_outside_are_never_mixed(name: str) -> None:
    lm = toy_lm(name)
    row = [Tokens((5, 6, 7))]
    outside = lm.read([row])
    with attach(lm, shift(lm)):
        inside = lm.read([row])
        lm.forward([row], memory=inside)
        with pytest.raises(CheckpointError, match="something else attached"):
            lm.forward([row], memory=outside)
        with pytest.raises(ConfigError, match="a delta is attached"):
            ContextCache(lm).memory([(5, 6)])
    with pytest.raises(CheckpointError, match="something else attached"):
        lm.forward([row], memory=inside)


def test_a_suffix_prompt_beside_a_delta_does_not_lose_the_gradient_of_the_context() -> None:
    lm = toy_lm()
    delta, prompt = shift(lm), SoftPrompt.create(lm, 2, position="suffix")
    with attach(lm, delta):
        prompt_loss(lm, prompt, [Example.of(range(5, 30), [40])])[0].backward()
    suffix = delta.offset.grad.clone()
    delta.offset.grad = None
    whole = Example.of(range(5, 30), [40])
    with attach(lm, delta):
        rows = [[Tokens(whole.context), prompt.segments([whole.source])[0]]]
        (-lm.token_logprobs(rows, [[40]])[0].sum()).backward()
    assert torch.equal(suffix, delta.offset.grad)


def test_blocks_and_targets() -> None:
    assert [name for name, _ in blocks(toy_model("bart"))] == [
        *("model.encoder.layers.0", "model.encoder.layers.1"),
        *("model.decoder.layers.0", "model.decoder.layers.1"),
    ]
    t5 = toy_model("t5")
    assert [name for name, _ in blocks(t5)] == [
        "encoder.block.0",
        "encoder.block.1",
        "decoder.block.0",
        "decoder.block.1",
    ]
    assert len(target_modules(t5)) == 2 * 6 + 2 * 10  # encoder: q k v o wi wo; decoder: twice q k v o, wi, wo
    assert len(target_modules(toy_model("gpt2"), "attention")) == 2 * 2  # c_attn, c_proj
    assert len(target_modules(toy_encoder_model("bert"), "feed_forward")) == 2 * 2
    assert target_modules(toy_model("llama"), ["v_proj"]) == [f"model.layers.{k}.self_attn.v_proj" for k in (0, 1)]
    assert unkey(key("model.layers.0.q_proj")) == "model.layers.0.q_proj"


def test_bad_names_and_shapes() -> None:
    model = toy_model("llama")
    with pytest.raises(ConfigError, match=r"here .*self_attn\.q_proj"):
        target_modules(model, ["c_attn"])
    with pytest.raises(ConfigError, match=r"no parameter 'model\.nothing\.weight'"):
        parameter_of(model, "model.nothing.weight")
    with pytest.raises(ShapeError, match="was to be replaced"), replaced(model, {"lm_head.weight": torch.zeros(2, 2)}):
        pass
    with pytest.raises(ConfigError, match="no list of Transformer blocks"):
        blocks(nn.Linear(2, 2))
