"""Cost and dry run of prompt methods on a mixture of tasks."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines import build_tasks
from pipelines.build import frozen_lm
from pipelines.cli import main
from pipelines.cost import cost
from pipelines.cost_types import Assumed
from pipelines.dry_run import describe
from pipelines.errors import ConfigError
from pipelines.loader import load_config
from tests.pipelines.toy_multitask import PROMPTS, configured, make_world

FIXED = Assumed(input_tokens=10, answer_tokens=2)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("cost"))


@pytest.mark.parametrize("kind", ["soft_prompt", "task_prompts", "idpg", "input_dependent"])
def test_trained_parameters_are_those_of_the_module(world: Path, kind: str) -> None:
    config = configured(world, prompt=PROMPTS[kind])
    module: Any = build_tasks.new_prompt(config, config.prompt, frozen_lm(config.lm), build_tasks.encoder(config))
    own = sum(parameter.numel() for parameter in module.parameters())
    assert cost(config, FIXED)["trained_parameters"] == describe(config)["trained_parameters"] == own


def test_what_stands_beside_the_lm(world: Path) -> None:
    bare = cost(configured(world, prompt=None), FIXED)
    one = cost(configured(world, prompt=PROMPTS["soft_prompt"]), FIXED)
    each = cost(configured(world, prompt=PROMPTS["task_prompts"]), FIXED)
    written = cost(configured(world), FIXED)
    assert (bare["trained_parameters"], bare["flops_ratio_to_one_pass"]) == (0, 1.0)
    assert one["trained_parameters"] == 3 * 32  # P x H
    assert each["trained_parameters"] == 2 * 3 * 32  # for each of two tasks
    assert one["flops_per_input"] == each["flops_per_input"] > bare["flops_per_input"] == one["flops_one_pass"]
    assert set(written["components"]) - set(one["components"]) == {"encoder"}
    sums = sum(part["flops"] for part in written["components"].values())
    assert written["flops_per_input"] == sums > one["flops_per_input"]


def test_sources_of_attempt_need_not_be_there(world: Path) -> None:
    found = cost(configured(world, prompt=PROMPTS["attempt"]), FIXED)
    assert found["trained_parameters"] == 2 * 32 * 4 + 2 * 32 + 2 * 3 * 32  # D and U, the norm, a target a task


def test_a_suffix_prompt_keeps_less_for_the_backward_pass(world: Path) -> None:
    kept = {
        position: describe(configured(world, prompt=PROMPTS["soft_prompt"] | {"position": position}))["memory"]
        for position in ("prefix", "suffix")
    }
    assert kept["suffix"]["activations"] < kept["prefix"]["activations"]
    assert kept["suffix"]["frozen"] == kept["prefix"]["frozen"]


def test_nothing_to_train(world: Path) -> None:
    with pytest.raises(ConfigError, match="prompt"):
        describe(configured(world, prompt=None))


def test_the_papers_shape() -> None:
    """T5-base in front of a 7B LM: 330K in the encoder prompt, about 25M in all, 0.37% of the LM. The frozen encoder
    and what is trained add 2.7% to one pass of 512 tokens; the 100 tokens of the prompt itself are the larger part."""
    config = load_config("id_pt_t5_base_7b.yaml")
    found = cost(config)
    assert found["trained_parameters"] == pytest.approx(25.2e6, rel=0.001)
    assert found["lm_parameters"] == 6_738_415_616
    assert found["parameter_ratio"] == pytest.approx(0.0037, abs=0.0001)
    parts = {name: part["flops"] / found["flops_one_pass"] for name, part in found["components"].items()}
    assert parts["encoder"] + parts["prompt"] == pytest.approx(0.027, abs=0.001)
    assert parts["prompt_in_lm"] == pytest.approx(0.178, abs=0.005)
    assert config.prompt.encoder_prompt * 768 == 330_240


def test_commands(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", "id_pt_t5_base_7b.yaml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "multitask"
    assert main(["train", "id_pt_t5_base_7b.yaml", "--dry-run"]) == 0
    assert "25,208,320" in capsys.readouterr().out
    assert main(["train", "wiki_mix.yaml", "--dry-run"]) == 2
    assert "nothing to train" in capsys.readouterr().err
