"""Neural recursion through its config: pretrained, trained, asked, measured; untrained; refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from frozenlm.recursion.connector import Connector
from frozenlm.recursion.loss import recursion_loss
from pipelines import Pipeline
from pipelines.cli import main
from pipelines.errors import CheckpointError, ConfigError
from pipelines.evaluation.questions import read_questions
from pipelines.evaluation.run import evaluate
from pipelines.loader import load_config
from pipelines.training import pretrain, train
from tests.pipelines.toy_recursion import FACTS, LOOP, configured, make_world, settings, written
from tests.toys import toy_folder

KIND = "neural_recursion"
ASKED = [f"where is the {name}" for name in FACTS]
SMALL = {"width": 8, "heads": 2, "feed_forward": 8}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pretrained and trained, closed book."""
    world = make_world(tmp_path_factory.mktemp("neural"))
    pretrain(configured(world, KIND))
    train(configured(world, KIND))
    return world


def weights(world: Path, name: str) -> dict[str, torch.Tensor]:
    """Of a module in the workspace."""
    return load_file(next((world / "work" / "modules" / name).glob("*.safetensors")))


def test_both_stages_are_modules_of_the_workspace(world: Path) -> None:
    config = configured(world, KIND)
    pretrained, trained = pretrain(config), train(config)
    assert pretrained["already_trained"] and trained["already_trained"]
    assert pretrained["lm_weights_changed"] == trained["lm_weights_changed"] == 0
    assert pretrained["perplexity"] <= pretrained["one_pass_perplexity"]
    modules = world / "work" / "modules"
    assert {path.name for path in modules.iterdir() if path.suffix != ".run"} == {
        "connector",
        "connector.when",
        "connector_pretrained",
        "p",
    }
    assert 0 <= trained["when"]["share"] <= 1
    with Pipeline.from_config(config) as pipeline:
        lm: Any = pipeline.lm
        first, second = (Connector.load(modules / name, lm) for name in ("connector_pretrained", "connector"))
    assert not torch.equal(first.bridges[0].gate, second.bridges[0].gate)


def test_answers_say_what_ran_and_do_not_depend_on_the_batch(world: Path) -> None:
    with Pipeline.from_config(configured(world, KIND)) as pipeline:
        together = pipeline(ASKED)
        assert [answer.passes for answer in together] == [("pass_1", "pass_2")] * 5
        assert together[0].prompt is not None and together[0].candidates is None
        assert set(together[0].timings) == {"pack", "read"}
        alone = pipeline(ASKED[2])
        assert alone.text == together[2].text
        assert alone.score == pytest.approx(together[2].score, abs=1e-4)
        assert pipeline.provenance()["connector_sha256"] is not None


def below(world: Path, **changes: Any) -> Any:
    """The config with recursion for unsure questions only."""
    when = {"rule": "below_confidence", **changes.pop("when", {})}
    return configured(world, KIND, when=when, **changes)


def test_sure_questions_get_one_plain_pass(world: Path) -> None:
    def answers(config: Any) -> list[Any]:
        with Pipeline.from_config(config) as pipeline:
            return pipeline(ASKED)

    bare = settings(world, KIND) | {"kind": "closed_book", "prompt": None}
    bare = {key: bare[key] for key in ("kind", "workspace", "lm", "packing", "generation", "prompt")}
    never, plain, always = (
        answers(below(world, when={"threshold": 0.0})),
        answers(bare),
        answers(configured(world, KIND)),
    )
    assert {answer.passes for answer in never} == {("plain",)}
    assert {answer.prompt for answer in never} == {None}
    assert set(never[0].timings) == {"pack", "plain"}
    middle = sorted(answer.confidence for answer in never)[2]
    some = answers(below(world, when={"threshold": middle}))
    for one, once, fully in zip(some, plain, always, strict=True):
        recursed = one.confidence < middle
        assert one.passes == (("plain", "pass_1", "pass_2") if recursed else ("plain",))
        assert one.prompt == (fully.prompt if recursed else None)
        assert one.text == (fully if recursed else once).text
        assert one.score == pytest.approx((fully if recursed else once).score, abs=1e-4)
    assert sum("pass_2" in answer.passes for answer in some) == 2


