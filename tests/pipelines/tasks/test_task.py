"""Records become rows: classification, free text, references, and each way in which a task can be wrong."""

import json
from pathlib import Path

import pytest

from pipelines.errors import ConfigError
from pipelines.tasks.records import RecordSource
from pipelines.tasks.spec import TaskSpec
from pipelines.tasks.task import TaskRow, load_task, load_tasks


@pytest.fixture
def source(tmp_path: Path):
    def _source(*records: dict, name: str = "r.jsonl") -> RecordSource:
        path = tmp_path / name
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return RecordSource(path=path)

    return _source


WORDS = {"neg": "bad", "pos": "good"}
YAML = """\
templates:
  i: !Template {name: good, answer_choices: bad ||| good, jinja: "{{s}} ||| {{answer_choices[mark]}}"}
  j: !Template {name: free, answer_choices: null, jinja: "{% if mark == 1 %}Write. ||| {{s}}{% endif %}"}
"""


def _classify(records: dict, **changes) -> TaskSpec:
    settings = {"metric": "accuracy", "template": "Review: {text}", "verbalizer": WORDS, **changes}
    return TaskSpec(name=settings.pop("name", "sst"), records=records, **settings)


def _free(records: dict, **changes) -> TaskSpec:
    return TaskSpec(name="gen", records=records, **{"metric": "bleu", "template": "{text}", **changes})


def test_classification(source) -> None:
    spec = _classify({"dev": source({"text": "a", "label": "pos"}, {"text": "a", "label": "neg"})})
    rows = load_task(spec, "dev")
    assert rows == [
        TaskRow("sst/dev/1", "sst", "Review: a", "good", ("bad", "good"), ("good",), "pos"),
        TaskRow("sst/dev/2", "sst", "Review: a", "bad", ("bad", "good"), ("bad",), "neg"),
    ]
    assert (rows.skipped, rows.merged, len(rows.sha256)) == (0, 0, 64)


def test_mapped_fields_and_integer_labels(source) -> None:
    records = {"train": source({"sentence": "a", "label": 1})}
    spec = _classify(records, fields={"text": "sentence"}, verbalizer={0: "bad", 1: "good"})
    (row,) = load_task(spec, "train")
    assert (row.text, row.target, row.label) == ("Review: a", "good", "1")


def test_free_text_merges_equal_inputs_in_dev_and_test_only(source) -> None:
    records = source(
        {"text": "x", "label": "one"},
        {"text": "y", "label": "two"},
        {"text": "x", "label": "three"},
        {"text": "x", "label": "one"},
    )
    spec = _free({"train": records, "test": records}, target="{label}")
    test = load_task(spec, "test")
    assert test == [
        TaskRow("gen/test/1", "gen", "x", "one", (), ("one", "three")),
        TaskRow("gen/test/2", "gen", "y", "two", (), ("two",)),
    ]
    assert test.merged == 2
    train = load_task(spec, "train")
    assert [row.target for row in train] == ["one", "two", "three", "one"]
    assert (train.merged, train[0].references) == (0, ("one",))


def test_references_from_a_list(source) -> None:
    records = {"dev": source({"text": "q", "answers": ["a", "b"], "long": "it is a"})}
    (row,) = load_task(_free(records, references="answers"), "dev")
    assert (row.target, row.references) == ("a", ("a", "b"))
    (row,) = load_task(_free(records, references="answers", target="{long}"), "dev")
    assert (row.target, row.references) == ("it is a", ("it is a", "a", "b"))
    for wrong in ([], ["a", " "], "", 3):
        with pytest.raises(ConfigError, match=r"r.jsonl:1: the references of task 'gen' \(answers\)"):
            load_task(_free({"dev": source({"text": "q", "answers": wrong})}, references="answers"), "dev")


