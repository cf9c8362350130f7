"""The frozen LM as it is, asked from a config: every host, what is counted and refused, rows of a comparison."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines import cli
from pipelines.comparison.figures import figures
from pipelines.comparison.runs import compare_methods, read_results, runs
from pipelines.comparison.show import write_report
from pipelines.cost import cost
from pipelines.cost_comparison import comparison_cost
from pipelines.cost_types import Assumed
from pipelines.dry_run import describe
from pipelines.errors import ConfigError
from pipelines.evaluation.multitask import evaluate_multitask
from pipelines.evaluation.prompting import evaluate_prompting
from pipelines.evaluation.task_figures import compare_tasks
from pipelines.loader import load_config
from pipelines.pipeline import Pipeline
from pipelines.training import train
from pipelines.verify import verify
from tests.pipelines.toy_multitask import COLOURS, make_world
from tests.pipelines.toy_multitask import settings as multitask_settings
from tests.toys import EMBEDDED, toy_masked_lm, toy_sentinel_lm

SHOWN = {"k": 2, "separator": "\n"}
NEAREST = SHOWN | {"choose": "nearest"}
TEMPLATES = ["{text} is {answer}", "the {text} was {answer}"]


def settings(world: Path, prompting: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    records = str(world / "colours.jsonl")
    return {
        "kind": "prompting",
        "workspace": str(world / "work"),
        "lm": {"model": str(world / "lm")},
        "encoder": {"model": str(world / "encoder")},
        "task": {
            "name": "colours",
            **dict.fromkeys(("train", "dev", "test"), records),
            "template": "text {text} answer",
            "verbalizer": {"red": "red", "blue": "blue"},
        },
        "prompting": {"name": "p"} | (prompting or {}),
        "input": {"max_tokens": 24},
    } | changes


def measured(source: dict[str, Any], out: Path, **more: Any) -> dict[str, Any]:
    with Pipeline.from_config(load_config(source)) as pipeline:
        return evaluate_prompting(pipeline, out, progress=False, **more)  # type: ignore[arg-type]


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


@pytest.fixture
def world(tmp_path: Path) -> Path:
    return make_world(tmp_path)


WAYS: list[dict[str, Any]] = [
    {},
    {"demonstrations": SHOWN, "calibration": {"kind": "contextual", "texts": ["a", ""]}},
    {"demonstrations": NEAREST, "calibration": {"kind": "pmi", "demonstrations": False}},
    {"demonstrations": SHOWN | {"choose": "diverse", "limit": 4, "order": "best_first"}, "pieces": "first"},
    {"templates": TEMPLATES, "words": {"red": ["red", "blue river"], "blue": "blue"}, "weights": [1.0, 2.0]},
    {"templates": TEMPLATES, "ensemble": "vote"},
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(way) or "plain")
def test_measured_and_asked(world: Path, way: dict[str, Any]) -> None:
    with Pipeline.from_config(load_config(settings(world, way))) as pipeline:
        found = evaluate_prompting(pipeline, world / "out", progress=False)  # type: ignore[arg-type]
        assert (found["n"], found["lm_weights_changed"], found["demonstrations_dropped"]) == (len(COLOURS), 0, 0)
        assert found["tasks"]["colours"]["n"] == len(COLOURS) and found["mean"]["ci95"]
        answers = pipeline.answer([one["text"] for one in COLOURS])
        right = sum(a.text == one["label"] for a, one in zip(answers, COLOURS, strict=True))
        assert found["mean"]["score"] == right / len(COLOURS)
        assert pipeline("the cat is red").text == answers[4].text
        assert evaluate_prompting(pipeline, world / "out", progress=False) == found  # type: ignore[arg-type]
    assert all(sum(row["scores"]) == pytest.approx(1) for row in rows_of(world / "out"))
    assert all(one.problem is None for one in verify(world / "out"))


def test_without_anything_it_is_the_lm_as_it_is(world: Path) -> None:
    base = multitask_settings(world)
    plain = load_config(base | {"prompt": None, "tasks": base["tasks"][:1]})
    with Pipeline.from_config(plain) as pipeline:
        theirs = evaluate_multitask(pipeline, world / "plain", progress=False)  # type: ignore[arg-type]
    ours = measured(settings(world), world / "asked")
    assert ours["mean"] == theirs["mean"] and compare_tasks(world / "plain", world / "asked")["mean"]["difference"] == 0
    for one, other in zip(rows_of(world / "plain"), rows_of(world / "asked"), strict=True):
        assert one["prediction"] == other["prediction"]


@pytest.mark.parametrize("host", ["masked", "t5"])
def test_hosts_of_other_kinds(world: Path, host: str) -> None:
    lm: Any = toy_masked_lm() if host == "masked" else toy_sentinel_lm()
    lm.model.save_pretrained(world / "host")
    lm.tokenizer.save_pretrained(world / "host")
    model = {"model": str(world / "host")}
    own = {"lm": None, "masked_lm": model} if host == "masked" else {"lm": model}
    way = {
        "templates": ["text {text} is {answer} ."],
        "demonstrations": NEAREST,
        "words": {"red": "red", "blue": "blue cat"},
    }
    source = settings(world, way, **own)
    found = measured(source, world / "out")
    assert (found["lm_weights_changed"], found["lm_fingerprint"]) == (0, lm.fingerprint)
    with Pipeline.from_config(load_config(source)) as pipeline:
        assert pipeline("the cat is red").text in ("red", "blue")
    assert cost(load_config(source))["lm_parameters"] > 0


def test_an_evaluation_goes_on_after_a_kill_and_refuses_another(world: Path) -> None:
    source = settings(world, {"demonstrations": SHOWN}, evaluation={"chunk": 3})
    whole = measured(source, world / "whole")
    measured(source, world / "cut")
    (world / "cut" / "metrics.json").unlink()
    file = world / "cut" / "predictions.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:4]) + lines[4][:9])
    again = measured(source, world / "cut")
    assert again["mean"] == whole["mean"] and again["inputs_sha256"] == whole["inputs_sha256"]
    assert [row["prediction"] for row in rows_of(world / "cut")] == [
        row["prediction"] for row in rows_of(world / "whole")
    ]
    for changes, word in (
        ({"prompting": {"name": "p", "demonstrations": SHOWN | {"k": 1}}}, "inputs_sha256"),
        ({"prompting": {"name": "p", "demonstrations": SHOWN, "pieces": "mean"}}, "config_sha256"),
        ({"seed": 1}, "seed"),
    ):
        with pytest.raises(ConfigError, match=f"differs in .*{word}"):
            measured(source | changes, world / "whole")


def test_pairs_of_texts(world: Path) -> None:
    pairs = [{"a": f"the {a}", "b": f"is {b}", "label": b} for a in ("cat", "dog") for b in ("red", "blue")]
    (world / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    base = settings(world)
    task = base["task"] | {"test": str(world / "pairs.jsonl"), "template": "{first} {second}"}
    source = base | {"task": task | {"train": None, "dev": None, "fields": {"first": "a", "second": "b"}}}
    assert measured(source, world / "out")["n"] == len(pairs)
    with Pipeline.from_config(load_config(source)) as pipeline:
        tabbed, mapped = pipeline.answer(["the cat\tis red", {"first": "the cat", "second": "is red"}])  # type: ignore[list-item]
        assert (tabbed.text, tabbed.score) == (mapped.text, mapped.score)
        with pytest.raises(ConfigError, match=r"reads 2 texts \(first, second\), got 1"):
            pipeline("the cat is red")


def test_what_is_cut_and_dropped_is_counted(world: Path) -> None:
    one = settings(world, {"templates": ["{text} {answer}"], "demonstrations": SHOWN}, input={"max_tokens": 3})
    found = measured(one, world / "out")
    assert (found["inputs_cut"], found["tokens_cut"]) == (len(COLOURS), len(COLOURS))  # "the cat is red" loses a word
    dropped = settings(world, {"templates": ["{text} {answer}"], "demonstrations": SHOWN | {"budget": 6}})
    found = measured(dropped, world / "dropped")  # "the cat is red red \n" is 6 tokens
    assert (found["demonstrations_dropped"], found["inputs_cut"]) == (len(COLOURS), 0)
    with Pipeline.from_config(load_config(one)) as pipeline:
        assert pipeline("the cat is red").cut == ("lm",)
    with Pipeline.from_config(load_config(dropped)) as pipeline:
        assert pipeline("the cat is red").cut == ("demonstrations",)
    for changes, words in (
        ({"budget": 5}, f"not one of the {2 * len(COLOURS)} demonstrations"),
        ({"budget": 11, "over_budget": "error"}, "record colours/test/1: its 2 demonstrations take 12 tokens"),
    ):
        with pytest.raises(ConfigError, match=words):
            measured(
                settings(world, {"templates": ["{text} {answer}"], "demonstrations": SHOWN | changes}), world / "no"
            )
    assert not (world / "no").exists()


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"prompting": {}}, "name"),
    ({"lm": None}, "either an lm or a masked_lm, got none"),
    ({"masked_lm": {"model": "x"}}, "either an lm or a masked_lm, got both"),
    ({"prompting": {"name": "p", "templates": ["{text}"]}}, "has 0 slots {answer}"),
    ({"prompting": {"name": "p", "templates": ["{text} {answer} {answer}"]}}, "has 2 slots {answer}"),
    ({"prompting": {"name": "p", "templates": ["it is {answer}"]}}, "has no {field}"),
    ({"prompting": {"name": "p", "templates": ["{text {answer}"]}}, "lone '{'"),
    ({"prompting": {"name": "p", "templates": ["{a-b} {answer}"]}}, "has the slot '{a-b}'"),
    ({"prompting": {"name": "p", "templates": ["{soft:a*2} {text} {soft:a*3} {answer}"]}}, "soft slot 'a' is given as"),
    (
        {"prompting": {"name": "p", "templates": ["{soft:a} {text} {answer}", "{text} {answer}"]}},
        "to one template, got 2",
    ),
    ({"prompting": {"name": "p", "verbalizer": "nearest"}}, "verbalizer"),
    ({"prompting": {"name": "p"}, "training": {"steps": 1}}, "there is nothing to train"),
    ({"prompting": {"name": "p", "templates": ["{text} {label} {answer}"]}}, "which is the label itself"),
    ({"prompting": {"name": "p", "templates": [""]}}, "at least 1 character"),
    ({"prompting": {"name": "p", "templates": [[{"field": "text"}]]}}, "has 0 slots {answer}"),
    ({"prompting": {"name": "p", "templates": [[{"filed": "text"}, {"answer": True}]]}}, "part 0 is {'filed': 'text'}"),
    (
        {"prompting": {"name": "p", "templates": [[{"field": "answer"}, {"answer": True}]]}},
        "the part {'field': 'answer'} cannot be written as text; give a field called answer another name",
    ),
    (
        {"prompting": {"name": "p", "templates": [[{"soft": "a", "init": "{x}"}, {"answer": True}]]}},
        "at words without braces",
    ),
    ({"prompting": {"name": "p", "words": {"red": " ", "blue": "blue"}}}, "the word for 'red' is ' '"),
    ({"prompting": {"name": "p", "words": {"red": [], "blue": "blue"}}}, "the label 'red' has no words"),
    ({"prompting": {"name": "p", "words": {"red": "blue", "blue": "blue"}}}, "share the word 'blue'"),
    ({"prompting": {"name": "p", "words": {"red": "red", "green": "green"}}}, "verbalizer has 'red', 'blue'"),
    ({"prompting": {"name": "p", "cut": ["title"]}}, "cut names 'title'"),
    ({"prompting": {"name": "p", "weights": [1.0]}}, "1 weights for 0 templates"),
    ({"prompting": {"name": "p", "pieces": "sum"}}, "pieces"),
    ({"prompting": {"name": "p", "ensemble": "median"}}, "ensemble"),
    ({"prompting": {"name": "p", "calibration": {"kind": "contextual", "texts": []}}}, "at least 1 item"),
    ({"prompting": {"name": "p", "calibration": {"kind": "batch"}}}, "batch"),
    ({"prompting": {"name": "p", "demonstrations": {"k": 0}}}, "greater than or equal to 1"),
    ({"prompting": {"name": "p", "demonstrations": {"k": 4, "limit": 3}}}, "limit is 3"),
    ({"prompting": {"name": "p", "demonstrations": {"over_budget": "ignore"}}}, "over_budget"),
    ({"prompting": {"name": "p", "demonstrations": NEAREST}, "encoder": None}, "nearest needs an encoder"),
    ({"evaluation": {"normalize": "tokens"}}, "evaluation.normalize is tokens"),
]


@pytest.mark.parametrize(("changes", "words"), FAULTS, ids=[words for _, words in FAULTS])
def test_faults_are_told_when_the_config_is_read(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(settings(tmp_path) | changes)
    assert words in str(caught.value)


PARTS = [{"soft": "lead", "length": 2}, {"field": "text"}, {"text": " is {"}, {"text": "} "}, {"answer": True}]


def test_a_template_may_be_a_list_of_parts(world: Path) -> None:
    config = load_config(settings(world, {"templates": [PARTS]}))
    assert config.prompting.templates == ["{soft:lead*2}{text} is {{}} {answer}"]  # type: ignore[union-attr]
    parts = [{"field": "text"}, {"text": " is"}, {"text": " "}, {"answer": True}]
    found = measured(settings(world, {"templates": [parts, TEMPLATES[1]]}), world / "parts")
    assert (
        found["config_sha256"] == measured(settings(world, {"templates": TEMPLATES}), world / "text")["config_sha256"]
    )


PROMPTSOURCE = """
dataset: colours
templates:
  t1: !Template
    name: fixed
    answer_choices: red ||| blue
    jinja: "the {{text}} was |||{{label}}"
    metadata: !TemplateMetadata {original_task: true}
  t2: !Template
    name: own
    answer_choices: "{{label}} ||| green"
    jinja: "the {{text}} was |||{{label}}"
    metadata: !TemplateMetadata {}
  t3: !Template
    name: free
    jinja: "the {{text}} was |||{{label}}"
    metadata: !TemplateMetadata {}
  t4: !Template
    name: drawn
    answer_choices: "{{['red', 'blue'] | choice}} ||| red ||| blue"
    jinja: "the {{text}} was |||{{label}}"
    metadata: !TemplateMetadata {}
  t5: !Template
    name: some
    answer_choices: red ||| blue
    jinja: "{% if 'dog' not in text %}the {{text}} was |||{{label}}{% endif %}"
    metadata: !TemplateMetadata {}
