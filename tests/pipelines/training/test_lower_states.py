"""States below partial layers as a setting of a training: equal results, the same bits after a stop, clear refusals."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.errors import ConfigError
from pipelines.loader import load_config
from pipelines.pipeline import Pipeline
from pipelines.training import train
from tests.pipelines.test_classification import settings as classification
from tests.pipelines.toy_multitask import configured, make_world

MEMORY = {"kind": "memory"}
LOOP = {"steps": 6, "batch_size": 4, "eval_every": 3, "save_every": 1, "learning_rate": 0.01, "warmup_steps": 0}


class Stopped(Exception):
    """What interrupts a training here."""


def partial(**more: Any) -> dict[str, Any]:
    return {"kind": "partial_layers", "name": "d"} | more


def asked(world: Path, workspace: Path, *, delta: dict[str, Any], **loop: Any) -> Any:
    return configured(world, workspace=str(workspace), prompt=None, encoder=None, delta=delta, training=LOOP | loop)


def trained(workspace: Path, name: str = "d") -> torch.Tensor:
    from safetensors.torch import load_file

    (file,) = (workspace / "modules" / name).rglob("delta/*.safetensors" if name != "d" else "*.safetensors")
    return load_file(file)["offsets"]


def stop_at_the_first_score(line: str) -> None:
    if line.startswith("dev"):
        raise Stopped


@pytest.mark.parametrize(("lm", "precision"), [("opt", "no"), ("llama", "bf16")])
def test_kept_states_change_the_last_bits_at_most(tmp_path: Path, lm: str, precision: str) -> None:
    world, found = make_world(tmp_path, lm), []
    for name, more in (("plain", {}), ("kept", {"lower_states": MEMORY})):
        summary = train(asked(world, tmp_path / name, delta=partial(**more), precision=precision))
        found.append((summary, trained(tmp_path / name)))
    (plain, offsets), (kept, with_states) = found
    assert plain["lower_states"] is None and plain["lm_weights_changed"] == kept["lm_weights_changed"] == 0
    counts = kept["lower_states"]
    assert counts["hits"] > 0 and counts["refused"] == 0 and 0 < counts["rows"] <= counts["misses"]
    assert kept["history"][-1]["loss"] == pytest.approx(plain["history"][-1]["loss"], rel=0.02)
    assert torch.allclose(offsets, with_states, atol=2e-3 if precision == "no" else 2e-2)
    assert not torch.equal(with_states, torch.zeros_like(with_states))


@pytest.mark.parametrize("budget", [1, 4_000])
def test_a_stopped_run_ends_in_the_same_bits_with_any_budget(tmp_path: Path, budget: int) -> None:
    world = make_world(tmp_path, "opt")
    whole = train(asked(world, tmp_path / "whole", delta=partial(lower_states=MEMORY)))
    with pytest.raises(Stopped):
        train(asked(world, tmp_path / "cut", delta=partial(lower_states=MEMORY)), log=stop_at_the_first_score)
    lines: list[str] = []
    small = partial(lower_states=MEMORY | {"byte_budget": budget})
    summary = train(asked(world, tmp_path / "cut", delta=small), log=lines.append)  # another budget is the same run
    assert any(line.startswith("resuming after step 2") for line in lines)
    assert any("no room in the byte budget" in line for line in lines) and summary["lower_states"]["nbytes"] <= budget
    assert torch.equal(trained(tmp_path / "whole"), trained(tmp_path / "cut"))
    assert [one["loss"] for one in whole["history"]] == [one["loss"] for one in summary["history"]]


def test_with_and_without_are_two_runs_and_one_module(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    plain = asked(world, tmp_path / "w", delta=partial())
    kept = asked(world, tmp_path / "w", delta=partial(lower_states=MEMORY))
    assert "lower_states" not in plain.delta.model_dump()  # as before there was such a setting
    train(kept)
    with pytest.raises(ConfigError, match="holds a run with other settings"):
        train(plain)
    for config in (plain, kept):
        with Pipeline.from_config(config) as pipeline:
            assert pipeline("text the cat is red answer").module == "d"


def test_a_classifier(tmp_path: Path) -> None:
    world, found = make_world(tmp_path), []
    for name, more in (("plain", {}), ("kept", {"lower_states": MEMORY})):
        block = settings_of(world, tmp_path / name, partial(**more))
        found.append(train(load_config(block)))
    plain, kept = found
    assert plain["lower_states"] is None and plain["best_score"] == pytest.approx(kept["best_score"], abs=0.13)
    # 8 texts, each read once; 6 steps of 4 rows and 2 evaluations of 8 read the others.
    assert kept["lower_states"]["rows"] == kept["lower_states"]["misses"] == 8
    assert kept["lower_states"]["hits"] == 6 * 4 + 2 * 8 - 8
    assert kept["history"][-1]["loss"] == pytest.approx(plain["history"][-1]["loss"], rel=0.02)


def test_what_it_is_not_for_is_said_before_the_first_step(tmp_path: Path) -> None:
    world = make_world(tmp_path, "t5", encoder="t5")
    delta = partial(lower_states=MEMORY)
    with pytest.raises(ConfigError, match="encoder-decoder"):
        train(asked(world, tmp_path / "w", delta=delta))
    with pytest.raises(ConfigError, match="more than hidden states"):
        train(load_config(settings_of(world, tmp_path / "w", delta)))
    assert not (tmp_path / "w").exists()
    gpt2 = make_world(folder(tmp_path / "gpt2"))
    with pytest.raises(ConfigError, match="all 2 blocks are trained"):
        train(asked(gpt2, tmp_path / "w", delta=partial(lower_states=MEMORY, blocks=2)))


def settings_of(world: Path, workspace: Path, delta: dict[str, Any]) -> dict[str, Any]:
    return classification(world, workspace=str(workspace), delta=delta)


def folder(path: Path) -> Path:
    path.mkdir()
    return path
