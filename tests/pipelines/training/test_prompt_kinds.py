"""P-tuning, low-rank and intrinsic prompts, and prompts as each other's start, through their configs."""

from pathlib import Path
from typing import Any

import pytest
import torch

from frozenlm.prompts.prompt_autoencoder import PromptAutoEncoder
from frozenlm.prompts.soft_prompt import SoftPrompt
from frozenlm.prompts.task_prompts import TaskPrompts
from pipelines import Pipeline, build_tasks
from pipelines.cost import cost
from pipelines.cost_types import Assumed
from pipelines.dry_run import describe
from pipelines.errors import CheckpointError, ConfigError, ShapeError
from pipelines.training import train
from tests.pipelines.toy_multitask import configured, make_world
from tests.toys import toy_lm

KINDS: dict[str, dict[str, Any]] = {
    "behind": {"kind": "p_tuning", "form": "lama"},
    "around": {"kind": "p_tuning", "form": "fewshot", "position": "around", "anchor": False},
    "before": {"kind": "p_tuning", "form": "mlp", "position": "prefix"},
    "factors": {"kind": "low_rank", "rank": 2},
    "projection": {"kind": "low_rank", "rank": 2, "form": "projection", "position": "prefix"},
}
TASKS = {"kind": "task_prompts", "name": "of_tasks"}
CODER = {"kind": "prompt_autoencoder", "name": "coder", "prompts": "of_tasks", "dimension": 5}
INTRINSIC = {"kind": "intrinsic", "autoencoder": "coder", "dimension": 5}


def asked(world: Path, prompt: dict[str, Any], **changes: Any) -> Any:
    return configured(world, encoder=None, prompt={"name": "p", "length": 3} | prompt, **changes)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_trains_and_serves_at_its_cost(tmp_path: Path, world: Path, name: str) -> None:
    config = asked(world, KINDS[name], workspace=str(tmp_path))
    summary = train(config)
    assert (summary["steps"], summary["lm_weights_changed"]) == (4, 0)
    own = cost(config, Assumed(input_tokens=10, answer_tokens=2))["trained_parameters"]
    assert summary["trained_parameters"] == own == describe(config)["trained_parameters"]
    with Pipeline.from_config(config) as pipeline:
        (answer,) = pipeline.answer(["text the cat is red answer"], tasks=["colours"])  # type: ignore[call-arg]
        served: Any = pipeline.module("p")  # type: ignore[attr-defined]
    assert answer.module == "p" and answer.prompt is not None
    assert [name for name, _ in served.named_parameters()] == ["vectors"]  # collapsed
    assert train(config)["already_trained"]


def test_both_stages_of_intrinsic_prompt_tuning(tmp_path: Path, world: Path) -> None:
    lm = toy_lm("gpt2")
    of_tasks, coder, intrinsic = (asked(world, one, workspace=str(tmp_path)) for one in (TASKS, CODER, INTRINSIC))
    with pytest.raises(CheckpointError, match="no trained prompts of kind task_prompts at"):
        train(coder)
    train(of_tasks)
    with pytest.raises(CheckpointError, match=r"no trained auto-encoder \(kind prompt_autoencoder\) at"):
        train(intrinsic)
    first = train(coder)
    assert first["trained_parameters"] == 96 * 5 + 5 + 5 * 5 + 5 + 96 * 5 + 96  # P x H = 3 x 32, d = d' = 5
    held = PromptAutoEncoder.load(tmp_path / "modules" / "coder", lm)
    prompts = TaskPrompts.load(tmp_path / "modules" / "of_tasks", lm)
    assert torch.equal(held.prompts, torch.stack(list(prompts.prompts)))
    assert held.tasks == ("colours", "places") and held.weight == 200.0
    second = train(intrinsic)
    assert second["trained_parameters"] == 5 == describe(intrinsic)["trained_parameters"]
    assert describe(coder)["trained_parameters"] == first["trained_parameters"]
    for config in (coder, intrinsic):
        with Pipeline.from_config(config) as pipeline:
            (answer,) = pipeline.answer(["text the cat is red answer"], tasks=["colours"])  # type: ignore[call-arg]
        assert answer.module == config.prompt.name
    other = asked(world, INTRINSIC | {"dimension": 6, "name": "q"}, workspace=str(tmp_path))
    with pytest.raises(CheckpointError, match="trained with dimension 5, the config asks for 6"):
        train(other)
    drawn = asked(world, INTRINSIC | {"start": "random"}, workspace=str(tmp_path))
    codes = [build_tasks.new_prompt(one, one.prompt, lm, None).code for one in (intrinsic, drawn)]  # type: ignore[attr-defined]
    assert torch.equal(codes[0], held.decoder().centre) and not torch.equal(codes[0], codes[1])


