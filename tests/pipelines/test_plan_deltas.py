"""`frozenlm train --dry-run` of deltas, of heads on encoders, and of a comparison of methods."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli import main
from pipelines.cost import cost
from pipelines.cost_types import Assumed
from pipelines.dry_run import describe
from pipelines.errors import ConfigError
from pipelines.loader import load_config
from pipelines.training import train
from tests.pipelines import test_classification
from tests.pipelines.test_cost_deltas import comparison
from tests.pipelines.toy_multitask import configured, make_world

LORA = {"kind": "lora", "name": "d", "rank": 2}
SMALL = Assumed(input_tokens=16)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("plan_deltas"), "opt")


def test_a_delta_on_tasks(world: Path) -> None:
    config = configured(world, prompt=None, delta=LORA)
    plan = describe(config)
    numbers = 2 * 2 * 2 * (32 + 32)  # r (i + o) for queries and values of 2 layers
    memory = plan["memory"]
    assert (plan["module"], plan["trained_parameters"], plan["steps"]) == ("d", numbers, 4)
    assert memory["frozen"] == 4 * plan["lm_parameters"] and plan["rows_at_once"] == 4
    assert (memory["trained"], memory["gradients"], memory["optimizer"]) == (4 * numbers, 4 * numbers, 8 * numbers)
    assert plan["assumptions"] == {"input_tokens": 24, "answer_tokens": 6}
    suffix = {"kind": "soft_prompt", "name": "p", "length": 3, "position": "suffix"}
    assert memory["activations"] > describe(configured(world, prompt=suffix))["memory"]["activations"]


def test_what_a_training_keeps_is_no_more_than_planned(world: Path) -> None:
    config = configured(world, prompt=None, delta=LORA)
    kept, plan = train(config)["saved_bytes"], describe(config)
    assert kept < plan["memory"]["activations"]  # the toy's texts are shorter than the config allows


def test_states_below_are_said_to_be_left_out(world: Path) -> None:
    block = {"kind": "partial_layers", "name": "d"}
    kept = block | {"lower_states": {"kind": "memory", "byte_budget": 3_000_000}}
    plain, plan = (describe(configured(world, prompt=None, delta=one), SMALL) for one in (block, kept))
    assert plain["not_counted"] == [] and "at most 3MB of memory" in plan["not_counted"][0]
    assert plain["memory"] == plan["memory"] and plain["flops"] == plan["flops"]


def test_diff_pruning_is_two_stages(world: Path) -> None:
    block = {"kind": "diff_pruning", "name": "d", "share": 0.01, "retrain": 0.5}
    plan = describe(configured(world, prompt=None, delta=block), SMALL)
    gated, pruned = plan["stages"]
    weights = plan["lm_parameters"]
    assert (gated["phase"], pruned["phase"], plan["module"]) == ("gated", "pruned", "d")
    assert (gated["steps"], pruned["steps"]) == (4, 2)
    assert pruned["trained_parameters"] == round(0.01 * weights)
    assert 2 * weights < gated["trained_parameters"] == plan["trained_parameters"]
    assert plan["memory"] == gated["memory"] and plan["flops"] == gated["flops"] + pruned["flops"]


def test_a_head_and_a_delta_on_an_encoder(world: Path) -> None:
    alone = describe(load_config(test_classification.settings(world)), SMALL)
    tuned = describe(load_config(test_classification.settings(world, delta=LORA)), SMALL)
    assert alone["trained_parameters"] == 24 * 2 + 2
    assert tuned["trained_parameters"] == 24 * 2 + 2 + 2 * 2 * 2 * (24 + 24)
    assert tuned["memory"]["activations"] > 10 * alone["memory"]["activations"]
    assert 1.5 < tuned["flops_per_step"] / alone["flops_per_step"] < 2.5
    assert alone["assumptions"] == {"input_tokens": 16, "labels": 2}


def test_a_comparison(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = comparison(world)
    written = tmp_path / "comparison.json"
    written.write_text(json.dumps(settings))
    assert main(["train", str(written), "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    config: Any = load_config(settings)
    assert [one["name"] for one in plan["methods"]] == ["soft", "lora", "pruned"]
    assert all(one["runs"] == 2 * (2 + 1) for one in plan["methods"])  # tasks x (seeds + another rate)
    lora = describe(config.one(config.methods[1], config.tasks[0], 0, 0.01))
    assert plan["methods"][1]["memory"] == lora["memory"] and plan["methods"][1]["flops"] == 6 * lora["flops"]
    assert plan["flops"] == sum(one["flops"] for one in plan["methods"])
    assert main(["train", str(written), "--dry-run"]) == 0
    assert "would compare" in capsys.readouterr().out


def test_what_has_no_plan(world: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to train"):
        describe(configured(world, prompt=None))
    with pytest.raises(ConfigError, match="nothing to train"):
        describe(load_config(test_classification.settings(world, training=None)))
    with pytest.raises(ConfigError, match="nothing to pretrain"):
        describe(load_config(comparison(world)), pretrain=True)


def test_the_first_token_of_a_causal_encoder_is_refused(world: Path) -> None:
    causal = {"encoder": {"model": str(world / "lm")}}
    with pytest.raises(ConfigError, match="'first', which is not defined for causal models"):
        describe(load_config(test_classification.settings(world, pool="first", **causal)), SMALL)
    with pytest.raises(ConfigError, match="'first', which is not defined for causal models"):
        train(load_config(test_classification.settings(world, pool="first", **causal)))
    last = load_config(test_classification.settings(world, pool="last", **causal))
    assert describe(last, SMALL)["trained_parameters"] == 32 * 2 + 2
    assert describe(load_config(test_classification.settings(world, pool="first")), SMALL)["trained_parameters"] == 50


@pytest.mark.parametrize("kind", ["soft_prompt", "p_tuning", "p_tuning_v2", "prefix_tuning"])
def test_what_leaves_no_room_is_refused_as_training_does(world: Path, kind: str) -> None:
    block = {"kind": kind, "name": "d", "length": 500}
    prompt = kind in ("soft_prompt", "p_tuning")
    config = configured(world, **({"prompt": block} if prompt else {"prompt": None, "delta": block}))
    for attempt in (train, describe, cost):
        with pytest.raises(ConfigError, match=r"window of 96 tokens leaves -41\d for an input beside 500 soft tokens"):
            attempt(config)


def test_a_window_too_small_for_a_pretraining_is_refused_without_a_model(world: Path) -> None:
    block = {"files": ["not/there.txt"], "context": 64, "answer": 31, "steps": 2, "warmup_steps": 0}
    prompt = {"kind": "soft_prompt", "name": "d", "length": 3}
    config = configured(world, prompt=prompt, pretraining=block)
    with pytest.raises(
        ConfigError, match="context 64 and answer 31 tokens do not fit the LM's window of 96 beside 3 soft"
    ):
        describe(config, pretrain=True)
    pairs = {**block, "answer": None, "objective": "next_sentence"}
    assert describe(configured(world, prompt=prompt, pretraining=pairs), pretrain=True)["trained_parameters"] == 3 * 32


def test_a_prefix_longer_than_an_encoder_is_refused(world: Path) -> None:
    long = {"kind": "p_tuning_v2", "name": "d", "length": 96}
    config = load_config(test_classification.settings(world, delta=long))
    for attempt in (describe, cost):
        with pytest.raises(ConfigError, match="a prefix of 96 leaves no room for a text in the encoder's 96 positions"):
            attempt(config)
    with pytest.raises(ConfigError, match="of the encoder's 96 positions"):
        train(config)
