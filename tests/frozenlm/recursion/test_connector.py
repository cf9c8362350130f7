"""The connector by itself: closed gate, causality, padding, single tokens, counting, saving."""

import json
from pathlib import Path

import pytest
import torch

from frozenlm.errors import CheckpointError, ConfigError
from frozenlm.recursion.connector import KIND, Connector
from frozenlm.recursion.sizes import ConnectorSizes
from tests.frozenlm.recursion.connectors import open_connector
from tests.toys import ENCODER_DECODERS, toy_lm

SIZES = (
    {},
    {"depth": 2, "width": 24, "heads": 3, "feed_forward": 20, "norm": "layer", "gate": "scalar"},
    {"passes": 4, "shared": False, "width": 8},
)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def inputs():
    """embeds [2, 5, 32], states [2, 5, 32], mask [2, 5]: rows of 5 and 3 tokens, padded on the right."""
    return numbers(2, 5, 32), numbers(2, 5, 32, seed=1), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_a_closed_gate_passes_the_embeddings_on_exactly(inputs, sizes):
    embeds, states, mask = inputs
    connector = Connector.create(toy_lm(), ConnectorSizes(**sizes))
    for turn in range(connector.sizes.passes - 1):
        assert torch.equal(connector(embeds, states, mask, turn=turn), embeds)


@torch.no_grad()
def test_an_open_gate_of_one_adds_about_as_much_as_an_embedding_holds(inputs):
    embeds, states, mask = inputs
    lm = toy_lm()
    connector = open_connector(lm, opened=1.0, width=256)
    table = lm.model.get_input_embeddings().weight
    assert connector.embedding_rms == pytest.approx(float(table.square().mean().sqrt()), rel=1e-5)
    added = (connector(embeds, states, mask) - embeds)[mask.bool()]
    assert float(added.square().mean().sqrt()) == pytest.approx(connector.embedding_rms, rel=0.25)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_column_t_depends_on_columns_up_to_t_only(inputs, sizes):
    embeds, states, mask = inputs
    connector = open_connector(toy_lm(), **sizes)
    before = connector(embeds, states, mask)
    states[:, 2, ::2] += 1
    after = connector(embeds, states, mask)
    assert torch.equal(before[:, :2], after[:, :2])
    assert not torch.allclose(before[0, 2:], after[0, 2:]) and not torch.allclose(before[0, 4], after[0, 4])


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_padding_and_batch_mates_do_not_matter(inputs, sizes):
    embeds, states, mask = inputs
    connector = open_connector(toy_lm(), **sizes)
    alone = connector(embeds[1:, :3], states[1:, :3], mask[1:, :3])[0]
    together = connector(embeds, states, mask)[1, :3]
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    left = connector(embeds.roll(2, 1), states.roll(2, 1), mask.roll(2, 1))[1, 2:]
    torch.testing.assert_close(left, alone, atol=1e-5, rtol=0)
    states[1, 3:] = 1e6  # what stands on padding
    torch.testing.assert_close(connector(embeds, states, mask)[1, :3], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("shift", [0, 2], ids=["padding on the right", "on the left"])
def test_token_by_token_equals_all_at_once(inputs, sizes, shift):
    embeds, states, mask = inputs
    embeds, states, mask = embeds.roll(shift, 1), states.roll(shift, 1), mask.roll(shift, 1)
    connector = open_connector(toy_lm(), **sizes)
    more_embeds, more_states = numbers(2, 3, 32, seed=2), numbers(2, 3, 32, seed=3)
    whole = connector(
        torch.cat([embeds, more_embeds], dim=1),
        torch.cat([states, more_states], dim=1),
        torch.cat([mask, torch.ones(2, 3, dtype=torch.long)], dim=1),
    )
    first, state = connector.start(embeds, states, mask, turn=0)
    torch.testing.assert_close(first[mask.bool()], whole[:, :5][mask.bool()], atol=1e-5, rtol=0)
    for column in range(2):
        one = state.step(more_embeds[:, column], more_states[:, column])
        torch.testing.assert_close(one, whole[:, 5 + column], atol=1e-5, rtol=0)
    state.select(torch.tensor([1, 1, 0]))
    chosen = [1, 1, 0]
    one = state.step(more_embeds[chosen, 2], more_states[chosen, 2])
    torch.testing.assert_close(one, whole[chosen, 7], atol=1e-5, rtol=0)


def test_a_connector_for_each_pass_or_one_for_all(inputs):
    embeds, states, mask = inputs
    lm = toy_lm()
    own, shared = open_connector(lm, passes=3, shared=False), open_connector(lm, passes=3)
    assert [len(own.bridges), len(shared.bridges)] == [2, 1]
    assert not torch.allclose(own(embeds, states, mask, turn=0), own(embeds, states, mask, turn=1))
    assert torch.equal(shared(embeds, states, mask, turn=0), shared(embeds, states, mask, turn=1))


def test_parameter_count():
    # H = H' = 32, W 8, F 10: 32 + 32*8 + 1 * (2*8 + 4*64 + 2*8*10) + 8 + 8*32 + 32
    small = ConnectorSizes(width=8, feed_forward=10)
    assert Connector.parameter_count(32, 32, small) == 32 + 256 + (16 + 256 + 160) + 8 + 256 + 32 == 1016
    # layer norms have two vectors, a scalar gate one number, and three passes two connectors
    other = ConnectorSizes(width=8, feed_forward=10, norm="layer", gate="scalar", passes=3, shared=False)
    assert Connector.parameter_count(32, 32, other) == 2 * (64 + 256 + (32 + 256 + 160) + 16 + 256 + 1)
    for sizes in SIZES:
        made = Connector.create(toy_lm(), ConnectorSizes(**sizes))
        counted = sum(p.numel() for p in made.parameters())
        assert counted == Connector.parameter_count(32, 32, ConnectorSizes(**sizes))


def test_the_seed_decides_and_the_global_random_state_stays():
    lm = toy_lm()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, same, other = Connector.create(lm, seed=1), Connector.create(lm, seed=1), Connector.create(lm, seed=2)
    key = "bridges.0.enter.1.weight"
    assert torch.equal(one.state_dict()[key], same.state_dict()[key])
    assert not torch.equal(one.state_dict()[key], other.state_dict()[key])
    assert torch.equal(before, torch.get_rng_state())


def test_dropout_is_for_training_only(inputs):
    connector = open_connector(toy_lm(), dropout=0.5)
    assert not torch.equal(connector(*inputs), connector(*inputs))
    connector.eval()
    assert torch.equal(connector(*inputs), connector(*inputs))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"passes": 1}, "passes is 1; expected at least 2"),
        ({"depth": 0}, "depth is 0"),
        ({"width": 0}, "width is 0"),
        ({"heads": 0}, "heads is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"norm": "batch"}, "norm is 'batch'"),
        ({"gate": "open"}, "gate is 'open'"),
        ({"width": 10, "heads": 3}, "heads is 3; expected a divisor of the width 10"),
    ],
)
def test_bad_sizes_get_one_clear_error(sizes, message):
    with pytest.raises(ConfigError, match=message):
        Connector.create(toy_lm(), ConnectorSizes(**sizes))


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_an_encoder_decoder_is_refused(name):
    with pytest.raises(ConfigError, match=r"needs a decoder-only LM.*encoder-decoder"):
        Connector.create(toy_lm(name))


