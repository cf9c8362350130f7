"""What all deltas over one flat vector have in common, on every toy architecture."""

from pathlib import Path
from typing import Any

import pytest
import torch

from frozenlm.checkpoint import load_module
from frozenlm.deltas.attach import Delta, attach, target_modules
from frozenlm.deltas.diff_pruning import DiffPruning
from frozenlm.deltas.flat import Flat
from frozenlm.deltas.full_copy import FullCopy
from frozenlm.deltas.intrinsic_dimension import IntrinsicDimension
from frozenlm.deltas.masking import Masking
from frozenlm.deltas.partial_layers import PartialLayers
from frozenlm.deltas.random_subset import RandomSubset
from frozenlm.errors import CheckpointError, ConfigError
from frozenlm.lm_tasks import Example, prompt_loss
from frozenlm.rows import Tokens
from tests.test_frozen import state_of
from tests.toys import ENCODERS, toy_encoder, toy_encoder_model, toy_lm, toy_model

LMS = ("gpt2", "opt", "llama", "t5", "bart")
EXAMPLES = [Example.of(range(5, 10 + 3 * k), [40 + k, 41]) for k in range(3)]


def pruned_diff(host) -> DiffPruning:
    """As after a first phase in which every weight moved a little, the later ones more."""
    gated = DiffPruning.create(host, structured=None, targets="blocks")
    with torch.no_grad():
        gated.values.copy_(torch.linspace(1e-5, 1e-4, len(gated.values)))
    return gated.pruned()


MAKERS: dict[str, Any] = {
    "diff_pruning": lambda host: DiffPruning.create(host, structured=None),
    "diff_pruning_by_tensor": lambda host: DiffPruning.create(host),
    "diff_pruning_by_layer": lambda host: DiffPruning.create(host, structured="layer"),
    "pruned_diff": lambda host: pruned_diff(host),
    "masking": lambda host: Masking.create(host, seed=3),
    "partial_layers": lambda host: PartialLayers.create(host),
    "random_subset": lambda host: RandomSubset.create(host, share=0.05, seed=3),
    "fastfood": lambda host: IntrinsicDimension.create(host, dimension=50, scales=None, seed=3),
    "said": lambda host: IntrinsicDimension.create(host, dimension=50, seed=3),
    "dense": lambda host: IntrinsicDimension.create(host, dimension=50, projection="dense", seed=3),
    "full_copy": FullCopy.create,
}
KEYS = {
    "diff_pruning": {"values", "alpha"},
    "diff_pruning_by_tensor": {"values", "alpha", "group_alpha"},
    "diff_pruning_by_layer": {"values", "alpha", "group_alpha"},
    "pruned_diff": {"values", "index"},
    "masking": {"bits"},
    "partial_layers": {"offsets"},
    "random_subset": {"values"},
    "fastfood": {"theta"},
    "said": {"theta", "scales"},
    "dense": {"theta", "scales"},
    "full_copy": {"weights"},
}
STARTS_AS_THE_LM = [name for name in MAKERS if name not in ("masking", "pruned_diff")]
every_delta = pytest.mark.parametrize("name", MAKERS)
every_lm = pytest.mark.parametrize("lm_name", LMS)


def logits(lm, delta=None) -> torch.Tensor:
    rows = [[Tokens(tuple(range(20, 32)))]]
    decoder_rows = [[Tokens((5, 6, 7, 8))]] if lm.kind == "encoder-decoder" else None
    with torch.no_grad(), attach(lm, *([] if delta is None else [delta])):
        return lm.forward(rows, decoder_rows=decoder_rows).logits[0]