def test_promptsource_with_label_positions(source, tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(YAML)
    records = {"dev": source({"text": "a", "label": "neg"}, {"text": "b", "label": "pos"})}
    shared = {"promptsource": tmp_path / "t.yaml", "fields": {"s": "text", "mark": "label"}, "labels": ("neg", "pos")}
    spec = TaskSpec(name="p", records=records, metric="accuracy", promptsource_template="good", **shared)
    assert load_task(spec, "dev") == [
        TaskRow("p/dev/1", "p", "a", "bad", ("bad", "good"), ("bad",), "neg"),
        TaskRow("p/dev/2", "p", "b", "good", ("bad", "good"), ("good",), "pos"),
    ]
    spec = TaskSpec(name="p", records=records, metric="rouge", promptsource_template="free", **shared)
    rows = load_task(spec, "dev")
    assert rows == [TaskRow("p/dev/2", "p", "Write.", "b", (), ("b",))]
    assert rows.skipped == 1
    for metric, name in (("rouge", "good"), ("accuracy", "free")):
        spec = TaskSpec(name="p", records=records, metric=metric, promptsource_template=name, **shared)
        with pytest.raises(ConfigError, match=f"task 'p': metric {metric} does not fit"):
            load_task(spec, "dev")
    records = {"dev": source({"text": "a", "label": "neg"})}
    spec = TaskSpec(name="p", records=records, metric="rouge", promptsource_template="free", **shared)
    with pytest.raises(ConfigError, match="task 'p': none of the 1 records"):
        load_task(spec, "dev")
    records = {"dev": source({"text": "a", "label": "odd"})}
    spec = TaskSpec(name="p", records=records, metric="rouge", promptsource_template="free", **shared)
    with pytest.raises(
        ConfigError, match=r"r.jsonl:1: the label 'odd' is not among the labels of task 'p': 'neg', 'pos'"
    ):
        load_task(spec, "dev")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "a", "label": "odd"}, "r.jsonl:1: task 'sst' has no word for the label 'odd'; .*'neg', 'pos'"),
        ({"text": "a"}, "r.jsonl:1: task 'sst' needs the field 'label'; the record has text"),
        ({"label": "pos"}, r"r.jsonl:1: template of task 'sst' reads \{text\}, the record has only label"),
        ({"text": None, "label": "pos"}, "which is null"),
        ({"text": "a", "label": None}, "r.jsonl:1: the label is null"),
    ],
)
def test_records_that_do_not_fit(source, record: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_task(_classify({"dev": source(record)}), "dev")


def test_blank_inputs_and_targets(source) -> None:
    with pytest.raises(ConfigError, match=r"r.jsonl:1: the input of task 'sst' is blank"):
        load_task(_classify({"dev": source({"text": " ", "label": "pos"})}, template="{text}"), "dev")
    with pytest.raises(ConfigError, match=r"r.jsonl:1: the target of task 'gen' is blank"):
        load_task(_free({"dev": source({"text": "a", "label": ""})}, target="{label}"), "dev")


def test_splits_and_empty_tasks(source) -> None:
    spec = _classify({"dev": source({"text": "a", "label": "pos"})})
    with pytest.raises(ConfigError, match="task 'sst' has no split 'test'; it has dev"):
        load_task(spec, "test")
    with pytest.raises(ConfigError, match="empty"):
        load_task(_classify({"dev": source(name="none.jsonl")}), "dev")


def test_many_tasks(source) -> None:
    records = {
        "train": source({"text": "a", "label": "pos"}),
        "dev": source({"text": "b", "label": "neg"}, name="d.jsonl"),
    }
    sst, gen = load_tasks([_classify(records), _free(records, target="{label}")])
    assert (sst.name, sst.metric, sst.choices, list(sst.rows)) == ("sst", "accuracy", ("bad", "good"), ["train", "dev"])
    assert (gen.name, gen.choices, gen.rows["dev"][0].target) == ("gen", (), "neg")
    assert list(load_tasks([_classify(records)], ["dev", "test"])[0].rows) == ["dev"]
    with pytest.raises(ConfigError, match="two tasks are named 'sst'"):
        load_tasks([_classify(records), _free(records, target="{label}"), _classify(records)])
    with pytest.raises(ConfigError, match="no task was given"):
        load_tasks([])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a/b"}, "task name 'a/b'"),
        ({"metric": "f1"}, "unknown metric 'f1'"),
        ({"metric": "rouge"}, "the metric rouge does not fit"),
        ({"records": {}}, "names no records"),
        ({"records": {"validation": RecordSource(path="x")}}, "unknown split 'validation'; known: train, dev, test"),
        ({"template": None}, "either a template or a promptsource file"),
        ({"promptsource": "t.yaml"}, "either a template or a promptsource file"),
        ({"template": "{a"}, "template of task 'sst' has a lone"),
        ({"verbalizer": None}, "either a verbalizer .* or a target"),
        ({"target": "{label}"}, "either a verbalizer .* or a target"),
        ({"verbalizer": {"a": "x", "b": "x"}}, "share the word"),
        ({"labels": ("neg", "pos")}, "belong to a promptsource file"),
        ({"template": None, "promptsource": "t.yaml"}, "name the template of t.yaml"),
        ({"template": None, "promptsource": "t.yaml", "promptsource_template": "n"}, "brings its own target"),
    ],
)
def test_refused_specs(changes: dict, message: str) -> None:
    settings = {"name": "sst", "records": {"dev": RecordSource(path="x")}, **changes}
    with pytest.raises(ConfigError, match=message):
        _classify(settings.pop("records"), **settings)


@pytest.mark.shared_data
def test_real_data_to_text_has_many_references(shared_data: Path) -> None:
    path = shared_data / "data/tasks/e2e"
    records = {split: RecordSource(path=path / f"{split}.jsonl") for split in ("train", "dev", "test")}
    spec = _free(records, target="{label}")
    # Counted by hand on the files: rows, and different inputs among them.
    assert len(load_task(spec, "train")) == 4000
    for split, rows, inputs in (("dev", 300, 33), ("test", 1000, 491)):
        found = load_task(spec, split)
        assert (len(found), found.merged) == (inputs, rows - inputs)
        assert sum(len(row.references) for row in found) > len(found)