# --- saving


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_saved_and_loaded(tmp_path: Path, inputs, sizes):
    lm = toy_lm()
    connector = open_connector(lm, **sizes)
    connector.save(tmp_path, lm)
    again = Connector.load(tmp_path, lm, passes=connector.sizes.passes)
    assert again.sizes == connector.sizes
    assert torch.equal(again(*inputs), connector(*inputs))
    record = json.loads((tmp_path / "module.json").read_text())
    assert record["kind"] == KIND and record["lm_fingerprint"] == lm.fingerprint
    assert record["config"]["sizes"]["passes"] == connector.sizes.passes


def test_another_lm_or_number_of_passes_is_refused(tmp_path: Path):
    lm = toy_lm()
    open_connector(lm, passes=3).save(tmp_path, lm)
    with pytest.raises(CheckpointError, match="trained for 3 passes, but 2 are wanted"):
        Connector.load(tmp_path, lm, passes=2)
    with pytest.raises(CheckpointError, match="trained for another LM"):
        Connector.load(tmp_path, toy_lm(seed=1))
    Connector.load(tmp_path, toy_lm(seed=1), allow_other_lm=True)
    with pytest.raises(CheckpointError, match="embeddings 32 wide"):
        Connector.load(tmp_path, toy_lm(n_embd=16), allow_other_lm=True)


def test_a_record_that_does_not_fit_its_tensors_is_refused(tmp_path: Path):
    from frozenlm.checkpoint import load_module, save_module

    lm = toy_lm()
    open_connector(lm).save(tmp_path, lm)
    tensors, config = load_module(tmp_path, kind=KIND)
    for damaged in (
        {**config, "sizes": {**config["sizes"], "width": 8}},
        {**config, "sizes": {**config["sizes"], "passes": 1}},
        {**config, "sizes": {**config["sizes"], "colour": "red"}},
        {"state_size": 32},
    ):
        save_module(tmp_path, tensors, damaged, lm_fingerprint=lm.fingerprint, kind=KIND)
        with pytest.raises(CheckpointError, match="does not hold a whole connector"):
            Connector.load(tmp_path, lm)
