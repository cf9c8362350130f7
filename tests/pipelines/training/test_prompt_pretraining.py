"""Prompts that learn from plain text before they learn a task: pretrained, begun from, planned; stopped; refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from frozenlm.prompts.soft_prompt import SoftPrompt
from pipelines import build_tasks
from pipelines.cli import main
from pipelines.dry_run import describe
from pipelines.errors import CheckpointError, ConfigError, ShapeError
from pipelines.pipeline import Pipeline
from pipelines.training import pretrain, train
from pipelines.training.prompt_pretraining import begun
from tests.pipelines.toy_multitask import configured, make_world, settings
from tests.toys import toy_lm

STORY = "the cat sat. the dog sat! who was the king? the river is blue. the city is red."
OTHER = "paris is in france. berlin is in germany. london is in england. the nile is blue."
PAIRS = {"objective": "next_sentence", "labels": ["one", "two", "three"], "context": 40, "answer": None}
BLOCK = {"context": 6, "answer": 3, "dev_examples": 2, "steps": 4, "batch_size": 2, "eval_every": 2, "save_every": 1}


class Stopped(Exception):
    """What interrupts a training here."""


def text(folder: Path) -> str:
    path = folder / "text.txt"
    path.write_text(f"{STORY}\n\n{OTHER}\n\n{STORY} {OTHER}\n")
    return str(path)


def values(world: Path, *, kind: str = "soft_prompt", block: dict[str, Any] | None = None, **more: Any) -> Any:
    prompt = {"kind": kind, "name": "p", "length": 3} | ({"rank": 2} if kind == "low_rank" else {})
    about = {"files": [text(world)], "learning_rate": 0.05, "warmup_steps": 0}
    return {"encoder": None, "prompt": prompt, "pretraining": about | BLOCK | (block or {})} | more


def asked(world: Path, workspace: Path | None = None, **more: Any) -> Any:
    return configured(world, workspace=str(workspace or world / "work"), **values(world, **more))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("block", [{}, PAIRS], ids=["continuation", "next_sentence"])
def test_training_begins_from_what_text_has_taught(tmp_path: Path, world: Path, block: dict[str, Any]) -> None:
    lines: list[str] = []
    config = asked(world, tmp_path, block=block)
    plan = describe(config, pretrain=True)
    assert not list(tmp_path.iterdir())
    found = pretrain(config, log=lines.append)
    assert found["trained_parameters"] == plan["trained_parameters"] == 3 * 32 and found["lm_weights_changed"] == 0
    assert found["dev_loss"] < found["dev_loss_before"] and plan["module"] == "prompt_pretrained"
    assert any(line.startswith("dev loss:") for line in lines)
    assert pretrain(config)["already_trained"]
    pretrained = SoftPrompt.load(tmp_path / "modules" / "prompt_pretrained", toy_lm("gpt2"))
    start: Any = build_tasks.new_prompt(begun(config), begun(config).prompt, toy_lm("gpt2"), None)
    assert torch.equal(start.vectors, pretrained.vectors)
    assert train(config)["lm_weights_changed"] == 0
    with Pipeline.from_config(config) as pipeline:
        assert pipeline("text the cat is red answer").module == "p"


@pytest.mark.parametrize("kind", ["task_prompts", "low_rank", "p_tuning"])
def test_other_prompts_begin_there_too(tmp_path: Path, world: Path, kind: str) -> None:
    config = asked(world, tmp_path, kind=kind)
    pretrain(config)
    pretrained = SoftPrompt.load(tmp_path / "modules" / "prompt_pretrained", toy_lm("gpt2"))
    start: Any = build_tasks.new_prompt(begun(config), begun(config).prompt, toy_lm("gpt2"), None)
    vectors = start.vectors("places") if kind == "task_prompts" else start.segments([None])[0].vectors
    assert kind == "low_rank" or torch.allclose(vectors, pretrained(), atol=1e-5)
    assert train(config)["steps"] == 4


def test_a_stopped_run_ends_in_the_same_bits(tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = []
    for name in ("whole", "cut"):
        config = asked(world, tmp_path / name)
        if name == "cut":
            monkeypatch.setattr("pipelines.training.prompt_pretraining.prompt_loss", stopping_after(3))
            with pytest.raises(Stopped):
                pretrain(config)
            monkeypatch.undo()
        pretrain(config)
        vectors.append(SoftPrompt.load(tmp_path / name / "modules" / "prompt_pretrained", toy_lm("gpt2")).vectors)
    assert torch.equal(*vectors)


def stopping_after(calls: int) -> Any:
    from frozenlm.lm_tasks import prompt_loss

    left = iter(range(calls))

    def loss(*given: Any) -> Any:
        if next(left, None) is None:
            raise Stopped
        return prompt_loss(*given)

    return loss


def test_a_run_does_not_go_on_when_the_pretrained_prompt_has_changed(tmp_path: Path, world: Path) -> None:
    config = asked(world, tmp_path)
    with pytest.raises(CheckpointError, match=r"no pretrained prompt at .*run `frozenlm pretrain CONFIG`"):
        train(config)
    pretrain(config)
    train(config)
    other = asked(world, tmp_path, block={"steps": 3})
    with pytest.raises(ConfigError, match="holds a run with other settings"):
        pretrain(other)
    pretrain(other, restart=True)
    with pytest.raises(ConfigError, match=r"begins_with\.prompt_pretrained: stored"):
        train(config)
    moved = {"kind": "soft_prompt", "name": "q", "length": 3, "position": "prefix"}
    with pytest.raises(CheckpointError, match="pretrained in suffix position, the config asks for prefix"):
        train(asked(world, tmp_path, prompt=moved))
    with pytest.raises(ShapeError, match=r"is \[3, 32\], the new one .* \[4, 32\]"):
        train(asked(world, tmp_path, prompt={"kind": "soft_prompt", "name": "q", "length": 4}))


LORA = {"kind": "lora", "name": "d", "rank": 2}
AROUND = {"kind": "p_tuning", "name": "p", "length": 3, "position": "around"}
FROM_ITSELF = {"kind": "soft_prompt", "name": "p", "init": {"kind": "module", "name": "prompt_pretrained"}}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"prompt": None}, "this config trains no prompt"),
        ({"prompt": None, "delta": LORA}, "this config trains a delta of kind lora"),
        ({"prompt": AROUND}, "prompt 'p' of kind p_tuning does not begin"),
        ({"prompt": {"kind": "intrinsic", "name": "p", "autoencoder": "a"}}, "prompt 'p' of kind intrinsic"),
        ({"prompt": FROM_ITSELF}, "which pretraining is to make"),
        ({"block": {"name": "p"}}, "which another module has"),
        ({"block": {"files": []}}, "pretraining needs text"),
        ({"block": {"wording": "{first} {second}"}}, "wording is for next_sentence"),
        ({"block": PAIRS | {"answer": 3}}, "answer is for continuation, the objective here is next_sentence"),
        ({"block": {"labels": ["a", "b"]}}, "at least 3"),
    ],
)
def test_blocks_that_cannot_be_meant(world: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        asked(world, **more)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"dev_examples": 50}, "the text makes 1. examples, and pretraining.dev_examples holds 50"),
        (
            {"context": 90, "answer": 12},
            "context 90 and answer 12 tokens; .* 9. together at most, beside 3 soft tokens",
        ),
        (PAIRS | {"labels": ["one", "two", "two"]}, "tells apart"),
        (PAIRS | {"wording": "{first}"}, "expected the slots"),
    ],
)
def test_texts_and_sizes_that_do_not_do(tmp_path: Path, world: Path, block: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pretrain(asked(world, tmp_path, block=block))
    assert not list(tmp_path.iterdir())


def test_no_text_and_no_block(tmp_path: Path, world: Path) -> None:
    short, none = tmp_path / "short.txt", tmp_path / "none.txt"
    short.write_text("cat\n\ndog\n")
    none.write_text("\n")
    for file, message in ((short, "2 were too short"), (none, "nothing to learn from"), (tmp_path / "no", "no")):
        with pytest.raises(ConfigError, match=message):
            pretrain(asked(world, tmp_path / "w", block={"files": [str(file)]}))
    plain = configured(world, encoder=None, prompt={"kind": "soft_prompt", "name": "p"})
    for command in (pretrain, lambda config: describe(config, pretrain=True)):
        with pytest.raises(ConfigError, match="no pretraining block; name the text"):
            command(plain)


def test_commands(tmp_path: Path, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(settings(world, workspace=str(tmp_path / "w"), **values(world))))
    assert main(["train", str(file), "--quiet"]) == 1
    assert "run `frozenlm pretrain CONFIG`" in capsys.readouterr().err
    assert main(["pretrain", str(file), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 4
    assert main(["pretrain", str(file), "--quiet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["dev_loss_before"] > 0
    assert main(["train", str(file), "--quiet"]) == 0
