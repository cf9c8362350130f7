"""peft's methods around a frozen model: what peft computes, and nothing of the model in what is trained."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from frozenlm.checkpoint import load_module, save_module
from frozenlm.deltas.adapter import Adapter
from frozenlm.deltas.attach import attach
from frozenlm.deltas.bitfit import BitFit
from frozenlm.deltas.lora import KIND, PeftDelta
from frozenlm.deltas.peft_methods import METHODS, parameter_count
from frozenlm.errors import CheckpointError, ConfigError, FrozenViolationError
from frozenlm.lm_tasks import Example, prompt_loss
from tests.frozenlm.deltas.checks import check_padding, logits, noisy
from tests.test_frozen import state_of
from tests.toys import ENCODERS, NAMES, toy_encoder, toy_lm, toy_model

PAIRS = [(m, name) for m in METHODS for name in NAMES if name != "gpt2" or m not in ("loha", "lokr")]
every_pair = pytest.mark.parametrize(("method", "name"), PAIRS)


def made(host: Any, method: str = "lora", **settings: Any) -> PeftDelta:
    sizes = {} if method == "ia3" else {"r": 3}
    return PeftDelta.create(host, method=method, **{**sizes, **settings})


def plain_logits(model: Any) -> torch.Tensor:
    more = {"decoder_input_ids": torch.tensor([[0, 20, 21]])} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=torch.tensor([[5, 6, 7, 8, 9]]), **more).logits[0]


def fill_like(theirs: PeftModel, delta: PeftDelta) -> None:
    """Puts our tensors into peft's own model, name by name."""
    ours, filled = delta.by_name(), 0
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if parameter.requires_grad:
                short = name.removeprefix("base_model.model.").replace(".default", "")
                parameter.copy_(ours[short.replace("magnitude_vector.weight", "magnitude_vector")])
                filled += 1
    assert filled == len(ours)


@every_pair
def test_identity_at_first_and_equal_to_peft(method: str, name: str) -> None:
    lm = toy_lm(name)
    before, plain = state_of(lm.model), logits(lm)
    delta = made(lm, method)
    with attach(lm, delta):
        assert torch.equal(logits(lm), plain)
    noisy(delta)
    theirs = get_peft_model(toy_model(name), delta.peft_config()).eval()
    fill_like(theirs, delta)
    with attach(lm, delta):
        assert torch.equal(logits(lm), plain_logits(theirs)) and not torch.equal(logits(lm), plain)
        assert torch.equal(plain_logits(lm.model), plain_logits(theirs))
    assert torch.equal(logits(lm), plain) and state_of(lm.model) == before


@every_pair
def test_counted_saved_and_loaded(tmp_path: Path, method: str, name: str) -> None:
    lm = toy_lm(name)
    delta = noisy(made(lm, method))
    shapes = list(delta.layers.values())
    counted = parameter_count(method, shapes, r=3, rescaled_inputs=len(delta.rescaled_inputs))
    assert sum(p.numel() for p in delta.parameters()) == counted
    delta.save(tmp_path, lm)
    assert set(load_module(tmp_path, kind=KIND)[0]) == set(delta.state_dict())
    with attach(lm, delta):
        changed = logits(lm)
    with attach(lm, PeftDelta.load(tmp_path, lm)):
        assert torch.equal(logits(lm), changed)


def test_numbers_of_parameters() -> None:
    assert parameter_count("lora", [(4, 6)], r=2) == 2 * (4 + 6)
    assert parameter_count("dora", [(4, 6)], r=2) == 2 * (4 + 6) + 6
    assert parameter_count("loha", [(4, 6)], r=2) == 2 * 2 * (4 + 6)
    assert parameter_count("vera", [(4, 6)], r=2) == 2 + 6
    assert parameter_count("lokr", [(16, 64)], r=1) == 8 * 4 + (8 + 4)  # W1 [8, 4], W2 [8, 4] = [8, 1] [1, 4]
    assert parameter_count("ia3", [(4, 6), (9, 4)], rescaled_inputs=1) == 6 + 9


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_is_adapted(name: str, method: str) -> None:
    encoder = toy_encoder(name)
    delta, plain = made(encoder, method), encoder.vectors(["who was king"])
    with attach(encoder, delta):
        assert torch.equal(encoder.vectors(["who was king"]), plain)
        noisy(delta)
        alone = encoder.vectors(["who was king"])
        assert not torch.equal(alone, plain)
        assert torch.allclose(encoder.vectors(["who was king", "the cat sat on the mat"])[:1], alone, atol=1e-5)
    encoder.assert_unchanged()


@pytest.mark.parametrize("side", ["left", "right"])
@every_pair
def test_padding_changes_nothing(method: str, name: str, side: str) -> None:
    lm = toy_lm(name, padding_side=side)
    check_padding(lm, noisy(made(lm, method)))


@pytest.mark.parametrize("method", METHODS)
def test_a_half_precision_lm_keeps_float32_tensors(method: str) -> None:
    lm = toy_lm("llama")
    lm = type(lm).from_model(lm.model, lm.tokenizer, dtype="bfloat16")
    delta, plain = made(lm, method), logits(lm)
    with attach(lm, delta):
        assert torch.equal(logits(lm), plain)
        prompt_loss(lm, None, [Example.of((5, 6), (7,))])[0].backward()
    assert {(p.dtype, p.grad is None) for p in delta.parameters()} == {(torch.float32, False)}