def test_a_run_does_not_go_on_when_what_it_begins_with_has_changed(tmp_path: Path, world: Path) -> None:
    lm = toy_lm("gpt2")
    prompts = TaskPrompts.create(lm, ["colours", "places"], 3)
    for seed in (0, 1):
        coder = PromptAutoEncoder.create(lm, prompts, dimension=5, seed=seed)
        coder.save(tmp_path / "modules" / "coder", lm)
        if seed == 0:
            train(asked(world, INTRINSIC, workspace=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"begins_with\.coder: stored"):
        train(asked(world, INTRINSIC, workspace=str(tmp_path)))
    with pytest.raises(CheckpointError, match="was trained with another decoder"):
        Pipeline.from_config(asked(world, INTRINSIC, workspace=str(tmp_path))).answer(["a"])
    assert not train(asked(world, INTRINSIC, workspace=str(tmp_path)), restart=True)["already_trained"]


def test_an_auto_encoder_rebuilds_the_tasks_it_is_trained_on(tmp_path: Path, world: Path) -> None:
    lm = toy_lm("gpt2")
    TaskPrompts.create(lm, ["colours"], 3).save(tmp_path / "modules" / "of_tasks", lm)
    with pytest.raises(ConfigError, match="holds no prompt for the task 'places'"):
        train(asked(world, CODER, workspace=str(tmp_path)))
    with pytest.raises(CheckpointError, match="trained with length 3, the config asks for 4"):
        train(asked(world, CODER | {"length": 4}, workspace=str(tmp_path)))


@pytest.mark.parametrize("kind", ["soft_prompt", "task_prompts", "p_tuning", "low_rank"])
def test_a_trained_prompt_starts_another(tmp_path: Path, world: Path, kind: str) -> None:
    lm = toy_lm("gpt2")
    source = SoftPrompt.create(lm, 3, seed=9)
    source.save(tmp_path / "modules" / "source", lm)
    block = {"kind": kind, "init": {"kind": "module", "name": "source"}} | ({"rank": 3} if kind == "low_rank" else {})
    config = asked(world, block, workspace=str(tmp_path))
    module: Any = build_tasks.new_prompt(config, config.prompt, lm, None)
    vectors = module.vectors("places") if kind == "task_prompts" else module.segments([None])[0].vectors
    assert torch.allclose(vectors, source(), atol=1e-5)
    by_folder = {"kind": "module", "folder": str(tmp_path / "modules" / "source")}
    config = asked(world, block | {"init": by_folder}, workspace=str(tmp_path / "elsewhere"))
    again: Any = build_tasks.new_prompt(config, config.prompt, lm, None)
    assert all(torch.equal(one, other) for one, other in zip(again.parameters(), module.parameters(), strict=True))


def test_starts_that_cannot_be(tmp_path: Path, world: Path) -> None:
    lm = toy_lm("gpt2")
    TaskPrompts.create(lm, ["a", "b"], 2).save(tmp_path / "modules" / "two", lm)

    def start(**init: Any) -> Any:
        config = asked(world, {"kind": "soft_prompt", "init": {"kind": "module"} | init}, workspace=str(tmp_path))
        return build_tasks.new_prompt(config, config.prompt, lm, None)

    with pytest.raises(CheckpointError, match="no trained prompt to start from"):
        start(name="none")
    with pytest.raises(ConfigError, match=r"init\.task is None, and .* holds prompts for .a., .b.; set init\.task"):
        start(name="two")
    with pytest.raises(ShapeError, match=r"is \[2, 32\], the new one .* \[3, 32\]"):
        start(name="two", task="a")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"kind": "p_tuning", "before": 1}, "before is for position around"),
        ({"kind": "p_tuning", "position": "around", "before": 3}, "before is 3 of length 3"),
        ({"kind": "p_tuning", "position": "around", "length": 1}, "before is 0 of length 1"),
        ({"kind": "p_tuning", "anchor": False, "init": {"kind": "uniform"}}, "init is of no use without an anchor"),
        ({"kind": "low_rank", "rank": 4}, "rank is 4; a prompt of length 3"),
        (INTRINSIC | {"init": {"kind": "uniform"}}, "init is of no use for 'p'"),
        (CODER | {"init": {"kind": "uniform"}}, "init is of no use for 'coder'"),
        ({"kind": "soft_prompt", "init": {"kind": "module"}}, "either a name or a folder"),
        ({"kind": "soft_prompt", "init": {"kind": "module", "name": "a", "folder": "b"}}, "either a name or a folder"),
    ],
)
def test_blocks_that_cannot_be_meant(world: Path, prompt: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        asked(world, prompt)


@pytest.mark.parametrize(
    ("prompt", "change", "message"),
    [
        (KINDS["behind"], {"form": "mlp"}, "trained with form lama, the config asks for mlp"),
        (KINDS["behind"], {"anchor": False}, "trained with anchor True, the config asks for False"),
        (KINDS["behind"], {"position": "around"}, r"trained with slots \(0, 3\), the config asks for \(1, 2\)"),
        (KINDS["behind"], {"length": 4}, "holds a prompt of 3 tokens in suffix position, the config asks for 4"),
        (KINDS["factors"], {"rank": 1}, "trained with rank 2, the config asks for 1"),
        (KINDS["factors"], {"form": "projection"}, "trained with form factors, the config asks for projection"),
    ],
)
def test_a_module_of_other_settings_is_refused(
    tmp_path: Path, world: Path, prompt: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    lm = toy_lm("gpt2")
    config = asked(world, prompt, workspace=str(tmp_path))
    build_tasks.new_prompt(config, config.prompt, lm, None).save(tmp_path / "modules" / "p", lm)
    assert build_tasks.trained_prompt(config, config.prompt, lm, None).length == 3
    other = asked(world, prompt | change, workspace=str(tmp_path))
    with pytest.raises(CheckpointError, match=message):
        build_tasks.trained_prompt(other, other.prompt, lm, None)
