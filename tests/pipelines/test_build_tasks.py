"""From the blocks of a multi-task config to tasks, rows and prompts."""

from pathlib import Path
from typing import Any

import pytest

from pipelines import build_tasks
from pipelines.config_tasks import TaskBlock, task_spec
from pipelines.errors import CheckpointError, ConfigError
from pipelines.tasks.records import RecordSource
from tests.pipelines.toy_multitask import ID_PT, PROMPTS, configured, make_world, settings
from tests.toys import toy_encoder, toy_lm

TEMPLATES = """\
templates:
  i: !Template
    {name: choose, answer_choices: red ||| blue, jinja: "{{text}} ||| {{label}}", metadata: &m !TemplateMetadata {original_task: true}}
  j: !Template {name: write, answer_choices: null, jinja: "Which? {{text}} ||| {{label}}", metadata: *m}
  k: !Template {name: other, answer_choices: null, jinja: "{{label}} ||| {{text}}", metadata: !TemplateMetadata {original_task: false}}
"""  # noqa: E501


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "templates.yaml"
    path.write_text(TEMPLATES)
    return path


def block(**changes: Any) -> TaskBlock:
    """A task of one wording; no record is read."""
    return TaskBlock(**{"name": "colours", "train": "colours.jsonl", **changes})


def sourced(file: Path, template: str, **changes: Any) -> TaskBlock:
    return block(**{"promptsource": {"file": file, "template": template}, "metric": "auto", **changes})


def test_all_templates_of_the_original_task(file: Path) -> None:
    plain = block(name="own", template="{text}", target="{label}", metric="bleu")
    found = build_tasks.expanded([sourced(file, "all", weight=3.0, seen=False), plain])
    assert [one.name for one in found] == ["colours.1", "colours.2", "own"]
    assert [one.metric for one in found] == ["accuracy", "rouge", "bleu"]
    assert [one.weight for one in found] == [1.5, 1.5, 1.0]
    assert [one.promptsource.template for one in found[:2] if one.promptsource] == ["i", "j"]
    assert [one.seen for one in found] == [False, False, True]


def test_a_metric_that_is_given_stands(file: Path) -> None:
    (only,) = build_tasks.expanded([sourced(file, "other", metric="bleu")])
    assert only.metric == "bleu"
    assert [one.metric for one in build_tasks.expanded([sourced(file, "all", metric="em_f1")])] == ["em_f1", "em_f1"]


@pytest.mark.parametrize(
    ("wording", "metric"),
    [
        ({"template": "{text}", "verbalizer": {"a": "x", "b": "y"}}, "accuracy"),
        ({"template": "{text}", "target": "{label}"}, "rouge"),
        ({"template": "{text}", "references": "answers"}, "rouge"),
    ],
)
def test_auto_is_the_metric_that_fits(wording: dict[str, Any], metric: str) -> None:
    (only,) = build_tasks.expanded([block(metric="auto", **wording)])
    assert only.metric == task_spec(only).metric == metric


@pytest.mark.parametrize(("template", "metric"), [("choose", "accuracy"), ("i", "accuracy"), ("write", "rouge")])
def test_auto_goes_by_the_template(file: Path, template: str, metric: str) -> None:
    (only,) = build_tasks.expanded([sourced(file, template)])
    assert (only.name, only.metric) == ("colours", metric)


def test_files_without_what_is_asked_for(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no template named 'chose'; did you mean 'choose'"):
        build_tasks.expanded([sourced(file, "chose")])
    with pytest.raises(ConfigError, match="cannot be read"):
        build_tasks.expanded([sourced(tmp_path / "none.yaml", "all")])
    file.write_text(TEMPLATES.replace("true", "false"))
    with pytest.raises(ConfigError, match=r"task 'colours': .* has no template that asks for the original task"):
        build_tasks.expanded([sourced(file, "all")])


def test_what_a_block_says_of_its_records(tmp_path: Path) -> None:
    spec = task_spec(
        block(
            train={"path": str(tmp_path / "a.csv"), "skip": 2, "limit": 3, "sample": 1},
            dev={"dataset": "glue", "subset": "mrpc", "split": "validation", "revision": "r"},
            template="{sentence}",
            verbalizer={"a": "x", "b": "y"},
            fields={"sentence": "text"},
            label="gold",
        )
    )
    assert spec.records == {
        "train": RecordSource(path=tmp_path / "a.csv", skip=2, limit=3, sample=1),
        "dev": RecordSource(path="glue", format="hf", subset="mrpc", split="validation", revision="r"),
    }
    assert (spec.label, spec.fields, spec.verbalizer) == ("gold", {"sentence": "text"}, {"a": "x", "b": "y"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "either a template or a promptsource file"),
        ({"template": "{text}"}, "either a verbalizer .* or a target or references"),
        ({"template": "{text}", "target": "{label}"}, "the metric accuracy does not fit"),
        ({"template": "{text", "target": "{label}", "metric": "bleu"}, "a lone '{' at character 1"),
        ({"template": "text", "target": "{label}", "metric": "bleu"}, r"has no \{field\}"),
        ({"template": "{text}", "verbalizer": {"a": "x"}}, "1 labels; expected at least two"),
        ({"template": "{text}", "verbalizer": {"a": "x", "b": "x"}}, "share the word 'x'"),
        ({"template": "{text}", "verbalizer": {"a": "x", "b": "y"}, "train": None}, "names no records"),
        ({"template": "{text}", "verbalizer": {"a": "x", "b": "y"}, "weight": -1.0}, "greater than or equal to 0"),
        ({"template": "{text}", "verbalizer": {"a": "x", "b": "y"}, "metric": "rogue"}, "'em_f1' or 'auto'"),
    ],
)
def test_blocks_that_cannot_be_meant(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):  # which the loader explains, with the line
        block(**changes)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


