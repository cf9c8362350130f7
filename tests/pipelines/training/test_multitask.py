"""Training a prompt method on a mixture of tasks through its config."""

from pathlib import Path

import pytest

from pipelines import Pipeline
from pipelines.errors import CheckpointError, ConfigError
from pipelines.training import train
from tests.pipelines.toy_multitask import PROMPTS, configured, make_world


@pytest.fixture
def world(tmp_path: Path) -> Path:
    return make_world(tmp_path)


@pytest.mark.parametrize("kind", list(PROMPTS))
def test_every_method_trains_saves_and_serves(world: Path, kind: str) -> None:
    for name in ("a", "b") if kind == "attempt" else ():
        train(configured(world, prompt=PROMPTS["soft_prompt"] | {"name": name}))
    config = configured(world, prompt=PROMPTS[kind])
    said: list[str] = []
    summary = train(config, log=said.append)
    assert (summary["steps"], summary["examples"], summary["lm_weights_changed"]) == (4, 16, 0)
    assert summary["encoder_weights_changed"] in (0, None)
    assert summary["trained_parameters"] > 0
    assert sum(line.startswith("dev: mean ") and "colours" in line and "places" in line for line in said) == 2
    assert any(line.startswith("rows drawn: colours ") for line in said)
    with Pipeline.from_config(config) as pipeline:
        answers = pipeline.answer(["text the cat is red answer"], tasks=["colours"])  # type: ignore[call-arg]
    assert answers[0].module == "p" and answers[0].prompt is not None
    assert train(config)["already_trained"]


def test_an_encoder_decoder_lm(tmp_path: Path) -> None:
    world = make_world(tmp_path, "t5")
    assert train(configured(world))["lm_weights_changed"] == 0


def test_scores_of_every_task_reach_the_trackers(world: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = configured(world)
    train(config.model_copy(update={"training": config.training.model_copy(update={"trackers": ["tensorboard"]})}))
    events = EventAccumulator(str(world / "work" / "modules" / "p.run" / "frozenlm"))
    events.Reload()
    assert {"score", "colours", "places"} <= set(events.Tags()["scalars"])


def test_a_task_that_is_not_seen_is_not_drawn(world: Path) -> None:
    config = configured(world)
    unseen = config.tasks[1].model_copy(update={"seen": False})
    said: list[str] = []
    train(config.model_copy(update={"tasks": [config.tasks[0], unseen]}), log=said.append)
    assert "rows drawn: colours 16" in said


def test_inputs_that_had_to_be_cut_are_counted(world: Path) -> None:
    config = configured(world, input={"max_tokens": 5, "keep_end": 2, "answer_tokens": 6})
    assert train(config)["inputs_cut"] > 0


def test_other_tasks_are_another_run(world: Path) -> None:
    config = configured(world)
    train(config)
    with pytest.raises(ConfigError, match="examples"):
        train(config.model_copy(update={"tasks": config.tasks[:1]}))


def test_nothing_to_train(world: Path) -> None:
    with pytest.raises(ConfigError, match="prompt"):
        train(configured(world, prompt=None))
    with pytest.raises(ConfigError, match="no task"):
        train(configured(world, tasks=[]))
    config = configured(world)
    lost = config.tasks[0].model_copy(update={"train": None})
    with pytest.raises(ConfigError, match="has no train records"):
        train(config.model_copy(update={"tasks": [lost]}))


def test_a_source_that_is_not_trained_is_named(world: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no source prompt at .*modules/a"):
        train(configured(world, prompt=PROMPTS["attempt"]))


def test_weights_that_leave_nothing(world: Path) -> None:
    config = configured(world)
    for weight in (-1.0, 0.0):
        tasks = [task.model_copy(update={"weight": weight}) for task in config.tasks]
        with pytest.raises(ConfigError, match="weight"):
            train(config.model_copy(update={"tasks": tasks}))