def test_the_plain_pass_may_have_the_prompt_of_a_config_of_one_pass(world: Path) -> None:
    wide = {"name": "one_pass", "length": 5, "position": "prefix"}
    once = {"kind": "closed_book", "prompt": wide}
    lines: Any = {key: value for key, value in settings(world, KIND).items() if key not in ("connector", "pretraining")}
    train(load_config(lines | once))
    with Pipeline.from_config(lines | once) as pipeline:
        answers = pipeline(ASKED)
    config = below(world, when={"threshold": 0.0}, plain_prompt=wide)
    assert config.reserved_tokens == 5 - 3 and configured(world, KIND).reserved_tokens == 0
    with Pipeline.from_config(config) as pipeline:
        for one, other in zip(pipeline(ASKED), answers, strict=True):
            assert (one.text, one.prompt) == (other.text, other.prompt)
            assert one.score == pytest.approx(other.score, abs=1e-4)
    assert train(below(world, plain_prompt=wide, connector=SMALL | {"name": "behind"}))["when"] is not None


def test_the_threshold_is_the_one_that_training_recorded(world: Path) -> None:
    config = below(world)
    tuned = train(config)["when"]
    with Pipeline.from_config(config) as pipeline:
        assert pipeline.provenance()["when_threshold"] == tuned["threshold"]
    with pytest.raises(CheckpointError, match="was tuned with other max_share"):
        Pipeline.from_config(below(world, when={"max_share": 0.5}))(ASKED[0])
    untrained = SMALL | {"missing": "untrained", "name": "nobody"}
    with pytest.raises(CheckpointError, match="no tuned threshold"):
        Pipeline.from_config(below(world, connector=untrained))(ASKED[0])
    without_dev = settings(world, KIND)["training"] | {"dev": []}
    with pytest.raises(ConfigError, match="is tuned on dev"):
        train(below(world, training=without_dev))
    assert train(configured(world, KIND, training=without_dev, connector=SMALL | {"name": "no_dev"}))["when"] is None


def test_an_evaluation_says_how_many_questions_recursed(world: Path, tmp_path: Path) -> None:
    def share(config: Any, out: str) -> float:
        asked = read_questions(config.evaluation.questions)
        with Pipeline.from_config(config) as pipeline:
            found = evaluate(pipeline, asked, tmp_path / out, progress=False)
        assert len(found["ci95"]["second_pass_share"]) == 2 and "oracle_at_n" not in found
        rows = [json.loads(line) for line in (tmp_path / out / "predictions.jsonl").read_text().splitlines()]
        assert found["second_pass_share"] == sum("pass_2" in row["passes"] for row in rows) / 5
        return found["second_pass_share"]

    assert share(configured(world, KIND), "always") == 1.0
    assert share(below(world, when={"threshold": 0.0}), "never") == 0.0
    with Pipeline.from_config(below(world, when={"threshold": 0.0})) as pipeline:
        middle = sorted(answer.confidence for answer in pipeline(ASKED))[2]
    assert share(below(world, when={"threshold": middle}), "some") == 2 / 5


def test_untrained_says_what_one_pass_says(world: Path) -> None:
    said: list[str] = []
    lines: Any = settings(world, KIND, prompt=None, connector={"missing": "untrained", "name": "none"})
    bare = {key: lines[key] for key in ("workspace", "lm", "packing", "generation")} | {"kind": "closed_book"}
    with Pipeline.from_config(lines, log=said.append) as recursive, Pipeline.from_config(bare) as plain:
        for one, other in zip(recursive(ASKED), plain(ASKED), strict=True):
            assert one.text == other.text
            assert one.score == pytest.approx(other.score, abs=1e-4)
    assert any("an untrained one" in line for line in said)


def test_over_passages_and_without_pretraining(world: Path) -> None:
    said: list[str] = []
    changes: dict[str, Any] = {
        "reads": True,
        "pretraining": None,
        "connector": {"width": 8, "heads": 2, "name": "reader", "missing": "untrained", "passes": 3, "shared": False},
        "prompt": {"name": "reader_p", "length": 3, "position": "prefix", "start": None},
        "first_pass_cache": {"kind": "off"},
    }
    config = configured(world, KIND, **changes)
    found = train(config, log=said.append)
    assert found["examples"] == 4 and found["lm_weights_changed"] == 0
    assert "connector: not pretrained (connector.missing: untrained)" in said
    with Pipeline.from_config(config) as pipeline:
        answer = pipeline(ASKED[0])
    assert answer.passes == ("pass_1", "pass_2", "pass_3") and answer.context
    changes["connector"] = {**changes["connector"], "passes": 2}
    with pytest.raises(CheckpointError, match="trained for 3 passes, but 2 are wanted"):
        Pipeline.from_config(configured(world, KIND, **changes))(ASKED[0])


