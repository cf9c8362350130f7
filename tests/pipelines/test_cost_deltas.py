"""Cost of deltas around LMs and encoders, and of a comparison of methods."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from frozenlm.architectures import meta_model
from frozenlm.lm import FrozenLM
from frozenlm.shapes import ModelShape
from pipelines.build import frozen_encoder
from pipelines.build_classification import new_tuned
from pipelines.build_deltas import new_delta
from pipelines.cli import main
from pipelines.config_deltas import DELTA_KINDS, Delta
from pipelines.cost import cost
from pipelines.cost_deltas import delta_sizes, projection_flops, with_delta
from pipelines.cost_types import Assumed
from pipelines.errors import ConfigError
from pipelines.loader import load_config
from tests.pipelines import test_classification
from tests.pipelines.toy_multitask import configured, make_world
from tests.pipelines.training.test_deltas import BLOCKS
from tests.toys import EMBEDDED, toy_encoder, toy_lm

MORE: list[dict[str, Any]] = [
    {"kind": "adapter", "form": "houlsby", "width": 4, "cross": True},
    {"kind": "adapter", "form": "parallel", "width": 4},
    {"kind": "lora", "rank": 3, "targets": "all"},
    {"kind": "bitfit", "which": "all", "norms": False, "extra": True},
    {"kind": "prefix_tuning", "length": 2, "reparametrise": False},
    {"kind": "prefix_tuning", "length": 2, "init": {"kind": "random"}},
    {"kind": "p_tuning_v2", "length": 2, "init": {"kind": "zeros"}},
    {"kind": "diff_pruning", "structured": None, "targets": "blocks"},
    {"kind": "intrinsic_dimension", "dimension": 9, "scales": None, "projection": "dense", "targets": "attention"},
]
H, LAYERS, FIXED = 32, 2, Assumed(input_tokens=10, answer_tokens=2)
CONFIGS = sorted(path.name for path in (Path(__file__).parents[2] / "configs" / "delta").glob("*.yaml"))


def block_of(values: dict[str, Any]) -> Any:
    return TypeAdapter(Delta).validate_python(values | {"name": "d"})


def count(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture(scope="module")
def hosts() -> list[tuple[Any, Any]]:
    """Toy models, each with itself without weights."""
    lms = [(lm, meta_model(lm.model.config, "lm")) for lm in (toy_lm("opt"), toy_lm("bart"))]
    encoder = toy_encoder("bert")
    return [*lms, (encoder, meta_model(encoder.model.config, "encoder"))]


@pytest.mark.parametrize("values", [*BLOCKS, *MORE], ids=lambda values: values["kind"])
def test_trained_parameters_are_those_of_the_module(hosts: list[tuple[Any, Any]], values: dict[str, Any]) -> None:
    for host, meta in hosts:
        assert delta_sizes(block_of(values), meta).trained == count(new_delta(block_of(values), host, 0))
    assert {one["kind"] for one in BLOCKS} == set(DELTA_KINDS)


@pytest.fixture(scope="module")
def embedded() -> FrozenLM:
    return FrozenLM.load(EMBEDDED)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_of_a_delta(name: str, embedded: FrozenLM) -> None:
    config = load_config(f"delta/{name}")
    found = cost(config, FIXED)
    if config.delta is None:
        assert found["trained_parameters"] == 0
        return
    assert found["trained_parameters"] == count(new_delta(config.delta, embedded, 0))
    assert found["lm_parameters"] == count(embedded.model)
    assert found["flops_per_input"] == sum(part["flops"] for part in found["components"].values())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("cost_deltas"), "opt")


def added(world: Path, **block: Any) -> tuple[int, dict[str, Any]]:
    found = cost(configured(world, prompt=None, delta={"name": "d"} | block), FIXED)
    return found["components"]["delta"]["flops"], found


def test_what_a_pass_computes_more(world: Path) -> None:
    """10 tokens are read and one of the answer; a multiply-add is 2 FLOPs."""
    tokens, one_pass = 10 + 1, cost(configured(world, prompt=None), FIXED)["flops_per_input"]
    lora, found = added(world, kind="lora", rank=3)
    assert lora == tokens * 2 * found["trained_parameters"]  # two matrices at queries and values of each layer
    assert found["flops_per_input"] == one_pass + lora and found["flops_one_pass"] == one_pass
    assert found["flops_ratio_to_one_pass"] == 1 + lora / one_pass
    adapters, _ = added(world, kind="adapter", form="pfeiffer", width=4)
    assert adapters == tokens * 2 * LAYERS * 2 * H * 4  # without the biases
    for kind in ("prefix_tuning", "p_tuning_v2"):
        prefix, _ = added(world, kind=kind, length=5)
        assert prefix == tokens * LAYERS * 2 * 2 * 5 * H  # scores and sums over 5 more keys
    assert added(world, kind="ia3")[0] == 0


@pytest.mark.parametrize(
    "kind", ["bitfit", "diff_pruning", "masking", "partial_layers", "random_subset", "full_copy", "intrinsic_dimension"]
)
def test_weights_once_made_cost_nothing_more(world: Path, kind: str) -> None:
    flops, found = added(world, kind=kind, **({"dimension": 50} if kind == "intrinsic_dimension" else {}))
    assert flops == 0 and found["flops_ratio_to_one_pass"] == 1
    assert bool(found["not_counted"]) == (kind != "full_copy")
    assert any("FLOPs in matrix products" in line for line in found["not_counted"]) == (kind == "intrinsic_dimension")


def test_a_projection_by_hand() -> None:
    assert projection_flops(2048, 10, "dense") == 2 * 2048 * 10
    # Blocks of 1024, so H is two matrices of width 32; a multiply-add is 2, and H is applied twice.
    assert projection_flops(2048, 10, "fastfood") == 2 * 2 * 2048 * (32 + 32)
    assert projection_flops(2049, 10, "fastfood") == 2 * 2 * 3 * 1024 * (32 + 32)
    assert projection_flops(2048, 2000, "fastfood") == 2 * 2 * 2048 * (32 + 32 + 2)


def test_what_is_served_is_not_all_that_is_trained(world: Path) -> None:
    kept = added(world, kind="diff_pruning", share=0.01)[1]["components"]["delta"]
    network = added(world, kind="prefix_tuning", length=5, middle_size=8)[1]["components"]["delta"]
    assert kept["parameters"] < kept["trained_parameters"] / 100  # of values and gates, a hundredth of the values
    assert network["parameters"] == LAYERS * 2 * 5 * H
    assert network["trained_parameters"] == 5 * H + (H + 1) * 8 + (8 + 1) * LAYERS * 2 * H


def test_a_prefix_of_an_encoder_decoder_stands_at_three_places() -> None:
    model = meta_model(toy_lm("bart").model.config, "lm")
    alone = ModelShape.of_lm(model)
    tuned = with_delta(block_of({"kind": "p_tuning_v2", "length": 5}), model, alone)
    more = LAYERS * 2 * 2 * 5 * H
    assert tuned.decoder is not None and alone.decoder is not None
    assert tuned.body.token == alone.body.token + more
    assert tuned.decoder.token == alone.decoder.token + 2 * more  # its own keys, and those of the encoder's output
    assert tuned.crossing == alone.crossing


@pytest.mark.parametrize("chosen", [["decoder"], ["encoder", "cross"], ["cross"]])
@pytest.mark.parametrize("kind", ["prefix_tuning", "p_tuning_v2"])
def test_only_the_places_asked_for_are_counted(kind: str, chosen: list[str]) -> None:
    lm = toy_lm("bart")
    model = meta_model(lm.model.config, "lm")
    block = block_of({"kind": kind, "length": 5, "places": chosen})
    assert delta_sizes(block, model).trained == count(new_delta(block, lm, 0))
    assert delta_sizes(block, model).served == len(chosen) * LAYERS * 2 * 5 * H
    alone, tuned = ModelShape.of_lm(model), with_delta(block, model, ModelShape.of_lm(model))
    more = LAYERS * 2 * 2 * 5 * H
    assert tuned.decoder is not None and alone.decoder is not None
    assert tuned.body.token == alone.body.token + ("encoder" in chosen) * more
    assert tuned.decoder.token == alone.decoder.token + len({"decoder", "cross"} & set(chosen)) * more


@pytest.mark.parametrize("delta", test_classification.DELTAS, ids=lambda d: "head" if d is None else d["kind"])
def test_an_encoder_with_a_head(world: Path, delta: dict[str, Any] | None) -> None:
    config = load_config(test_classification.settings(world, delta=delta))
    found = cost(config, Assumed(input_tokens=10))
    encoder = frozen_encoder(config.encoder)
    assert found["trained_parameters"] == count(new_tuned(config, encoder, ("red", "blue")))
    assert found["lm_parameters"] == count(encoder.model)
    assert found["components"]["head"] == {"flops": 2 * 24 * 2, "parameters": 50, "trained_parameters": 50}
    assert found["flops_per_input"] == sum(part["flops"] for part in found["components"].values())
    assert set(found["components"]) == {"encoder", "head"} | (set() if delta is None else {"delta"})


def test_tokens_of_an_encoder(world: Path) -> None:
    prefix = {"kind": "p_tuning_v2", "name": "d", "length": 6}
    assert cost(load_config(test_classification.settings(world)))["assumptions"]["input_tokens"] == 96
    config = load_config(test_classification.settings(world, delta=prefix))
    assert cost(config)["assumptions"]["input_tokens"] == 96 - 6  # a prefix takes positions of the text
    with pytest.raises(ConfigError, match="do not fit"):
        cost(config, Assumed(input_tokens=91))
    task = test_classification.settings(world)["task"] | {"verbalizer": None, "target": "{label}", "metric": "em_f1"}
    with pytest.raises(ConfigError, match="no verbalizer"):
        cost(load_config(test_classification.settings(world, task=task)))


def test_sizes_out_of_range(world: Path) -> None:
    wrong: list[dict[str, Any]] = [
        {"kind": "intrinsic_dimension", "dimension": 10**9},
        {"kind": "partial_layers", "blocks": 3},
        {"kind": "lora", "targets": ["nothing"]},
    ]
    for block in wrong:
        with pytest.raises(ConfigError):
            added(world, **block)


def comparison(world: Path, *, encoder: bool = False) -> dict[str, Any]:
    """Three methods around the toy LM, or two around the toy encoder."""
    lora, rates = {"delta": {"kind": "lora", "name": "lora", "rank": 2}}, {"learning_rates": [0.01, 0.02]}
    if encoder:
        base = test_classification.settings(world)
        about: dict[str, Any] = {"encoder": base["encoder"], "tasks": [base["task"]], "training": base["training"]}
        methods: list[dict[str, Any]] = [{"head": "head"}, lora]
    else:
        full = configured(world, prompt=None).model_dump(mode="json", exclude_unset=True)
        about = {key: full[key] for key in ("lm", "tasks", "input", "generation", "training")}
        pruned = {"delta": {"kind": "diff_pruning", "name": "pruned", "share": 0.01}}
        methods = [{"prompt": {"kind": "soft_prompt", "name": "soft", "length": 3}}, lora, pruned]
    return {"kind": "method_comparison", "seeds": 2, "methods": [one | rates for one in methods]} | about


@pytest.mark.parametrize("encoder", [False, True])
def test_a_comparison(world: Path, encoder: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = tmp_path / "comparison.json"
    written.write_text(json.dumps(comparison(world, encoder=encoder)))
    assert main(["cost", str(written), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    config: Any = load_config(written)
    assert [one["name"] for one in found["methods"]] == [method.name for method in config.methods]
    for method, line in zip(config.methods, found["methods"], strict=True):
        alone = cost(config.one(method, config.tasks[0], 0, 0.01))
        assert {key: alone[key] for key in line if key not in ("name", "kind")} == {
            key: value for key, value in line.items() if key not in ("name", "kind")
        }
        assert line["parameter_ratio"] == line["trained_parameters"] / found["lm_parameters"]
    assert main(["cost", str(written)]) == 0
    shown = capsys.readouterr().out
    assert "lora" in shown and "of the LM" in shown