def test_the_tasks_of_one_split(world: Path) -> None:
    config = configured(world)
    assert [len(task.rows["dev"]) for task in build_tasks.tasks(config, "dev")] == [8, 3]
    unseen = config.model_copy(update={"tasks": [config.tasks[0], config.tasks[1].model_copy(update={"seen": False})]})
    assert [task.name for task in build_tasks.tasks(unseen, "dev", seen=True)] == ["colours"]
    assert [task.name for task in build_tasks.tasks(unseen, "dev", seen=False)] == ["places"]
    with pytest.raises(ConfigError, match="no task to read"):
        build_tasks.tasks(config, "dev", seen=False)


def test_records_that_the_template_has_nothing_to_ask_of_are_said(world: Path, file: Path) -> None:
    file.write_text(
        TEMPLATES.replace('"{{text}} ||| {{label}}"', "\"{% if label == 'red' %}{{text}} ||| red{% endif %}\"")
    )
    asked = settings(world)["tasks"][0] | {"promptsource": {"file": str(file), "template": "choose"}}
    del asked["template"], asked["verbalizer"]
    said: list[str] = []
    (task,) = build_tasks.tasks(configured(world, tasks=[asked]), "dev", log=said.append)
    assert len(task.rows["dev"]) == 4
    assert said == ["colours: 4 dev records left out, for which the template has nothing to ask"]


def test_the_room_for_inputs(world: Path) -> None:
    config = configured(world, modules=[PROMPTS["soft_prompt"] | {"name": "long", "length": 30}])
    lm = toy_lm("gpt2")
    assert build_tasks.row_encoder(config, lm).room == 24
    narrow = configured(world, input={"max_tokens": 96, "keep_end": 4, "answer_tokens": 6})
    beside = len(lm.bos_ids) + 6
    assert build_tasks.row_encoder(narrow, lm).room == 96 - beside - 3
    assert build_tasks.row_encoder(narrow, lm, soft_tokens=40).room == 96 - beside - 40
    with pytest.raises(ConfigError, match=r"input.answer_tokens keeps only 6"):
        build_tasks.row_encoder(configured(world, generation={"max_new_tokens": 7}), lm)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"width": 16}, "was trained with width 8, the config asks for 16"),
        ({"depth": 2}, "was trained with depth 1, the config asks for 2"),
        ({"feed_forward": 4}, "was trained with feed_forward 32, the config asks for 4"),
        ({"length": 4}, "holds a prompt of 3 tokens in suffix position, the config asks for 4"),
        ({"position": "prefix"}, "the config asks for 3 in prefix"),
    ],
)
def test_a_module_of_other_sizes_is_refused(world: Path, asked: dict[str, Any], says: str) -> None:
    lm, encoder = toy_lm("gpt2"), toy_encoder("bert")
    config = configured(world)
    build_tasks.new_prompt(config, config.prompt, lm, encoder).save(world / "work" / "modules" / "p", lm)
    held = build_tasks.trained_prompt(
        config, configured(world, prompt=ID_PT | {"feed_forward": 32}).prompt, lm, encoder
    )
    assert held.length == 3
    with pytest.raises(CheckpointError, match=says):
        build_tasks.trained_prompt(config, configured(world, prompt=ID_PT | asked).prompt, lm, encoder)


def test_an_attempt_of_other_sizes_is_refused(world: Path) -> None:
    lm, modules = toy_lm("gpt2"), world / "work" / "modules"
    for name in ("a", "b"):
        block = configured(world, prompt={"kind": "soft_prompt", "name": name, "length": 3})
        build_tasks.new_prompt(block, block.prompt, lm, None).save(modules / name, lm)
    config = configured(world, prompt=PROMPTS["attempt"])
    build_tasks.new_prompt(config, config.prompt, lm, None).save(modules / "p", lm)
    assert build_tasks.trained_prompt(config, config.prompt, lm, None).length == 3
    for asked, says in (
        ({"sources": ["a"]}, "with sources 2, the config asks for 1"),
        ({"width": 5}, "with width 4, the config asks for 5"),
        ({"temperature": 2.0}, "the config asks for 2.0"),
        ({"per_task": False}, "with per_task True, the config asks for False"),
    ):
        other = configured(world, prompt=PROMPTS["attempt"] | asked)
        with pytest.raises(CheckpointError, match=says):
            build_tasks.trained_prompt(other, other.prompt, lm, None)


def test_what_an_unseen_task_gets_may_be_chosen_after_training(world: Path) -> None:
    lm = toy_lm("gpt2")
    config = configured(world, prompt=PROMPTS["task_prompts"] | {"name": "tp"})
    build_tasks.new_prompt(config, config.prompt, lm, None).save(world / "work" / "modules" / "tp", lm)
    module: Any = build_tasks.trained_prompt(config, config.prompt, lm, None)
    with pytest.raises(ConfigError, match="no prompt for task 'other'"):
        module.vectors("other")
    lenient = configured(world, prompt=PROMPTS["task_prompts"] | {"name": "tp", "unseen": "mean"})
    module = build_tasks.trained_prompt(config, lenient.prompt, lm, None)
    assert module.vectors("other").shape == (3, 32) and not module.training