def moved(delta, size: float = 0.02):
    """The delta in eval mode, away from where it began."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in delta.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * size)
    return delta.eval()


def loss(lm, delta) -> torch.Tensor:
    with attach(lm, delta):
        value, units = prompt_loss(lm, None, EXAMPLES)
    return value + units * delta.penalty() if hasattr(delta, "penalty") else value


@every_lm
@pytest.mark.parametrize("name", STARTS_AS_THE_LM)
def test_it_begins_as_the_lm(name: str, lm_name: str) -> None:
    lm = toy_lm(lm_name)
    assert torch.equal(logits(lm, MAKERS[name](lm)), logits(lm))


@every_delta
@pytest.mark.parametrize("lm_name", ["llama", "t5"])
def test_training_moves_every_parameter_and_not_the_lm(name: str, lm_name: str) -> None:
    lm = toy_lm(lm_name)
    delta, before = MAKERS[name](lm), state_of(lm.model)
    assert isinstance(delta, Delta)
    start = {key: parameter.detach().clone() for key, parameter in delta.named_parameters()}
    optimizer = torch.optim.AdamW(delta.parameters(), lr=0.01)
    first = loss(lm, delta.eval()).item()
    delta.train()
    for _ in range(5):
        optimizer.zero_grad()
        loss(lm, delta).backward()
        optimizer.step()
    assert [key for key, parameter in delta.named_parameters() if torch.equal(parameter, start[key])] == []
    assert loss(lm, delta.eval()).item() < first
    assert state_of(lm.model) == before
    lm.assert_unchanged()


@every_lm
@every_delta
def test_saved_and_loaded_it_gives_the_same_bits(tmp_path: Path, name: str, lm_name: str) -> None:
    lm = toy_lm(lm_name)
    delta = moved(MAKERS[name](lm))
    delta.save(tmp_path, lm)
    loaded = type(delta).load(tmp_path, lm).eval()
    found = logits(lm, loaded)
    assert torch.equal(found, logits(lm, delta)) and not torch.equal(found, logits(lm))
    tensors, _ = load_module(tmp_path, kind=name_of(delta), lm_fingerprint=lm.fingerprint)
    assert set(tensors) == KEYS[name]
    with pytest.raises(CheckpointError, match="trained for another LM"):
        type(delta).load(tmp_path, toy_lm(lm_name, seed=1))
    other = type(delta).load(tmp_path, toy_lm(lm_name, seed=1), allow_other_lm=True)
    assert {key: p.shape for key, p in other.named_parameters()} == {
        key: p.shape for key, p in delta.named_parameters()
    }


def name_of(delta) -> str:
    from importlib import import_module

    return import_module(type(delta).__module__).KIND


@pytest.mark.parametrize("name", [name for name in MAKERS if name not in ("fastfood", "said", "dense")])
def test_it_refuses_a_model_of_another_size(tmp_path: Path, name: str) -> None:
    lm = toy_lm("gpt2")
    MAKERS[name](lm).save(tmp_path, lm)
    delta = MAKERS[name](lm)
    with pytest.raises(CheckpointError, match="model it was trained for"):
        type(delta).load(tmp_path, toy_lm("gpt2", n_embd=16), allow_other_lm=True)


@every_delta
@pytest.mark.parametrize("lm_name", ["gpt2", "llama", "t5"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_alone_are_rows_in_a_batch(name: str, lm_name: str, side: str) -> None:
    lm = toy_lm(lm_name, padding_side=side)
    delta = moved(MAKERS[name](lm))
    with torch.no_grad(), attach(lm, delta):
        together = lm.token_logprobs([[Tokens(e.context)] for e in EXAMPLES], [e.answer for e in EXAMPLES])
        alone = [lm.token_logprobs([[Tokens(e.context)]], [e.answer])[0] for e in EXAMPLES]
    for one, other in zip(together, alone, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@every_delta
@pytest.mark.parametrize("encoder_name", ENCODERS)
def test_encoders_are_hosts(tmp_path: Path, name: str, encoder_name: str) -> None:
    encoder = toy_encoder(encoder_name)
    before, plain = state_of(encoder.model), encoder.vectors(["who was the king", "a dog"])
    delta = MAKERS[name](encoder).eval()
    with torch.no_grad(), attach(encoder, delta):
        found = encoder.vectors(["who was the king", "a dog"])
    assert torch.equal(found, plain) == (name in STARTS_AS_THE_LM)
    with attach(encoder, delta):
        encoder.vectors(["who was the king", "a dog"]).sum().backward()
    assert all(parameter.grad is not None for parameter in delta.parameters())
    moved(delta).save(tmp_path, encoder)
    loaded = type(delta).load(tmp_path, encoder).eval()
    with torch.no_grad():
        with attach(encoder, delta):
            found = encoder.vectors(["a dog"])
        with attach(encoder, loaded):
            assert torch.equal(encoder.vectors(["a dog"]), found)
    assert state_of(encoder.model) == before


@pytest.mark.parametrize("name", STARTS_AS_THE_LM)
def test_a_bfloat16_lm_is_changed_in_float32(name: str) -> None:
    from frozenlm.lm import FrozenLM
    from tests.toys import toy_tokenizer

    lm = FrozenLM.from_model(toy_model("llama"), toy_tokenizer(), dtype="bfloat16")
    delta = MAKERS[name](lm).eval()
    assert {parameter.dtype for parameter in delta.parameters()} == {torch.float32}
    assert torch.equal(logits(lm, delta), logits(lm))
    loss(lm, delta).backward()
    lm.assert_unchanged()


def test_two_deltas_add_up() -> None:
    lm = toy_lm("opt")
    one, two = moved(PartialLayers.create(lm)), moved(RandomSubset.create(lm, share=0.05))
    with torch.no_grad():
        with attach(lm, one, two):
            first = prompt_loss(lm, None, EXAMPLES)[0]
        with attach(lm, two, one):
            assert torch.allclose(prompt_loss(lm, None, EXAMPLES)[0], first, atol=1e-4)


def test_what_targets_mean() -> None:
    model = toy_model("gpt2")
    # gpt2, H 32, F 128, V 128, T 96: a block has 12 H^2 + 13 H weights, then come two embeddings and the last norm.
    block = 12 * 32 * 32 + 13 * 32
    assert Flat.of(model, "blocks").total == 2 * block
    assert Flat.of(model, "model").total == 2 * block + (128 + 96) * 32 + 2 * 32
    assert Flat.of(model, "all").total == 2 * 12 * 32 * 32
    assert Flat.of(model, "attention").total == 2 * 4 * 32 * 32
    assert Flat.of(model, ["c_fc"]).total == 2 * 4 * 32 * 32
    assert Flat.of(model, "all").names == tuple(f"{name}.weight" for name in target_modules(model))
    bert = toy_encoder_model("bert")
    assert not [name for name in Flat.of(bert, "model").names if name.startswith("pooler")]
    with pytest.raises(ConfigError, match="no dense layer"):
        Flat.of(model, ["q_proj"])
    model.transformer.wte.weight = torch.nn.Parameter(torch.zeros(128, 32, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ConfigError, match="floating-point"):
        Flat.of(model, "model")


def test_tied_weights_are_one() -> None:
    model = toy_model("qwen2")
    names = Flat.of(model, "model").names
    assert "model.embed_tokens.weight" in names and "lm_head.weight" not in names


def test_groups() -> None:
    model = toy_model("llama")
    flat = Flat.of(model, "model")
    by_layer = dict(zip(flat.names, flat.groups(model, "layer"), strict=True))
    assert by_layer["model.embed_tokens.weight"] == by_layer["model.norm.weight"] == by_layer["lm_head.weight"] == 0
    assert {group for name, group in by_layer.items() if "layers.0." in name} == {1}
    assert {group for name, group in by_layer.items() if "layers.1." in name} == {2}
    assert flat.groups(model, "tensor") == list(range(len(flat.names)))
    with pytest.raises(ConfigError, match="expected tensor or layer"):
        flat.groups(model, "head")


def test_values_reach_the_weights_of_their_indices() -> None:
    model = toy_model("llama")
    flat = Flat.named(model, ["model.norm.weight", "model.layers.0.input_layernorm.weight"])  # 32 and 32
    found = flat.added_at(model, torch.tensor([33, 63]), torch.tensor([5.0, 7.0]))
    assert set(found) == {"model.layers.0.input_layernorm.weight"}
    change = found["model.layers.0.input_layernorm.weight"] - model.model.layers[0].input_layernorm.weight
    assert torch.allclose(change[[1, 31]], torch.tensor([5.0, 7.0]), atol=1e-5) and change.count_nonzero() == 2