def test_dropout_is_active_in_training_mode_only() -> None:
    lm = toy_lm("llama")
    delta = noisy(made(lm, lora_dropout=0.5))

    def twice() -> bool:
        with attach(lm, delta):
            assert not any(part.training for name, part in lm.model.named_modules() if name.endswith("base_layer"))
            return torch.equal(logits(lm), logits(lm))

    assert not twice()
    delta.eval()
    assert twice()
    delta.train()
    assert not twice()


def test_targets() -> None:
    lm = toy_lm("llama")
    assert len(made(lm).layers) == 2 * 2 and len(made(lm, targets="all").layers) == 2 * 7
    assert tuple(made(lm, targets=["o_proj"]).layers) == tuple(f"model.layers.{k}.self_attn.o_proj" for k in (0, 1))
    ia3 = made(lm, "ia3")
    assert ia3.rescaled_inputs == tuple(f"model.layers.{k}.mlp.down_proj" for k in (0, 1)) and len(ia3.layers) == 3 * 2
    assert {name.split(".")[-1] for name in made(toy_lm("gpt2"), "ia3").layers} == {"c_attn", "c_proj"}


def test_copies_hold_nothing_of_the_model() -> None:
    lm = toy_lm()
    delta = noisy(made(lm))
    for other in (copy.deepcopy(delta), pickle.loads(pickle.dumps(delta))):
        with attach(lm, delta):
            expected = logits(lm)
        with attach(lm, other):
            assert torch.equal(logits(lm), expected)
    assert len(pickle.dumps(delta)) < 20_000
    for part in delta.tuner().modules():
        assert not any(part is own for own in lm.model.modules())


def test_one_delta_is_attached_once() -> None:
    lm = toy_lm()
    delta = made(lm)
    with pytest.raises(ConfigError, match="attached twice"), attach(lm, delta, delta):
        pass
    lm.assert_unchanged()


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2)])
def test_several_deltas_add_up_in_any_order(order: tuple[int, ...]) -> None:
    lm = toy_lm("opt")
    before = state_of(lm.model)
    targets = ["fc2"]
    deltas = [
        noisy(made(lm, targets=targets), scale=0.1),
        noisy(made(lm, "loha", targets=targets), scale=0.1),
        noisy(BitFit.create(lm), scale=0.1),
        noisy(Adapter.create(lm, form="parallel", width=4), scale=0.1),
    ]
    with attach(lm, *deltas):
        expected = logits(lm)
    with attach(lm, *(deltas[k] for k in order)):
        assert torch.allclose(logits(lm), expected, atol=1e-4)
    with attach(lm, *deltas[:3]):
        assert not torch.allclose(logits(lm), expected, atol=1e-4)
    assert state_of(lm.model) == before


def test_merging_is_refused() -> None:
    lm = toy_lm()
    delta = made(lm)
    with attach(lm, delta), pytest.raises(FrozenViolationError, match="copy of the model"):
        lm.model.get_submodule(next(iter(delta.layers))).merge()
    lm.assert_unchanged()


def test_an_exception_puts_the_layers_back() -> None:
    lm = toy_lm()
    delta, layers = made(lm), dict(lm.model.named_modules())
    with pytest.raises(RuntimeError, match="midway"), attach(lm, delta):
        assert dict(lm.model.named_modules()).keys() != layers.keys()
        raise RuntimeError("midway")
    assert all(lm.model.get_submodule(name) is part for name, part in layers.items())


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "eva", "lora_ga"])
def test_initialisations_that_rewrite_the_model_are_refused(init: str) -> None:
    with pytest.raises(ConfigError, match="the model stays as it is"):
        made(toy_lm(), init_lora_weights=init)


def test_bad_settings(tmp_path: Path) -> None:
    lm = toy_lm()
    with pytest.raises(ConfigError, match="expected one of lora"):
        made(lm, "oft")
    with pytest.raises(ConfigError, match="no setting 'rank'"):
        made(lm, rank=3)
    with pytest.raises(ConfigError, match="peft cannot make lora"):
        made(lm, r=0)
    for method in ("loha", "lokr"):
        with pytest.raises(
            ConfigError, match=f"{method} is not defined for Conv1D layers.* use lora, rslora, dora, vera"
        ):
            made(lm, method)
    delta = made(lm)
    delta.save(tmp_path, lm)
    with pytest.raises(CheckpointError, match="another LM"):
        PeftDelta.load(tmp_path, toy_lm(seed=1))
    with pytest.raises(CheckpointError, match="do not fit this model"):
        PeftDelta.load(tmp_path, toy_lm("opt"), allow_other_lm=True)
    with pytest.raises(ConfigError, match="another model"), attach(toy_lm("opt"), delta):
        pass
    save_module(tmp_path, {}, {"colour": 1}, lm_fingerprint=lm.fingerprint, kind=KIND)
    with pytest.raises(CheckpointError, match="do not fit this model"):
        PeftDelta.load(tmp_path, lm)


def test_same_seed_same_tensors_and_the_callers_random_numbers_stay() -> None:
    lm = toy_lm()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, two, other = (made(lm, seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_what_is_trained_survives_a_change_of_dtype() -> None:
    lm = toy_lm()
    delta = noisy(made(lm))
    with attach(lm, delta):
        expected = logits(lm)
    delta.to(torch.float64).to(torch.float32)
    delta.tensors = nn.ParameterDict({name: nn.Parameter(p.detach().clone()) for name, p in delta.tensors.items()})
    with attach(lm, delta):
        assert torch.equal(logits(lm), expected)
