"""What is learned about a prompting, from a config: trained, stopped and gone on with, measured, compared, refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from frozenlm import saved_parts
from frozenlm.prompting.learned import LearnedPrompt
from pipelines import build_prompting, cli
from pipelines.comparison.runs import compare_methods
from pipelines.cost import cost
from pipelines.dry_run import describe
from pipelines.errors import CheckpointError, ConfigError
from pipelines.evaluation.prompting import evaluate_prompting
from pipelines.loader import load_config
from pipelines.pipeline import Pipeline
from pipelines.training import train
from pipelines.verify import verify
from tests.pipelines.test_prompting import COLOURS, NEAREST, SHOWN, comparison, of_promptsource, settings
from tests.pipelines.toy_multitask import make_world
from tests.toys import toy_masked_lm

TRAINING = {"steps": 60, "batch_size": 8, "learning_rate": 0.05, "warmup_steps": 0, "eval_every": 10, "save_every": 5}
SOFT = {"templates": ["{soft:lead*2} {text} answer {answer}"]}
WAYS: list[tuple[dict[str, Any], float, float]] = [  # the prompting, a learning rate, a share that must be found
    (SOFT, 0.3, 0.9),
    ({"verbalizer": "soft"}, 0.05, 0.9),
    ({"verbalizer": "prototypical"}, 0.3, 0.8),
    (SOFT | {"verbalizer": "soft", "demonstrations": NEAREST}, 0.05, 0.9),
    ({"verbalizer": "soft", "demonstrations": SHOWN, "calibration": {"kind": "contextual", "texts": ["a"]}}, 0.05, 0.5),
]


@pytest.fixture
def world(tmp_path: Path) -> Path:
    return make_world(tmp_path)


def configured(world: Path, way: dict[str, Any], **training: Any) -> Any:
    return load_config(settings(world, way) | {"training": TRAINING | training})


@pytest.mark.parametrize(("way", "rate", "share"), WAYS)
def test_trained_measured_and_asked(world: Path, way: dict[str, Any], rate: float, share: float) -> None:
    config = configured(world, way, learning_rate=rate)
    with Pipeline.from_config(config) as pipeline, pytest.raises(CheckpointError, match="no trained prompt"):
        pipeline("the cat is red")
    plan = describe(config)
    summary = train(config)
    assert (summary["steps"], summary["lm_weights_changed"], summary["inputs_cut"]) == (60, 0, 0)
    assert plan["trained_parameters"] == summary["trained_parameters"] == cost(config)["trained_parameters"] > 0
    assert (plan["memory"]["activations"] > 0) == ("templates" in way)
    with Pipeline.from_config(config) as pipeline:
        found = evaluate_prompting(pipeline, world / "out", progress=False)  # type: ignore[arg-type]
        assert found["mean"]["score"] == summary["best_score"] >= share  # its dev records are its test records
        assert pipeline("the cat is red").module == "p"
    assert [one.problem for one in verify(world / "work")] == [None] * len(list(verify(world / "work")))
    assert train(config)["already_trained"]


def test_a_masked_lm_learns_too(world: Path) -> None:
    lm: Any = toy_masked_lm()
    lm.model.save_pretrained(world / "host")
    lm.tokenizer.save_pretrained(world / "host")
    way = {"templates": ["{soft:lead*2} {text} is {answer} ."], "verbalizer": "soft"}
    own = {"lm": None, "masked_lm": {"model": str(world / "host")}, "training": TRAINING}
    config = load_config(settings(world, way, **own))
    assert describe(config)["trained_parameters"] == train(config)["trained_parameters"]
    with Pipeline.from_config(config) as pipeline:
        assert pipeline("the cat is red").text in ("red", "blue")


def test_a_training_that_is_stopped_goes_on(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configured(world, SOFT | {"verbalizer": "soft"}, steps=12)
    whole = train(config)
    kept = (world / "work" / "modules" / "p" / saved_parts.PARTS_FILE).read_bytes()
    again = config.model_copy(update={"workspace": str(world / "again")})
    loss, calls = LearnedPrompt.loss, []

    def stopped(self: LearnedPrompt, *given: Any) -> Any:
        calls.append(given)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return loss(self, *given)

    monkeypatch.setattr(LearnedPrompt, "loss", stopped)
    with pytest.raises(KeyboardInterrupt):
        train(again)
    assert train(again)["best_score"] == whole["best_score"] and len(calls) == 8 + 12 - 5  # the last save was at step 5
    assert (world / "again" / "modules" / "p" / saved_parts.PARTS_FILE).read_bytes() == kept
    with pytest.raises(ConfigError, match="template"):
        train(again.model_copy(update={"task": again.task.model_copy(update={"template": "a {text} answer"})}))


def test_another_template_or_other_labels_are_refused(world: Path) -> None:
    train(configured(world, SOFT | {"verbalizer": "soft"}, steps=2))
    for way, words in (
        ({"templates": ["{soft:tail*2} {text} answer {answer}"], "verbalizer": "soft"}, "for the soft slots lead"),
        ({"verbalizer": "soft"}, "holds slots and verbalizer, and verbalizer was asked for"),
    ):
        with Pipeline.from_config(configured(world, way)) as pipeline, pytest.raises(CheckpointError, match=words):
            pipeline("the cat is red")


def test_a_slot_of_another_length_or_other_words_around_it_are_refused(world: Path) -> None:
    train(configured(world, SOFT, steps=2))
    for template, words in (
        ("{soft:lead*8} {text} answer {answer}", "2 vectors in the soft slot 'lead'; the template has 8"),
        ("{soft:lead*2} {text} colour {answer}", "was trained in the template"),
    ):
        config = configured(world, {"templates": [template]})
        with Pipeline.from_config(config) as pipeline, pytest.raises(CheckpointError, match=words):
            pipeline("the cat is red")


def test_demonstrations_that_do_not_fit_are_counted_or_refused(world: Path) -> None:
    asked = {"templates": ["{text} {answer}"], "verbalizer": "soft"}  # "the cat is red red \n" is 6 tokens
    said: list[str] = []
    summary = train(configured(world, asked | {"demonstrations": SHOWN | {"budget": 6}}, steps=1), log=said.append)
    assert summary["demonstrations_dropped"] == len(COLOURS)
    assert f"{len(COLOURS)} demonstrations of {len(COLOURS)} inputs dropped, for which there is no room" in said
    none = configured(world, asked | {"name": "none", "demonstrations": SHOWN | {"budget": 5}}, steps=1)
    with pytest.raises(ConfigError, match=f"not one of the {2 * len(COLOURS)} demonstrations"):
        train(none)
    assert not (world / "work" / "modules" / "none.run").exists()


def test_a_promptsource_task_is_learned(world: Path) -> None:
    way = {"templates": ["{soft:lead*2} {text} {answer}"], "verbalizer": "soft"}
    config = load_config(of_promptsource(world, "fixed", way, training=TRAINING | {"steps": 2}))
    summary = train(config)
    assert summary["trained_parameters"] == cost(config)["trained_parameters"] == describe(config)["trained_parameters"]
    with Pipeline.from_config(config) as pipeline:
        assert pipeline("the cat was").text in ("red", "blue")


def test_an_evaluation_belongs_to_what_was_learned(world: Path) -> None:
    config = configured(world, {"verbalizer": "soft"}, steps=2)
    train(config)
    with Pipeline.from_config(config) as pipeline:
        evaluate_prompting(pipeline, world / "out", progress=False)  # type: ignore[arg-type]
    train(configured(world, {"verbalizer": "soft"}, steps=3), restart=True)
    with Pipeline.from_config(config) as pipeline, pytest.raises(ConfigError, match=r"differs in .*module"):
        evaluate_prompting(pipeline, world / "out", progress=False)  # type: ignore[arg-type]


def test_rows_of_a_comparison(world: Path) -> None:
    learned = {"prompting": {"name": "soft_words", "verbalizer": "soft"}, "learning_rates": [0.05, 0.001]}
    plain = {"prompting": {"name": "plain"}}
    config = load_config(comparison(world, methods=[learned, plain], transfer=True))
    results = {one["name"]: one for one in compare_methods(config, world / "out")}
    assert set(results) == {"zero_shot/colours", "soft_words/colours/0", "soft_words/colours/1", "plain/colours/0"}
    first = results["soft_words/colours/0"]
    assert set(first["dev_by_learning_rate"]) == {"0.05", "0.001"} and first["lm_weights_changed"] == 0
    assert first["trained_parameters"] == describe(config)["methods"][0]["trained_parameters"] > 0
    assert results["soft_words/colours/1"]["learning_rate"] == first["learning_rate"] and first["transfer"] == {}
    with pytest.raises(ConfigError, match="'soft_words' needs learning_rates"):
        load_config(comparison(world, methods=[{"prompting": learned["prompting"]}]))


def test_what_cannot_be_trained(world: Path) -> None:
    for changes, words in (
        ({"training": None}, "has no training block"),
        ({"task": settings(world)["task"] | {"dev": None}}, "dev"),
    ):
        with pytest.raises(ConfigError, match=words):
            train(load_config(settings(world, SOFT) | {"training": TRAINING} | changes))
    with pytest.raises(ConfigError, match="there is nothing to train"):
        train(load_config(settings(world)))


def test_from_the_command_line(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = world / "learned.json"
    file.write_text(json.dumps(settings(world, SOFT) | {"training": TRAINING | {"steps": 2}}))
    assert cli.main(["train", str(file), "--dry-run"]) == 0 and "would train: p" in capsys.readouterr().out
    assert cli.main(["train", str(file), "--quiet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["trained_parameters"] == 2 * 32
    assert cli.main(["ask", str(file), COLOURS[0]["text"], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["answer"] in ("red", "blue")
    assert build_prompting.trained_learned(load_config(file), build_prompting.host(load_config(file))) is not None
