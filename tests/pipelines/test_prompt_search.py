"""A search for a template and words, from a config: what it finds, keeps, refuses and hands over."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines import cli
from pipelines.errors import CheckpointError, ConfigError
from pipelines.evaluation.prompting import evaluate_prompting
from pipelines.loader import load_config
from pipelines.pipeline import Pipeline
from pipelines.prompt_search import search_prompts
from pipelines.prompt_search_results import best_yaml
from pipelines.verify import verify
from tests.pipelines.toy_multitask import COLOURS, make_world
from tests.toys import toy_folder, toy_masked_lm, toy_model, toy_sentinel_lm, toy_tokenizer

SEARCH: dict[str, Any] = {
    "templates": ["{text} was {answer}", "{text} {answer}"],
    "words": {"red": ["city", "red"], "blue": ["river", "blue"]},
}
TRIED = 2 * (2 * 2)  # every template with every pair of words


def settings(world: Path, search: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    records = str(world / "colours.jsonl")
    return {
        "kind": "prompt_search",
        "workspace": str(world / "work"),
        "lm": {"model": str(world / "lm")},
        "task": {
            "name": "colours",
            **dict.fromkeys(("train", "dev", "test"), records),
            "template": "text {text} answer",
            "verbalizer": {"red": "red", "blue": "blue"},
        },
        "prompting": {"name": "p"},
        "input": {"max_tokens": 24},
        "search": SEARCH if search is None else search,
    } | changes


def searched(source: dict[str, Any], out: Path, **more: Any) -> dict[str, Any]:
    return search_prompts(load_config(source), out, **more)


def measured(source: Any, out: Path) -> float:
    """The accuracy on the dev split, as `frozenlm evaluate` finds it."""
    with Pipeline.from_config(load_config(source, overrides=["evaluation.split=dev"])) as pipeline:
        return float(evaluate_prompting(pipeline, out, progress=False)["mean"]["score"])  # type: ignore[arg-type]


def scores_in(out: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((out / "scores.json").read_text())["scores"]
    return found


@pytest.fixture
def world(tmp_path: Path) -> Path:
    return make_world(tmp_path)


@pytest.fixture
def echo(world: Path) -> Path:
    """An LM that says again the last word that it reads, and to which blue is next to red; colours end the records."""
    model, words = toy_model("gpt2"), toy_tokenizer().convert_tokens_to_ids(["red", "blue"])
    with torch.no_grad():
        model.transformer.wpe.weight.zero_()
        for block in model.transformer.h:
            block.attn.c_proj.weight.zero_(), block.attn.c_proj.bias.zero_()
            block.mlp.c_proj.weight.zero_(), block.mlp.c_proj.bias.zero_()
        vectors = model.transformer.wte.weight
        vectors[words[1]] = 0.9 * vectors[words[0]] + 0.4 * vectors[words[1]]
    model.save_pretrained(world / "lm")
    return world


def test_the_planted_candidate_is_found(echo: Path) -> None:
    """Only the template that ends with the record, with both of the words that the LM says again, is always right."""
    found = searched(settings(echo), echo / "out")
    assert found["best"] == {"score": 1.0, "template": "{text} {answer}", "words": {"red": "red", "blue": "blue"}}
    assert found["baseline"]["template"] == "{text} was {answer}"
    assert found["baseline"]["words"] == {"red": "city", "blue": "river"}
    assert found["baseline"]["score"] == 0.5  # it says the same to every record, and half of them are red
    assert (found["tried"], found["impossible"], found["dev_records"]) == (TRIED, 0, len(COLOURS))
    assert [one["score"] for one in found["candidates"]].count(1.0) == 1
    assert (found["lm_weights_changed"], found["lm_weights"] > 0) == (0, True)
    assert all(one.problem is None for one in verify(echo / "out"))


def test_templates_may_be_lists_of_parts(tmp_path: Path) -> None:
    parts = [[{"field": "text"}, {"text": " was "}, {"answer": True}], "{text} {answer}"]
    found, same = (load_config(settings(tmp_path, SEARCH | own)) for own in ({"templates": parts}, {}))
    assert found.templates == same.templates == SEARCH["templates"]  # type: ignore[union-attr]


def test_every_score_is_what_evaluate_finds(world: Path) -> None:
    found = searched(settings(world), world / "out")
    for number, one in enumerate(found["candidates"]):
        asked = {"name": "p", "templates": [one["template"]], "words": one["words"]}
        plain = settings(world, kind="prompting", prompting=asked)
        del plain["search"]
        assert one["score"] == measured(plain, world / f"{number}")
    assert len({one["score"] for one in found["candidates"]}) > 1


def test_the_configs_own_choice_comes_first_and_is_tried_beside_the_trials(world: Path) -> None:
    own = {"name": "p", "templates": ["the {text} is {answer}"], "words": {"red": ["red", "city"], "blue": "blue"}}
    found = searched(settings(world, SEARCH | {"trials": 1}, prompting=own), world / "out")
    first = json.dumps([own["templates"][0], {"blue": "blue", "red": "red"}])
    assert first in scores_in(world / "out") and found["tried"] == 2
    assert found["baseline"]["template"] == own["templates"][0]
    config = load_config(settings(world, prompting=own))
    assert config.templates == [*own["templates"], *SEARCH["templates"]]
    assert config.words == {"red": ["red", "city"], "blue": ["blue", "river"]}
    neither = load_config(settings(world, {"words": {"red": ["city"]}, "propose_words": {}}))
    assert neither.templates == ["text {text} answer {answer}"]  # the task's own
    assert neither.words == {"red": ["city"], "blue": ["blue"]}


def test_a_search_goes_on_where_it_stopped_and_scores_nothing_twice(world: Path) -> None:
    source, file = settings(world), world / "out" / "scores.json"
    whole = searched(source, world / "whole")
    told: list[str] = []

    def stop(line: str) -> None:
        told.append(line)
        if len(told) == 5:  # the first line is no candidate, and the fourth candidate's score is not kept yet
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        searched(source, world / "out", log=stop)
    kept = scores_in(world / "out")
    assert len(kept) == 3 and not (world / "out" / "best.yaml").exists()
    marked = dict.fromkeys(kept, 0.0625)  # no share of eight records: who scores again is found out
    file.write_text(json.dumps(json.loads((world / "whole" / "scores.json").read_text()) | {"scores": marked}))
    searched(source, world / "out")
    now = scores_in(world / "out")
    assert len(now) == TRIED and {key: now[key] for key in kept} == marked
    assert {key: score for key, score in now.items() if key not in kept}.items() <= scores_in(world / "whole").items()
    written = file.stat().st_ino  # every score that is added replaces the file
    searched(source, world / "out")
    assert file.stat().st_ino == written
    again = searched(source, world / "out", restart=True)
    assert again["candidates"] == whole["candidates"] and scores_in(world / "out") == scores_in(world / "whole")


def test_more_candidates_and_trials_may_be_added(world: Path) -> None:
    few = searched(settings(world, SEARCH | {"trials": 2}), world / "out")
    before = scores_in(world / "out")
    more = SEARCH | {"templates": [*SEARCH["templates"], "a {text} is {answer}"], "trials": 99}
    found = searched(settings(world, more), world / "out")
    assert found["tried"] == 3 * 4 and before.items() <= scores_in(world / "out").items()
    assert found["best"]["score"] >= few["best"]["score"]


def test_a_folder_holds_one_search(world: Path) -> None:
    searched(settings(world), world / "out")
    (world / "fewer.jsonl").write_text("\n".join(map(json.dumps, COLOURS[:6])))
    (world / "other").mkdir()
    toy_folder("gpt2", world / "other", seed=1)
    task = settings(world)["task"]
    for changes, words in (
        ({"task": task | {"dev": str(world / "fewer.jsonl")}}, "6 dev records"),
        ({"lm": {"model": str(world / "other" / "gpt2")}}, "LM "),
        ({"prompting": {"name": "p", "pieces": "mean"}}, "settings "),
        ({"input": {"max_tokens": 23}}, "settings "),
    ):
        with pytest.raises(CheckpointError, match=rf"scores.json belongs to the search .* this one is .*{words}"):
            searched(settings(world, **changes), world / "out")
    (world / "out" / "scores.json").write_text("{")
    with pytest.raises(CheckpointError, match="not a search's file"):
        searched(settings(world), world / "out")
    (world / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        searched(settings(world), world / "file")


def test_dev_records_are_drawn_by_the_seed(world: Path) -> None:
    few = {"search": SEARCH | {"limit": 3, "trials": 1}}
    assert searched(settings(world, **few), world / "out")["dev_records"] == 3
    assert searched(settings(world, **few), world / "out")["tried"] == 2
    with pytest.raises(CheckpointError, match="3 dev records"):
        searched(settings(world, seed=1, **few), world / "out")


WAYS: list[dict[str, Any]] = [
    {"demonstrations": {"k": 2, "separator": "\n", "choose": "nearest"}},
    {"demonstrations": {"k": 1, "separator": "\n"}, "calibration": {"kind": "contextual"}, "pieces": "first"},
]


@pytest.mark.parametrize("way", WAYS, ids=["nearest", "calibrated"])
def test_the_config_found_says_the_same_from_anywhere(
    world: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, way: dict[str, Any]
) -> None:
    source = settings(world, prompting={"name": "p"} | way, encoder={"model": "./encoder"}, lm={"model": "./lm"})
    source["task"] |= dict.fromkeys(("train", "dev", "test"), "${env:TOY_DATA:-.}/colours.jsonl")
    source["workspace"] = "${env:TOY_WORK:-runs}/work"
    (world / "parent.yaml").write_text(json.dumps(source | {"search": {}}))
    (world / "search.yaml").write_text(json.dumps({"extends": "parent.yaml", "search": SEARCH}))
    monkeypatch.delenv("TOY_DATA", raising=False)
    found = search_prompts(load_config(world / "search.yaml"), world / "out")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.copy(found["best_yaml"], elsewhere / "moved.yaml")
    monkeypatch.chdir(elsewhere)
    config = load_config("moved.yaml")
    assert config.kind == "prompting" and config.prompting.templates == [found["best"]["template"]]
    assert config.prompting.words == found["best"]["words"] and config.extends is None
    assert measured("moved.yaml", elsewhere / "measured") == found["best"]["score"]
    lines = Path("moved.yaml").read_text().splitlines()
    assert f"accuracy {found['best']['score']:.4f} on 8 dev records of colours" in lines[1]
    assert any("${env:TOY_WORK:-runs}/work" in line for line in lines)
    with Pipeline.from_config("moved.yaml") as pipeline:
        assert pipeline("the cat is red").text in ("red", "blue")


STRANGE = ["1e-3", "null", "yes", "010", "~", "a: b # c", "'\"", "{{x}}", "é…", "\n", "- a", "12:30", ".5", "*a", "&b"]


def test_any_text_survives_the_file(tmp_path: Path) -> None:
    words = {"red": [f"{one}." if not one.strip() else one for one in STRANGE], "blue": ["blue"]}
    for number, word in enumerate(words["red"]):
        template = f"{word.replace('{{x}}', 'x')} {{text}}\n\t {STRANGE[7]} {{answer}}"
        config = load_config(settings(tmp_path, {"templates": [template], "words": words, "propose_words": {}}))
        job = config.job([template], {"red": word, "blue": "blue"})
        (tmp_path / f"{number}.yaml").write_text(best_yaml(config, job, "said"), encoding="utf-8")
        read = load_config(tmp_path / f"{number}.yaml")
        assert read.model_dump() == job.model_dump()


def proposing(world: Path, **changes: Any) -> dict[str, Any]:
    """A config that has templates written by a toy T5 and words said by the LM."""
    t5 = toy_sentinel_lm(seed=2, loud=3.0)
    t5.model.save_pretrained(world / "t5")
    t5.tokenizer.save_pretrained(world / "t5")
    asked = {"model": str(world / "t5"), "n": 3, "beams": 6, "records": 4, "max_tokens": 4}
    search = {"propose_templates": asked, "propose_words": {"n": 3, "records": 5}, "trials": 5}
    return settings(world, search, **changes)


@pytest.mark.parametrize("host", ["decoder", "masked", "t5"])
def test_templates_and_words_are_proposed_once(world: Path, host: str) -> None:
    changes: dict[str, Any] = {}
    if host != "decoder":
        lm: Any = toy_masked_lm() if host == "masked" else toy_sentinel_lm()
        lm.model.save_pretrained(world / "host")
        lm.tokenizer.save_pretrained(world / "host")
        model = {"model": str(world / "host")}
        changes = {"lm": None, "masked_lm": model} if host == "masked" else {"lm": model}
    source = proposing(world, **changes)
    found = searched(source, world / "out")
    kept = json.loads((world / "out" / "proposed.json").read_text())
    assert 0 < len(kept["templates"]) <= 3 and len(kept["templates"]) == found["proposed"]["templates"]
    assert all(len(own) == 3 for own in kept["words"].values()) and set(kept["words"]) == {"red", "blue"}
    assert all(one.endswith("{answer}") for one in kept["templates"]) or host != "decoder"
    assert found["impossible"] == 0 and found["tried"] > 1
    tried = [json.loads(key) for key in scores_in(world / "out")]
    assert {template for template, _ in tried} <= {"text {text} answer {answer}", *kept["templates"]}
    shutil.rmtree(world / "t5")  # a T5 that is not there cannot be asked again
    assert searched(source, world / "out") == found
    more = source | {"search": source["search"] | {"propose_words": {"n": 2, "records": 5}}}
    with pytest.raises(CheckpointError, match=r"proposed.json belongs to the search .*, proposals "):
        searched(more, world / "out")
    (world / "out" / "proposed.json").write_text("[]")
    with pytest.raises(CheckpointError, match="does not hold proposals"):
        searched(source, world / "out")


def test_only_a_t5_writes_templates(world: Path) -> None:
    source = proposing(world)
    source["search"]["propose_templates"]["model"] = str(world / "lm")
    with pytest.raises(ConfigError, match="proposed by an encoder-decoder LM with the sentinels"):
        searched(source, world / "out")
    assert not (world / "out" / "proposed.json").exists()


def test_candidates_that_the_lm_cannot_be_asked_with_are_counted(world: Path) -> None:
    same = {"words": {"red": ["red", "Cat"], "blue": ["blue", "cat"]}}  # one token to a tokenizer without capitals
    told: list[str] = []
    found = searched(settings(world, same), world / "out", log=told.append)
    assert (found["tried"], found["impossible"], len(found["candidates"])) == (4, 1, 3)
    assert sum(line.startswith("impossible") and "the same tokens" in line for line in told) == 1
    for search, words in (
        ({"words": {"red": ["red", "zzz1qq"]}}, "has no token in this LM's vocabulary"),
        ({"words": {"red": ["red", "Blue"]}}, "are the same tokens"),
        (SEARCH | {"templates": ["{text} {answer}", "{answer} {text}"]}, "a decoder-only LM answers behind all"),
        (SEARCH | {"templates": ["{title} {answer}"]}, "a template reads the field 'title'; the record has text"),
    ):
        with pytest.raises(ConfigError, match=words):
            searched(settings(world, search), world / "other")
    assert not (world / "other" / "scores.json").exists()


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"search": SEARCH | {"trials": 0}}, "search.trials: input should be greater than or equal to 1"),
    ({"search": SEARCH | {"limit": 0}}, "search.limit: input should be greater than or equal to 1"),
    ({"search": {}}, "there is nothing to choose; add search.templates"),
    ({"search": SEARCH | {"words": {"red": ["red"], "green": ["green"]}}}, "words has 'green'; the labels are 'red'"),
    ({"search": SEARCH | {"words": {"red": []}}}, "search.words.red: list should have at least 1 item"),
    ({"search": SEARCH | {"words": {"red": ["red", " "]}}}, "one for 'red' is blank"),
    ({"search": SEARCH | {"words": {"red": ["blue"]}}}, "share the word 'blue'"),
    ({"search": SEARCH | {"templates": ["{text}"]}}, "has 0 slots {answer}"),
    ({"search": SEARCH | {"templates": ["{text {answer}"]}}, "lone '{'"),
    ({"search": SEARCH | {"templates": ["{label} {answer}"]}}, "which is the label itself"),
    ({"search": SEARCH | {"templates": ["{soft:a} {text} {answer}"]}}, "templates.0 has the soft slot 'a'"),
    ({"search": SEARCH | {"template": "x"}}, "search.template: unknown key"),
    ({"search": {"propose_templates": {"n": 3}}}, "search.propose_templates.model: missing"),
    ({"search": {"propose_templates": {"model": "t5", "max_tokens": 1}}}, "greater than or equal to 2"),
    ({"search": SEARCH | {"propose_words": {"n": 0}}}, "search.propose_words.n: input should be greater"),
    (
        {"search": SEARCH | {"templates": ["{text} {more} {answer}"], "propose_templates": {"model": "t5"}}},
        "propose_templates writes templates for one field, and these have text, more",
    ),
    ({"lm": None}, "either an lm or a masked_lm, got none"),
    ({"masked_lm": {"model": "x"}}, "either an lm or a masked_lm, got both"),
    ({"prompting": {"name": "p", "templates": ["{soft:a} {text} {answer}"]}}, "which would have to be trained"),
    ({"prompting": {"name": "p", "verbalizer": "prototypical"}}, "which would have to be trained"),
    ({"prompting": {"name": "p", "ensemble": "vote"}}, "leave prompting.ensemble and prompting.weights out"),
    ({"prompting": {"name": "p", "templates": ["{text} {answer}"], "weights": [1.0]}}, "one template at a time"),
    ({"prompting": {"name": "p", "cut": ["title"]}}, "cut names 'title'"),
    ({"prompting": {"name": "p", "demonstrations": {"choose": "nearest"}}}, "nearest needs an encoder"),
    ({"prompting": {"name": "p", "words": {"green": "green", "blue": "blue"}}}, "words has 'green'"),
    ({"evaluation": {"normalize": "tokens"}}, "evaluation.normalize is tokens"),
    ({"training": {"steps": 1}}, "training: unknown key"),
]


@pytest.mark.parametrize(("changes", "words"), FAULTS, ids=[words for _, words in FAULTS])
def test_faults_are_told_when_the_config_is_read(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(settings(tmp_path) | changes)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_tasks_that_cannot_be_searched(tmp_path: Path) -> None:
    task = settings(tmp_path)["task"]
    free = {key: value for key, value in task.items() if key != "verbalizer"} | {"target": "{label}", "metric": "em_f1"}
    for own, search, words in (
        (free, {}, "needs a fixed set of choices"),
        (task | {"dev": None}, SEARCH, "dev split; name its dev records"),
        (task | {"train": None}, {"propose_words": {}}, "propose_words reads the task's train split"),
    ):
        with pytest.raises(ConfigError, match=words):
            load_config(settings(tmp_path, search, task=own))
    load_config(settings(tmp_path, task=task | {"train": None, "test": None}))


def test_from_the_command_line(echo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = echo / "search.json", echo / "out"
    file.write_text(json.dumps(settings(echo)))
    assert cli.main(["search-prompts", str(file), "--out", str(out), "--set", "search.trials=3"]) == 0
    shown = capsys.readouterr()
    assert "0.5000 (the first)" in shown.out and "LM weights changed: 0 of" in " ".join(shown.out.split())
    assert "8 dev records" in shown.err
    assert cli.main(["search-prompts", str(file), "--out", str(out), "--json", "-q"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["best"]["score"] == 1.0 and not shown.err
    best = str(out / "best.yaml")
    assert cli.main(["evaluate", best, "--out", str(echo / "measured"), "-q", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mean"]["score"] == 1.0
    assert cli.main(["ask", best, "the cat is red", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["answer"] == "red"
    assert cli.main(["config", "check", str(file), best]) == 0
    capsys.readouterr()
    for command in (
        ["evaluate", "--out", str(echo / "no")],
        ["ask", "x"],
        ["prompts", "--out", str(echo / "no")],
        ["train"],
        ["train", "--dry-run"],
        ["pretrain"],
        ["index"],
        ["cost"],
        ["export", "--out", str(echo / "no")],
        ["import", str(echo)],
        ["compare-methods", "--out", str(echo / "no")],
    ):
        name, *rest = command
        assert cli.main([name, str(file), *rest]) == 2, command
        said = capsys.readouterr().err
        assert "kind prompt_search" in said or "is prompt_search" in said
        assert said.count("error:") == 1 and "bug" not in said, said
    assert cli.main(["search-prompts", best, "--out", str(echo / "no")]) == 2
    assert "is prompting" in capsys.readouterr().err and not (echo / "no").exists()
