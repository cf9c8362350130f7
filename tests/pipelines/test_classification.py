"""A frozen encoder with a head and deltas: trained, measured, asked, on a toy world; and what must be refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines import cli
from pipelines.errors import CheckpointError, ConfigError
from pipelines.evaluation.classification import evaluate_classification
from pipelines.evaluation.task_figures import compare_tasks
from pipelines.loader import load_config
from pipelines.pipeline import Pipeline
from pipelines.training import train
from pipelines.verify import verify
from tests.pipelines.toy_multitask import COLOURS, make_world


def settings(world: Path, **changes: Any) -> dict[str, Any]:
    records = str(world / "colours.jsonl")
    return {
        "kind": "classification",
        "workspace": str(world / "work"),
        "encoder": {"model": str(world / "encoder")},
        "name": "colours",
        "task": {
            "name": "colours",
            **dict.fromkeys(("train", "dev", "test"), records),
            "template": "{text}",
            "verbalizer": {"red": "red", "blue": "blue"},
        },
        "training": {"steps": 6, "batch_size": 4, "eval_every": 3, "learning_rate": 0.05, "warmup_steps": 0},
    } | changes


DELTAS: list[dict[str, Any] | None] = [
    None,
    {"kind": "p_tuning_v2", "name": "d", "length": 3},
    {"kind": "lora", "name": "d", "rank": 2},
    {"kind": "bitfit", "name": "d"},
    {"kind": "adapter", "name": "d", "width": 4},
    {"kind": "diff_pruning", "name": "d", "share": 0.01},
    {"kind": "full_copy", "name": "d"},
]


@pytest.mark.parametrize("delta", DELTAS, ids=lambda delta: "head" if delta is None else delta["kind"])
def test_trained_measured_and_asked(tmp_path: Path, delta: dict[str, Any] | None) -> None:
    config = load_config(settings(make_world(tmp_path), delta=delta))
    summary = train(config)
    assert summary["encoder_weights_changed"] == 0 and summary["trained_parameters"] >= 24 * 2 + 2
    again = train(config)
    assert again["already_trained"] and again["saved_bytes"] == summary["saved_bytes"] > 0
    with Pipeline.from_config(config) as pipeline:
        found = evaluate_classification(pipeline, tmp_path / "out", progress=False)  # type: ignore[arg-type]
        assert found["n"] == len(COLOURS) and found["encoder_weights_changed"] == 0
        answers = pipeline.answer([one["text"] for one in COLOURS])
        right = sum(a.text == one["label"] for a, one in zip(answers, COLOURS, strict=True))
        assert found["mean"]["score"] == right / len(COLOURS)
        assert pipeline("the cat is red").text == answers[4].text and answers[4].score < 0
        repeated = evaluate_classification(pipeline, tmp_path / "out", progress=False)  # type: ignore[arg-type]
    assert repeated == found


def test_a_head_learns_what_a_linear_layer_can(tmp_path: Path) -> None:
    training = settings(tmp_path)["training"] | {"steps": 60, "eval_every": 20}
    config = load_config(settings(make_world(tmp_path), training=training))
    assert train(config)["best_score"] == 1.0


def test_pairs_of_texts(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    pairs = [{"a": f"the {a}", "b": f"is {b}", "label": b} for a in ("cat", "dog") for b in ("red", "blue")]
    (world / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    base = settings(world)
    task = base["task"] | dict.fromkeys(("train", "dev", "test"), str(world / "pairs.jsonl")) | {"template": "{a}"}
    config = load_config(base | {"task": task, "text_b": "{b}"})
    train(config)
    with Pipeline.from_config(config) as pipeline:
        tupled, tabbed = pipeline.answer([("the cat", "is red"), "the cat\tis red"])  # type: ignore[list-item]
        assert (tupled.text, tupled.score) == (tabbed.text, tabbed.score)
        with pytest.raises(ConfigError, match="reads pairs of texts"):
            pipeline("the cat is red")


def test_two_evaluations_can_be_compared(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    for name, delta in (("plain", None), ("tuned", {"kind": "bitfit", "name": "d"})):
        config = load_config(settings(world, name=name, delta=delta))
        train(config)
        with Pipeline.from_config(config) as pipeline:
            evaluate_classification(pipeline, tmp_path / name, progress=False)  # type: ignore[arg-type]
    assert compare_tasks(tmp_path / "plain", tmp_path / "tuned")["n"] == len(COLOURS)


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "classification.json"
    file.write_text(json.dumps(settings(make_world(tmp_path))))
    assert cli.main(["ask", str(file), "the cat is red"]) == 1
    assert "no trained head" in capsys.readouterr().err
    assert cli.main(["train", str(file), "--quiet"]) == 0
    assert cli.main(["evaluate", str(file), "--out", str(tmp_path / "out")]) == 0
    assert "colours" in capsys.readouterr().out
    assert cli.main(["ask", str(file), "the cat is red", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["answer"] in ("red", "blue")


def test_a_text_that_is_cut_is_said_to_be(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    config = load_config(settings(world, encoder={"model": str(world / "encoder"), "max_length": 5}))
    train(config)
    with Pipeline.from_config(config) as pipeline:
        answers = pipeline.answer(["the cat is red", "red"])  # 2 of the 5 tokens stand around a text
        assert [one.cut for one in answers] == [("encoder",), ()]
        found = evaluate_classification(pipeline, tmp_path / "out", progress=False)  # type: ignore[arg-type]
    assert found["inputs_cut"] == len(COLOURS)


def test_bad_classifications(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    free = settings(world)["task"] | {"target": "{label}", "metric": "em_f1"}
    free.pop("verbalizer")
    with pytest.raises(ConfigError, match="no fixed set of choices"):
        train(load_config(settings(world, task=free)))
    with pytest.raises(ConfigError, match="has no use for a prompt"):
        Pipeline.from_config(load_config(settings(world)), prompt=None)
    with Pipeline.from_config(load_config(settings(world))) as pipeline, pytest.raises(CheckpointError):
        pipeline("the cat is red")
    train(load_config(settings(world)))
    with Pipeline.from_config(load_config(settings(world))) as pipeline:
        with pytest.raises(ConfigError, match="reads one text"):
            pipeline.answer([("a", "b")])  # type: ignore[list-item]
        with pytest.raises(ConfigError, match="leave hits out"):
            pipeline.answer(["a"], hits=[[]])


def test_what_was_trained_with_other_settings_is_never_used(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    lora = {"kind": "lora", "name": "d", "rank": 2}
    train(load_config(settings(world, delta=lora)))
    task = settings(world)["task"]
    for changes, words in (
        ({"pool": "first"}, "with pool 'mean', the config asks for 'first'"),
        ({"delta": lora | {"rank": 4}}, "with rank 2, the config asks for 4"),
        ({"delta": lora | {"targets": "feed_forward"}}, "with targets"),
        ({"delta": None}, "holds delta and head, and head was asked for"),
        ({"task": task | {"verbalizer": {"red": "red", "blue": "azure"}}}, "tells red, blue apart, the task asks for"),
    ):
        config = load_config(settings(world, **{"delta": lora} | changes))
        with Pipeline.from_config(config) as pipeline:
            with pytest.raises(CheckpointError, match=words):
                pipeline("the cat is red")
            with pytest.raises(CheckpointError, match=words):
                evaluate_classification(pipeline, tmp_path / "out", progress=False)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="other settings"):
            train(config)
    shorter = load_config(settings(world, delta=lora, encoder={"model": str(world / "encoder"), "max_length": 4}))
    with pytest.raises(ConfigError, match="max_length: stored None, now 4"):
        train(shorter)


def test_labels_keep_their_places_when_the_config_orders_them_otherwise(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    config = load_config(settings(world))
    train(config)
    turned = load_config(settings(world, task=settings(world)["task"] | {"verbalizer": {"blue": "blue", "red": "red"}}))
    with Pipeline.from_config(config) as one, Pipeline.from_config(turned) as other:
        assert one("the cat is red").text == other("the cat is red").text
    with pytest.raises(ConfigError, match="labels: stored"):
        train(turned)


def test_damage_is_found_and_refused(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    config = load_config(settings(world, delta={"kind": "lora", "name": "d", "rank": 2}))
    train(config)
    folder = world / "work" / "modules" / "colours"
    assert [one.problem for one in verify(folder)] == [None]
    (tensors,) = (folder / "delta").glob("*.safetensors")
    for file, content in (
        (folder / "tuned.json", b"{torn"),
        (folder / "tuned.json", b"[]"),
        (folder / "tuned.json", b'{"delta": "x"}'),
        (folder / "head" / "module.json", b"{}"),
        (tensors, tensors.read_bytes()[:-1]),
    ):
        whole = file.read_bytes()
        file.write_bytes(content)
        assert all(one.problem for one in verify(folder))
        with Pipeline.from_config(config) as pipeline, pytest.raises(CheckpointError):
            pipeline("the cat is red")
        file.write_bytes(whole)
    (folder / "head").rename(folder / "lost")
    assert [one.problem is None for one in verify(folder)] == [False]
    assert train(config)["already_trained"] and [one.problem for one in verify(folder)] == [None]
