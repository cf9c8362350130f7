"""Training a prompt method on a mixture of tasks through its config."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import T5EncoderModel

from frozenlm.encoder import FrozenEncoder
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


def test_an_encoder_decoder_lm_and_the_encoder_of_a_t5(tmp_path: Path) -> None:
    world = make_world(tmp_path, "t5", encoder="t5")
    summary = train(configured(world))
    assert (summary["lm_weights_changed"], summary["encoder_weights_changed"]) == (0, 0)
    assert isinstance(FrozenEncoder.load(world / "encoder").model, T5EncoderModel)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_lm_and_encoder_are_what_they_were_and_no_part_of_the_checkpoint(world: Path) -> None:
    before = files_of(world / "lm") | files_of(world / "encoder")
    loaded: list[FrozenEncoder] = []
    load = FrozenEncoder.load

    def kept(*args: Any, **more: Any) -> FrozenEncoder:
        loaded.append(load(*args, **more))
        return loaded[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FrozenEncoder, "load", kept)
        train(configured(world))
    (encoder,) = loaded
    own = {name: tensor.clone() for name, tensor in load(world / "encoder").model.state_dict().items()}
    assert all(torch.equal(tensor, own[name]) for name, tensor in encoder.model.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in encoder.model.parameters())
    assert files_of(world / "lm") | files_of(world / "encoder") == before
    card = json.loads((world / "work" / "modules" / "p" / "module.json").read_text())
    assert card["config"]["encoder_fingerprint"] == encoder.fingerprint
    trained = sum(tensor.numel() for tensor in tensors_of(world / "work" / "modules" / "p").values())
    assert trained == train(configured(world))["trained_parameters"]


def tensors_of(module: Path) -> dict[str, torch.Tensor]:
    (path,) = module.glob("*.safetensors")
    return load_file(path)


class Killed(Exception):
    """Ends a run where a test wants it to."""


@pytest.mark.parametrize("at", ["step 2/4", "dev: mean", "step 3/4"])
def test_a_killed_run_goes_on_as_if_nothing_had_been(world: Path, at: str) -> None:
    config = configured(world, training={**configured(world).training.model_dump(), "save_every": 1})
    whole = train(config.model_copy(update={"workspace": str(world / "whole")}))

    def dies(line: str) -> None:
        if line.startswith(at):
            raise Killed

    with pytest.raises(Killed):
        train(config, log=dies)
    said: list[str] = []
    again = train(config, log=said.append)
    assert not any(line.startswith("step 1/4") for line in said)
    assert (again["best_step"], again["best_score"]) == (whole["best_step"], whole["best_score"])
    first, second = (tensors_of(folder / "modules" / "p") for folder in (world / "whole", world / "work"))
    assert set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)


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
    said: list[str] = []
    summary = train(config, log=said.append)
    colours = next(int(line.split()[3].strip(",")) for line in said if line.startswith("rows drawn"))
    # Six words in an input of colours, three or four in one of places; a row that is drawn twice counts once.
    assert colours >= 8 and (summary["inputs"], summary["inputs_cut"]) == (11, 8)
    assert "too long, of 11 different inputs: inputs_cut 8, answers_cut 0, encoder_inputs_cut 0" in said


def test_inputs_beyond_the_encoder_are_counted(world: Path) -> None:
    config = configured(world, encoder={"model": str(world / "encoder"), "max_length": 6})  # two frame a text
    summary = train(config)
    assert (summary["inputs"], summary["encoder_inputs_cut"], summary["inputs_cut"]) == (11, 8, 0)
    assert train(configured(world, workspace=str(world / "other")))["encoder_inputs_cut"] == 0


def test_tasks_are_read_before_the_models(world: Path) -> None:
    (world / "colours.jsonl").write_text("")
    with pytest.raises(ConfigError, match=r"task 'colours', split train: .*colours\.jsonl is empty"):
        train(configured(world, lm={"model": "./nowhere"}))


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