def test_the_pass_1_cache_changes_no_loss(world: Path) -> None:
    summaries = []
    for kind in ("off", "disk"):
        cache, name = {"kind": kind}, {"width": 8, "heads": 2, "feed_forward": 8, "name": f"cache_{kind}"}
        config = configured(world, KIND, first_pass_cache=cache, connector=name, prompt={"name": kind, "length": 3})
        summaries.append(train(config))
    off, disk = summaries
    assert off["best_score"] == pytest.approx(disk["best_score"], abs=1e-6)
    assert (off["rows_over_cache_budget"], disk["rows_over_cache_budget"]) == (None, 0)


def test_a_prompt_may_begin_as_another_one_ended(world: Path) -> None:
    begun = {"name": "begun", "length": 3, "start": "p"}
    sizes = {"width": 8, "heads": 2, "feed_forward": 8, "name": "begun_connector"}
    assert train(configured(world, KIND, prompt=begun, connector=sizes))["lm_weights_changed"] == 0
    with pytest.raises(CheckpointError, match="no trained prompt to start from"):
        train(configured(world, KIND, prompt=begun | {"start": "nobody"}, connector=sizes))
    with pytest.raises(CheckpointError, match=r"a prompt of 3 tokens in suffix position, the config asks for 5"):
        train(configured(world, KIND, prompt=begun | {"length": 5}, connector=sizes))


