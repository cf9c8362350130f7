"""Adapters: exact at the start, three forms, counted to the last parameter."""

from typing import Any, get_args

import pytest
import torch
from torch import nn

from frozenlm.checkpoint import save_module
from frozenlm.deltas.adapter import KIND, Adapter, Form, find_places, parameter_count
from frozenlm.deltas.attach import attach, blocks, target_modules
from frozenlm.errors import CheckpointError, ConfigError
from frozenlm.lm_tasks import Example, prompt_loss
from tests.frozenlm.deltas.checks import LOGITS_ROWS, check_padding, logits, noisy
from tests.toys import ENCODERS, NAMES, toy_encoder, toy_lm, toy_model

FORMS = get_args(Form)
every_form = pytest.mark.parametrize("form", FORMS)


@every_form
@pytest.mark.parametrize("name", NAMES)
def test_identity_at_first_then_not_and_saved_exactly(tmp_path: Any, name: str, form: Form) -> None:
    lm = toy_lm(name)
    adapter, plain = Adapter.create(lm, form=form, width=4), logits(lm)
    with attach(lm, adapter):
        assert torch.equal(logits(lm), plain)
    noisy(adapter)
    adapter.save(tmp_path, lm)
    loaded = Adapter.load(tmp_path, lm)
    with attach(lm, adapter):
        changed = logits(lm)
    with attach(lm, loaded):
        assert torch.equal(logits(lm), changed) and not torch.equal(changed, plain)
    assert torch.equal(logits(lm), plain)


@every_form
@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_is_adapted(name: str, form: Form) -> None:
    encoder = toy_encoder(name)
    adapter, plain = Adapter.create(encoder, form=form, width=4), encoder.vectors(["who was king"])
    with attach(encoder, adapter):
        assert torch.equal(encoder.vectors(["who was king"]), plain)
        noisy(adapter)
        alone = encoder.vectors(["who was king"])
        assert not torch.equal(alone, plain)
        assert torch.allclose(encoder.vectors(["who was king", "the cat sat on the mat"])[:1], alone, atol=1e-5)
    encoder.assert_unchanged()


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_counted(name: str) -> None:
    lm = toy_lm(name)
    n = len(blocks(lm.model))
    places = {"houlsby": 2 * n, "pfeiffer": n, "parallel": n}
    for form in FORMS:
        adapter = Adapter.create(lm, form=form, width=4)
        assert sum(p.numel() for p in adapter.parameters()) == parameter_count(places[form], 32, 4)
    assert parameter_count(1, 32, 4) == 2 * 32 * 4 + 32 + 4


def test_a_third_one_after_cross_attention_is_opt_in() -> None:
    model = toy_model("bart")
    assert len(find_places(model, "houlsby")) == 4 * 2
    ends = [place.after for place in find_places(model, "houlsby", cross=True)]
    assert len(ends) == 2 * 2 + 2 * 3 and "model.decoder.layers.0.encoder_attn.out_proj" in ends
    assert find_places(toy_model("gpt2"), "houlsby", cross=True) == find_places(toy_model("gpt2"), "houlsby")


def test_where_they_stand() -> None:
    def ends(name: str, form: Form) -> list[tuple[str, str | None]]:
        return [(place.after, place.reads) for place in find_places(toy_model(name), form)][:2]

    assert ends("llama", "parallel")[0] == ("model.layers.0.mlp.down_proj", "model.layers.0.mlp.gate_proj")
    assert [after for after, _ in ends("t5", "houlsby")] == [
        "encoder.block.0.layer.0.SelfAttention.o",
        "encoder.block.0.layer.1.DenseReluDense.wo",
    ]