"""


def of_promptsource(
    world: Path, template: str, prompting: dict[str, Any] | None = None, **changes: Any
) -> dict[str, Any]:
    (world / "templates.yaml").write_text(PROMPTSOURCE)
    base = settings(world, prompting, **changes)
    task = {key: value for key, value in base["task"].items() if key not in ("template", "verbalizer")}
    return base | {"task": task | {"promptsource": {"file": str(world / "templates.yaml"), "template": template}}}


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(way) or "plain")
def test_a_promptsource_template_asks_as_the_same_words_would(world: Path, way: dict[str, Any]) -> None:
    if "calibration" in way:  # "" would be nothing at all, since no word stands beside the field
        nothing = {"texts": ["a", "the"]} if way["calibration"]["kind"] == "contextual" else {"premise": "the"}
        way = way | {"calibration": way["calibration"] | nothing}
    theirs = measured(of_promptsource(world, "fixed", way), world / "theirs")
    # The same as text: what the template writes stands in the data.
    worded = [one | {"text": f"the {one['text']} was"} for one in COLOURS]
    (world / "worded.jsonl").write_text("\n".join(map(json.dumps, worded)))
    base = settings(world, way if "templates" in way else way | {"templates": ["{text} {answer}"]})
    task = base["task"] | dict.fromkeys(("train", "dev", "test"), str(world / "worded.jsonl"))
    ours = measured(base | {"task": task}, world / "ours")
    assert theirs["mean"] == ours["mean"] and theirs["n"] == len(COLOURS)
    for one, other in zip(rows_of(world / "theirs"), rows_of(world / "ours"), strict=True):
        assert (one["prediction"], one["scores"]) == (other["prediction"], pytest.approx(other["scores"]))
    with Pipeline.from_config(load_config(of_promptsource(world, "fixed", way))) as pipeline:
        assert pipeline("the the cat is red was").text in ("red", "blue")


def test_promptsource_templates_that_do_not_fit(world: Path) -> None:
    for template, words in (
        ("own", "answer choices that are read off each record; .* use kind: multitask"),
        ("free", "has no answer choices"),
        ("drawn", "has the answer choices 'red', 'blue' and 'blue', 'red'|'blue', 'red' and 'red', 'blue'"),
        ("none", "has no template named 'none'"),
    ):
        with pytest.raises(ConfigError, match=words):
            measured(of_promptsource(world, template), world / template)
    with pytest.raises(ConfigError, match="words are for the labels 'a', 'b'; task 'colours' has 'red', 'blue'"):
        measured(of_promptsource(world, "fixed", {"words": {"a": "red", "b": "blue"}}), world / "words")
    for template, way, words in (
        ("all", {}, "`all` makes one of each template; name one"),
        (
            "fixed",
            {"templates": ["{title} {answer}"]},
            r"reads \{title\}; of a promptsource task there is \{text\} alone",
        ),
    ):
        with pytest.raises(ConfigError, match=words):
            load_config(of_promptsource(world, template, way))
    source = of_promptsource(world, "fixed")
    with pytest.raises(ConfigError, match="in the place of promptsource"):
        load_config({key: source[key] for key in ("lm", "task", "prompting")} | {"kind": "prompt_search", "search": {}})


def test_records_that_a_promptsource_template_leaves_out_are_told(world: Path) -> None:
    said: list[str] = []
    found = measured(of_promptsource(world, "some"), world / "out", log=said.append)
    left = sum("dog" not in one["text"] for one in COLOURS)
    assert 0 < left == found["n"] < len(COLOURS)
    assert f"colours: {len(COLOURS) - left} test records left out, for which the template has nothing to ask" in said


@pytest.mark.shared_data
def test_a_real_promptsource_template(world: Path, shared_data: Path) -> None:
    records = [{"text": one["text"], "label": number % 4} for number, one in enumerate(COLOURS)]
    (world / "news.jsonl").write_text("\n".join(map(json.dumps, records)))
    file = str(shared_data / "data/promptsource/ag_news/templates.yaml")
    calibration = {"kind": "contextual", "texts": ["N/A", "[MASK]"]}
    source = settings(world, {"demonstrations": SHOWN, "calibration": calibration}, input={"max_tokens": 60})
    source["lm"] = {"model": str(EMBEDDED)}
    source["task"] = {
        "name": "news",
        "train": str(world / "news.jsonl"),
        "test": str(world / "news.jsonl"),
        "promptsource": {"file": file, "template": "classify_question_first"},
    }
    assert measured(source, world / "out")["n"] == len(records)
    choices = rows_of(world / "out")[0]["choices"]
    assert choices == ["World politics", "Sports", "Business", "Science and technology"]


@pytest.mark.parametrize(("host", "kind"), [("lm", "decoder-only"), ("masked", "masked")])
def test_a_sentinel_is_for_encoder_decoders(world: Path, host: str, kind: str) -> None:
    own: dict[str, Any] = {}
    if host == "masked":
        lm: Any = toy_masked_lm()
        lm.model.save_pretrained(world / "host")
        lm.tokenizer.save_pretrained(world / "host")
        own = {"lm": None, "masked_lm": {"model": str(world / "host")}}
    with pytest.raises(ConfigError, match=f"prompting.sentinel has an encoder-decoder LM .* this one is {kind}; leave"):
        measured(settings(world, {"sentinel": True}, **own), world / "out")


def test_tasks_that_cannot_be_prompted(tmp_path: Path) -> None:
    task = settings(tmp_path)["task"]
    free = {key: value for key, value in task.items() if key != "verbalizer"} | {"target": "{label}", "metric": "em_f1"}
    for own, words in (
        (free, "needs a fixed set of choices"),
        (task | {"template": "{text} {answer}"}, "has 2 slots"),
        (task | {"template": "{label}"}, "which is the label itself"),
        (task | {"train": None}, "name its train records"),
    ):
        with pytest.raises(ConfigError, match=words):
            load_config(settings(tmp_path, {"demonstrations": SHOWN}, task=own))


def test_faults_that_only_data_and_lm_show(world: Path) -> None:
    for way, words in (
        ({"templates": ["{title} {answer}"]}, "a template reads the field 'title'; the record has text, label"),
        ({"templates": ["{answer} {text}"]}, "a decoder-only LM answers behind all"),
        ({"words": {"red": "zzz1qq", "blue": "blue"}}, "has no token in this LM's vocabulary"),
        ({"demonstrations": {"k": 9}}, "has 8 train records, and k = 9"),
        (
            {"templates": ["the a of in is was who what when where city {text} {answer}"], "cut": ["text"]},
            "the room is 8",
        ),
    ):
        with pytest.raises(Exception, match=words) as caught:
            measured(settings(world, way, input={"max_tokens": 8}), world / "out")
        assert type(caught.value).__name__ in ("ConfigError", "ShapeError")
    with pytest.raises(ConfigError, match="has no use for a lm"):
        Pipeline.from_config(load_config(settings(world)), lm=None)
    with Pipeline.from_config(load_config(settings(world))) as pipeline:
        with pytest.raises(ConfigError, match="leave hits out"):
            pipeline.answer(["a"], hits=[[]])
        with pytest.raises(ConfigError, match="is tuple, expected a string"):
            pipeline.answer([("a", "b")])  # type: ignore[list-item]
        assert pipeline.answer([]) == []


def test_from_the_command_line(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = world / "prompting.json"
    file.write_text(json.dumps(settings(world, {"demonstrations": SHOWN})))
    assert cli.main(["train", str(file)]) == 2 and cli.main(["train", str(file), "--dry-run"]) == 2
    assert capsys.readouterr().err.count("there is nothing to train") == 2
    assert cli.main(["evaluate", str(file), "--out", str(world / "out"), "--quiet"]) == 0
    shown = capsys.readouterr().out
    assert "colours" in shown and "LM weights changed: 0" in " ".join(shown.split())
    assert cli.main(["evaluate", str(file), "--out", str(world / "out"), "--oracle"]) == 2
    assert cli.main(["ask", str(file), "the cat is red", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["answer"] in ("red", "blue")
    assert cli.main(["cost", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["trained_parameters"] == 0


def test_the_cost_of_a_question(world: Path) -> None:
    def flops(way: dict[str, Any]) -> dict[str, Any]:
        return cost(load_config(settings(world, way)), Assumed(input_tokens=10))

    plain, twice = flops({}), flops({"templates": TEMPLATES})
    assert plain["flops_ratio_to_one_pass"] == 1 and twice["flops_per_input"] == 2 * plain["flops_per_input"]
    shared, nearest = flops({"demonstrations": SHOWN}), flops({"demonstrations": NEAREST})
    assert shared["assumptions"]["demonstrations_read_once"] and not nearest["assumptions"]["demonstrations_read_once"]
    assert plain["flops_per_input"] < shared["flops_per_input"] < nearest["components"]["questions"]["flops"]
    assert nearest["assumptions"]["demonstration_tokens"] == 2 * 10 and nearest["components"]["encoder"]["flops"] > 0
    behind = flops({"demonstrations": NEAREST, "calibration": {"kind": "pmi"}})["components"]
    assert behind["calibration"]["flops"] == behind["questions"]["flops"]


PROMPTINGS: list[dict[str, Any]] = [
    {"prompting": {"name": "worded", "templates": TEMPLATES}},
    {"prompting": {"name": "random", "demonstrations": SHOWN}},
    {"prompting": {"name": "nearest", "demonstrations": NEAREST}},
]
TRAINED = {"prompt": {"kind": "soft_prompt", "name": "soft", "length": 3}, "learning_rates": [0.05], "steps": 1}


def comparison(world: Path, **changes: Any) -> dict[str, Any]:
    base = multitask_settings(world)
    kept = {key: base[key] for key in ("lm", "input", "generation", "training", "workspace", "encoder")}
    own = {"methods": [*PROMPTINGS, TRAINED], "tasks": base["tasks"][:1], "seeds": 2}
    return {"kind": "method_comparison", **kept, **own} | changes


def test_rows_of_a_comparison(world: Path) -> None:
    config = load_config(comparison(world))
    results = compare_methods(config, world / "out")
    once, each = ["worded/colours/0", "nearest/colours/0"], ["random/colours/0", "random/colours/1"]
    trained = ["soft/colours/0", "soft/colours/1"]
    assert sorted(one["name"] for one in results) == sorted(["zero_shot/colours", *once, *each, *trained])
    assert len(results) == 1 + len(list(runs(config)))
    by_name = {one["name"]: one for one in results}
    for name in (*once, *each):
        row = by_name[name]
        assert (row["kind"], row["trained_parameters"], row["seconds_per_step"]) == ("prompting", 0, None)
        assert row["lm_weights_changed"] == 0 and row["n"] == len(COLOURS)
    assert compare_methods(config, world / "out") == results
    file = world / "out" / "results.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:2]) + lines[2][:20])
    assert {one["name"]: one["score"] for one in compare_methods(config, world / "out")} == {
        one["name"]: one["score"] for one in results
    }
    found = {one.method: one for one in figures(results)}
    assert found["random"].spread is not None and found["worded"].spread is None
    assert (found["nearest"].share, found["nearest"].seconds_per_step) == (0, None)
    page = write_report(results, world / "out", reference=None, title="toy")[2].read_text()
    assert all(f"<td>{name}</td>" in page for name in ("worded", "random", "nearest"))


def test_promptings_and_their_encoder_may_be_added_to_a_comparison(world: Path) -> None:
    before = comparison(world, methods=[TRAINED], seeds=1, encoder=None)
    first = compare_methods(load_config(before), world / "out")
    added = compare_methods(
        load_config(before | {"methods": [TRAINED, PROMPTINGS[2]], "encoder": {"model": str(world / "encoder")}}),
        world / "out",
    )
    assert added[: len(first)] == first and added[-1]["name"] == "nearest/colours/0"
    other = {"model": str(world / "encoder"), "max_length": 4}
    with pytest.raises(ConfigError, match="holds results of another encoder"):
        compare_methods(load_config(comparison(world, methods=[TRAINED], seeds=1, encoder=other)), world / "out")
    changed = {"prompting": PROMPTINGS[2]["prompting"] | {"demonstrations": NEAREST | {"k": 1}}}
    with pytest.raises(ConfigError, match="another method 'nearest'"):
        compare_methods(load_config(comparison(world, methods=[changed], seeds=1)), world / "out")
    assert {one["method"] for one in read_results(world / "out")} == {"zero_shot", "soft", "nearest"}


def test_plan_and_cost_of_a_comparison(world: Path) -> None:
    config = load_config(comparison(world))
    assert [one["name"] for one in describe(config)["methods"]] == ["soft"]
    found = {one["name"]: one for one in comparison_cost(config, cost, Assumed(input_tokens=8))["methods"]}
    assert found["worded"]["trained_parameters"] == 0 < found["worded"]["flops_per_input"]
    with pytest.raises(ConfigError, match="no method of this comparison is trained"):
        describe(load_config(comparison(world, methods=PROMPTINGS)))


def test_bad_promptings_of_a_comparison(tmp_path: Path) -> None:
    worded, random, nearest = PROMPTINGS
    words = {"prompting": {"name": "w", "words": {"a": "one", "b": "two"}}}
    places = multitask_settings(tmp_path)["tasks"]
    for changes, said in (
        ({"methods": [worded | {"learning_rates": [0.1]}]}, "is not trained; leave out learning_rates"),
        ({"methods": [worded | {"steps": 2}]}, "is not trained"),
        (
            {"methods": [{key: value for key, value in TRAINED.items() if key != "learning_rates"}]},
            "needs learning_rates",
        ),
        ({"methods": [worded, worded]}, "two methods are called 'worded'"),
        ({"methods": [nearest], "encoder": None}, "nearest needs an encoder"),
        ({"methods": [words]}, "words are for the labels 'a', 'b'"),
        ({"methods": [random], "tasks": places}, "on task 'places' needs a fixed set of choices"),
        ({"methods": [worded], "lm": None}, "an encoder takes deltas and heads"),
        ({"methods": [worded | {"delta": {"kind": "bitfit", "name": "b"}}]}, "either a prompt, a delta"),
    ):
        with pytest.raises(ConfigError, match=said):
            load_config(comparison(tmp_path, **changes))


def test_training_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is nothing to train; evaluate it, or ask"):
        train(load_config(settings(tmp_path)))