@pytest.mark.parametrize("command", [pretrain, train])
def test_killed_and_started_again_ends_in_the_same_bits(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Any
) -> None:
    fresh = make_world(tmp_path)
    config = configured(fresh, KIND)
    if command is train:
        pretrain(config)
    calls: list[int] = []
    target = f"pipelines.training.{'pretraining' if command is pretrain else 'neural_recursion'}.recursion_loss"

    def failing(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:  # in the last step; the state of step 2 is saved
            raise KeyboardInterrupt
        return recursion_loss(*arguments)

    monkeypatch.setattr(target, failing)
    with pytest.raises(KeyboardInterrupt):
        command(config)
    monkeypatch.undo()
    command(config)
    for name in [config.pretraining.name] if command is pretrain else [config.connector.name, config.prompt.name]:
        again, whole = weights(fresh, name), weights(world, name)
        assert again.keys() == whole.keys()
        assert all(torch.equal(again[key], value) for key, value in whole.items())


def test_the_prompt_may_learn_at_a_rate_of_its_own(world: Path) -> None:
    """AdamW's first step is as long as its rate, so one step moves the prompt a hundred times as far as the others."""
    start = weights(world, "p")["vectors"]
    loop = settings(world, KIND)["training"] | {"steps": 1, "dev": [], "learning_rate": 1e-4}
    sizes = {"width": 8, "heads": 2, "feed_forward": 8}
    moved = []
    for name, rate in (("alike", None), ("apart", 1e-2)):
        training = loop | {"prompt_learning_rate": rate}
        prompt, connector = {"name": f"{name}_p", "length": 3, "start": "p"}, sizes | {"name": name}
        train(configured(world, KIND, training=training, prompt=prompt, connector=connector))
        moved.append((weights(world, f"{name}_p")["vectors"] - start).abs().max().item())
    assert moved == pytest.approx([1e-4, 1e-2], rel=0.05)
    assert all(torch.equal(value, weights(world, "apart")[key]) for key, value in weights(world, "alike").items())
    with pytest.raises(ConfigError, match=r"prompt_learning_rate is 0\.01, but the config has no prompt block"):
        configured(world, KIND, training=training, prompt=None)


def test_a_rounding_dtype_of_the_pass_1_cache_is_part_of_the_run(world: Path) -> None:
    named = {"width": 8, "heads": 2, "feed_forward": 8, "name": "rounded"}
    train(configured(world, KIND, first_pass_cache={"dtype": "bfloat16"}, connector=named, prompt=None))
    with pytest.raises(ConfigError, match=r"first_pass_dtype: stored 'bfloat16', now 'absent'"):
        train(configured(world, KIND, connector=named, prompt=None))


def test_a_pass_1_cache_of_old_data_is_removed(tmp_path: Path) -> None:
    world, said = make_world(tmp_path), []
    kept = world / "work" / "cache" / "first_pass"
    changes: dict[str, Any] = {"connector": {"width": 8, "heads": 2, "feed_forward": 8, "missing": "untrained"}}
    pretrain(configured(world, KIND, **changes))
    (of_text,) = kept.iterdir()
    train(configured(world, KIND, **changes))
    old = {path for path in kept.iterdir() if path != of_text}
    (world / "dev.jsonl").write_text(json.dumps({"_id": "q9", "text": "who is the king", "answers": ["nobody"]}))
    train(configured(world, KIND, **changes), restart=True, log=said.append)
    assert len(old) == 1 and old.isdisjoint(kept.iterdir())
    assert of_text in kept.iterdir() and len(list(kept.iterdir())) == 2
    assert any("removed, since run connector reads other data or another LM now" in line for line in said)


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = make_world(tmp_path)
    file, out = str(written(world, KIND)), str(tmp_path / "out")
    assert main(["train", file, "--quiet"]) == 1
    assert "run `frozenlm pretrain CONFIG`" in capsys.readouterr().err
    assert main(["ask", file, ASKED[0], "--quiet", "--set", "prompt=null"]) == 1
    assert "no trained connector" in capsys.readouterr().err
    assert main(["pretrain", file, "--quiet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["lm_weights_changed"] == 0
    assert main(["train", file, "--quiet"]) == 0
    assert main(["evaluate", file, "--out", out, "--quiet", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["n"] == 5 and found["lm_weights_changed"] == 0 and found["connector_sha256"]
    assert "oracle_at_n" not in found
    assert main(["ask", file, ASKED[0], "--quiet"]) == 0
    assert "passes: pass_1, pass_2" in capsys.readouterr().out
    assert main(["verify", str(world / "work")]) == 0


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = make_world(tmp_path)
    toy_folder("t5", tmp_path)

    def said(command: str, **changes: Any) -> str:
        arguments = [command, str(written(world, KIND, **changes)), *(["where"] if command == "ask" else []), "--quiet"]
        assert main(arguments) in (1, 2)
        text = capsys.readouterr().err
        assert "Traceback" not in text
        return " ".join(text.split())

    seq2seq = {"lm": {"model": str(tmp_path / "t5")}}
    for command in ("pretrain", "train", "ask"):
        changes = seq2seq | ({"packing": {"max_tokens": 64}} if command == "ask" else {})
        assert "needs a decoder-only LM" in said(command, **changes)
    loop = {**LOOP, "length": 8}
    assert "has no pretraining block" in said("pretrain", pretraining=None)
    assert "has no pretraining block" in said("train", pretraining=None)
    assert "needs text: name files" in said("pretrain", pretraining=loop)
    assert "cannot be read" in said("pretrain", pretraining=loop | {"files": [str(world / "none.txt")]})
    (world / "bad.txt").write_bytes(b"\xff\xfe\xff")
    assert "is not UTF-8 text" in said("pretrain", pretraining=loop | {"files": [str(world / "bad.txt")]})
    (world / "bad.jsonl").write_text('{"txt": "a"}')
    assert "bad.jsonl:1: no JSON object" in said("pretrain", pretraining=loop | {"files": [str(world / "bad.jsonl")]})
    (world / "empty.txt").write_text("\n\n")
    assert "nothing to read" in said("pretrain", pretraining=loop | {"files": [str(world / "empty.txt")]})
    of_text = loop | {"files": [str(world / "text.txt")]}
    assert "dev_blocks holds 500 of them out" in said("pretrain", pretraining=of_text | {"dev_blocks": 500})
    assert "do not fit the LM's window of 96" in said("pretrain", pretraining=of_text | {"length": 400})
    assert "passes" in said("train", connector={"passes": 1})
    assert "heads is 3; expected a divisor" in said("pretrain", connector={"width": 8, "heads": 3})
    assert "both passes' prompts are called 'p'" in said("train", plain_prompt={"name": "p"})
    assert "never looked at" in said("train", when={"threshold": 0.5})
    assert "needs a retriever block" in said("train", reranker={"kind": "cross_encoder", "model": "x"})


def test_a_connector_of_another_lm_or_size_is_refused(world: Path, tmp_path: Path) -> None:
    toy_folder("gpt2", tmp_path, seed=5)
    other = {"lm": {"model": str(tmp_path / "gpt2")}, "prompt": None}
    with pytest.raises(CheckpointError, match=r"another LM|other LM"):
        Pipeline.from_config(configured(world, KIND, **other))(ASKED[0])
    with pytest.raises(CheckpointError, match=r"of another size: width 8 \(the config asks for 16\)"):
        Pipeline.from_config(configured(world, KIND, connector={"width": 16, "heads": 2, "feed_forward": 8}))(ASKED[0])
    with pytest.raises(ConfigError, match="nothing to pretrain"):
        pretrain(configured(world, "textual_recursion"))