@every_form
def test_what_is_computed(form: Form) -> None:
    """A bottleneck whose up-projection has no weights and a bias of 0.5 adds scale * 0.5 to the sublayer's output."""
    lm = toy_lm("llama")
    adapter = Adapter.create(lm, form=form, width=4)
    end = find_places(lm.model, form)[-1].after
    for parameter in adapter.parameters():
        nn.init.zeros_(parameter)
    nn.init.constant_(next(reversed(adapter.adapters.values())).up.bias, 0.5)
    seen = []
    with attach(lm, adapter):
        lm.forward(LOGITS_ROWS)
        handle = lm.model.get_submodule(end).register_forward_hook(lambda m, a, output: seen.append((m, a, output)))
        lm.forward(LOGITS_ROWS)
        handle.remove()
    layer, args, output = seen[0]
    assert torch.equal(output, layer(*args) + (4 * 0.5 if form == "parallel" else 0.5))


def test_a_parallel_adapter_reads_what_the_feed_forward_network_reads() -> None:
    lm = toy_lm("gpt2")
    adapter = noisy(Adapter.create(lm, form="parallel", width=4))
    reads, writes = [], []
    first, last = (lm.model.transformer.h[1].mlp.get_submodule(name) for name in ("c_fc", "c_proj"))
    with attach(lm, adapter):
        one = first.register_forward_hook(lambda m, args, output: reads.append(args[0]))
        two = last.register_forward_hook(lambda m, args, output: writes.append(output - m.forward(*args)))
        lm.forward(LOGITS_ROWS)
        one.remove()
        two.remove()
    bottleneck = adapter.adapters["transformer/h/1/mlp/c_proj"]
    assert torch.allclose(writes[0], 4 * bottleneck(reads[0]), atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ("gpt2", "llama", "t5"))
def test_padding_changes_nothing(name: str, side: str, form: Form) -> None:
    lm = toy_lm(name, padding_side=side)
    check_padding(lm, noisy(Adapter.create(lm, form=form, width=4)))


def test_a_half_precision_lm_keeps_float32_adapters() -> None:
    lm = toy_lm("llama")
    lm = type(lm).from_model(lm.model, lm.tokenizer, dtype="bfloat16")
    adapter, plain = Adapter.create(lm, width=4), logits(lm)
    with attach(lm, adapter):
        assert torch.equal(logits(lm), plain)
        prompt_loss(lm, None, [Example.of((5, 6), (7,))])[0].backward()
    assert {p.dtype for p in adapter.parameters()} == {torch.float32} and plain.dtype == torch.bfloat16
    assert all(p.grad is not None for p in adapter.parameters())


def test_same_seed_same_adapters() -> None:
    lm = toy_lm()
    one, two, other = (Adapter.create(lm, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_bad_settings(tmp_path: Any) -> None:
    lm = toy_lm()
    for settings in ({"form": "wide"}, {"activation": "step"}, {"width": 0}, {"form": "parallel", "cross": True}):
        with pytest.raises(ConfigError, match="expected"):
            Adapter.create(lm, **settings)
    Adapter.create(lm).save(tmp_path, lm)
    with pytest.raises(CheckpointError, match="another LM"):
        Adapter.load(tmp_path, toy_lm(seed=1))
    with pytest.raises(CheckpointError, match="load the LM"):
        Adapter.load(tmp_path, toy_lm("opt"), allow_other_lm=True)
    save_module(tmp_path, {}, {"colour": 1}, lm_fingerprint=lm.fingerprint, kind=KIND)
    with pytest.raises(CheckpointError, match="do not fit this model"):
        Adapter.load(tmp_path, lm)


def test_a_model_of_other_names_is_refused() -> None:
    model = toy_model("llama")
    for block in model.model.layers:
        block.mlp.last = block.mlp.down_proj
        del block.mlp.down_proj
    assert target_modules(model)
    with pytest.raises(ConfigError, match="cannot be told"):
        find_places(model, "pfeiffer")


def test_another_model_at_attaching_is_refused() -> None:
    adapter = Adapter.create(toy_lm("gpt2"))
    lm = toy_lm("llama")
    with pytest.raises(ConfigError, match="made for another model"), attach(lm, adapter):
        pass
