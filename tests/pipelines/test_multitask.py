"""Serving inputs of different tasks in one batch, and measuring and exporting through a config."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines import Pipeline
from pipelines.cli import main
from pipelines.errors import CheckpointError, ConfigError
from pipelines.training import train
from tests.pipelines.toy_multitask import ID_PT, PROMPTS, configured, make_world, settings

INPUTS = ["text the cat is red answer", "where is the nile", "plain the dog", "text the river is blue answer"]
PREFIX = PROMPTS["soft_prompt"] | {"name": "prefix", "position": "prefix"}
SUFFIX = PROMPTS["soft_prompt"] | {"name": "suffix", "position": "suffix"}
SERVED = {
    "modules": [PREFIX, SUFFIX],
    "routes": [{"starts_with": "where", "module": "prefix"}, {"starts_with": "plain", "module": None}],
}


@pytest.fixture(scope="module", params=["gpt2", "t5"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three modules trained in one workspace."""
    world = make_world(tmp_path_factory.mktemp(request.param), request.param)
    for prompt in (ID_PT, PREFIX, SUFFIX):
        train(configured(world, prompt=prompt))
    return world


def test_routes_choose_and_a_mixed_batch_equals_rows_alone(world: Path) -> None:
    pipeline: Any = Pipeline.from_config(configured(world, **SERVED))
    together = pipeline(INPUTS)
    assert [answer.module for answer in together] == ["p", "prefix", None, "p"]
    for text, answer in zip(INPUTS, together, strict=True):
        alone = pipeline(text)
        assert (alone.text, alone.module, alone.prompt) == (answer.text, answer.module, answer.prompt)
        assert alone.score == pytest.approx(answer.score, abs=1e-4)
    assert pipeline.lm.verify().changed == 0
    assert pipeline.encoder.verify().changed == 0


def test_the_caller_may_choose(world: Path) -> None:
    pipeline: Any = Pipeline.from_config(configured(world, **SERVED))
    chosen = pipeline.answer(INPUTS, modules=["suffix", None, "prefix", "p"])
    assert [answer.module for answer in chosen] == ["suffix", None, "prefix", "p"]
    assert [answer.module for answer in pipeline.answer(INPUTS, modules="suffix")] == ["suffix"] * 4
    with pytest.raises(ConfigError, match=r"no module 'other'.*\['p', 'prefix', 'suffix'\]"):
        pipeline.answer(INPUTS, modules="other")
    with pytest.raises(ConfigError, match="modules has 1 names for 4 inputs"):
        pipeline.answer(INPUTS, modules=["p"])
    with pytest.raises(ConfigError, match="tasks has 1 names for 4 inputs"):
        pipeline.answer(INPUTS, tasks=["colours"])
    with pytest.raises(ConfigError, match="is empty"):
        pipeline("  ")
    with pytest.raises(ConfigError, match="no passages"):
        pipeline.answer(INPUTS, hits=[[]] * 4)
    assert pipeline.answer([]) == []


def test_without_a_prompt_the_lm_answers_as_it_is(world: Path) -> None:
    bare: Any = Pipeline.from_config(configured(world, prompt=None, encoder=None))
    assert [answer.module for answer in bare(INPUTS)] == [None] * 4
    given: Any = Pipeline.from_config(configured(world), prompt=None)
    assert [answer.text for answer in given(INPUTS)] == [answer.text for answer in bare(INPUTS)]


def test_not_trained_yet(world: Path) -> None:
    pipeline: Any = Pipeline.from_config(configured(world, prompt=ID_PT | {"name": "later"}))
    with pytest.raises(CheckpointError, match=r"no trained prompt at .*later"):
        pipeline("text")
    longer: Any = Pipeline.from_config(configured(world, prompt=ID_PT | {"length": 5}))
    with pytest.raises(CheckpointError, match="3 tokens in suffix position, the config asks for 5"):
        longer("text")


def test_commands(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "tasks.yaml"
    file.write_text(json.dumps(settings(world)))  # JSON is YAML
    out = tmp_path / "out"
    assert main(["evaluate", str(file), "--out", str(out), "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["tasks"]) == {"colours", "places"} and found["lm_weights_changed"] == 0
    assert found["n"] == 11  # eight colours, three places
    bare = tmp_path / "bare"
    assert main(["evaluate", str(file), "--out", str(bare), "--quiet", "--set", "prompt=null", "--limit", "8"]) == 0
    assert "mean" in capsys.readouterr().out
    assert main(["compare", str(bare), str(out)]) == 0
    assert "places" in capsys.readouterr().out
    assert main(["evaluate", str(file), "--out", str(out), "--oracle"]) == 2
    assert "this config names its own tasks" in capsys.readouterr().err
    assert main(["ask", str(file), INPUTS[0], "--quiet"]) == 0
    assert "log-probability" in capsys.readouterr().out


def test_prompts_are_exported_and_drawn(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "tasks.yaml"
    file.write_text(json.dumps(settings(world)))
    assert main(["prompts", str(file), "--out", str(tmp_path / "drawn"), "--quiet"]) == 0
    assert "between_tasks" in capsys.readouterr().out
    assert (tmp_path / "drawn" / "prompts.png").read_bytes().startswith(b"\x89PNG")
    assert main(["prompts", str(file), "--out", str(tmp_path / "x"), "--split", "none"]) == 2
    assert main(["prompts", str(file), "--out", str(tmp_path / "x"), "--set", "prompt=null"]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": None}, "needs an encoder block"),
        ({"modules": [ID_PT]}, "two prompts are called 'p'"),
        ({"routes": [{"starts_with": "x", "module": "y"}]}, "a route leads to the module 'y'"),
        ({"prompt": ID_PT | {"heads": 0}}, "heads"),
    ],
)
def test_configs_that_cannot_be_meant(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        configured(tmp_path, **changes)


def test_two_tasks_of_one_name(tmp_path: Path) -> None:
    twice = [settings(tmp_path)["tasks"][0]] * 2
    with pytest.raises(ConfigError, match="two tasks are called 'colours'"):
        configured(tmp_path, tasks=twice)
