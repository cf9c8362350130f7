"""promptsource's files: our own small ones, and all of the real ones on the real tasks."""

import json
import re
from pathlib import Path

import pytest

from pipelines.errors import ConfigError
from pipelines.tasks.promptsource import PromptsourceTemplate, Rendered, TemplateText, load_template, read_templates
from pipelines.tasks.records import RecordSource
from pipelines.tasks.spec import TaskSpec
from pipelines.tasks.task import load_task

SMALL = """\
dataset: small
templates:
  id-1: !Template
    answer_choices: bad ||| good
    id: id-1
    jinja: "{{sentence}} Is it good? ||| {{ answer_choices[label] }}"
    metadata: &m !TemplateMetadata
      choices_in_prompt: false
      languages: [en]
      metrics: [Accuracy]
      original_task: true
    name: 'is it '
    reference: ''
  id-2: !Template
    answer_choices: null
    id: id-2
    jinja: "{% if label == 1 %}{{ ['Say', 'Tell'] | choice }} a good sentence: ||| {{sentence}}{% endif %}"
    metadata: *m
    name: write
    reference: 'ours'
  id-3: !Template
    answer_choices: null
    id: id-3
    jinja: "{{ broken"
    metadata: null
    name: broken
    reference: null
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "templates.yaml"
    path.write_text(SMALL)
    return path


def _template(jinja: str, choices: str | None = None) -> PromptsourceTemplate:
    return PromptsourceTemplate(TemplateText(id="i", name="n", where="t", jinja=jinja, answer_choices=choices))


def test_reading_a_file(small: Path) -> None:
    first, second, third = read_templates(small)
    assert (first.id, first.name, first.answer_choices) == ("id-1", "is it ", "bad ||| good")
    assert (first.metrics, first.languages) == (("Accuracy",), ("en",))
    assert (first.original_task, first.choices_in_prompt) == (True, False)
    assert second.metrics == ("Accuracy",)
    assert (third.metrics, third.original_task, third.reference) == ((), None, "")


def test_a_template_by_name_or_id(small: Path) -> None:
    template = load_template(small, "is it")
    assert template.fields == ("label", "sentence")
    rendered = template.render({"sentence": "I like ||| it.", "label": 1}, where="f:1", seed="")
    assert rendered == Rendered("I like ||| it. Is it good?", "good", ("bad", "good"))
    assert load_template(small, "id-2").source.name == "write"
    with pytest.raises(ConfigError, match="no template named 'wrote'; did you mean 'write'"):
        load_template(small, "wrote")
    with pytest.raises(ConfigError, match="template 'broken': line 1: not valid Jinja"):
        load_template(small, "broken")


def test_two_templates_of_one_name(small: Path) -> None:
    small.write_text(SMALL.replace("name: broken", "name: write"))
    with pytest.raises(ConfigError, match="2 templates named 'write'; give the id instead: id-2, id-3"):
        load_template(small, "write")


def test_nothing_to_ask_and_empty_sides_are_left_out() -> None:
    template = _template("{% if a %}{{ a }} ||| {{ b }}{% endif %}")
    assert template.render({"a": "x", "b": "y"}, where="f:1", seed="") == Rendered("x", "y")
    for record in ({"a": "", "b": "y"}, {"a": " ", "b": "y"}, {"a": "x", "b": " "}):
        assert template.render(record, where="f:1", seed="") is None


def test_choices_that_depend_on_the_record() -> None:
    template = _template("{{q}} ||| {{ answer_choices[1] }}", "{{a}} ||| {{b}} ||| {{a}}")
    rendered = template.render({"q": "Q", "a": "x ||| y", "b": "z"}, where="f:1", seed="")
    assert rendered == Rendered("Q", "z", ("x ||| y", "z"))


@pytest.mark.parametrize(
    ("jinja", "choices", "message"),
    [
        ("{{a}}", None, "f:1: t writes 0 times '|||'"),
        ("{{a}} ||| {{a}} ||| {{a}}", None, "f:1: t writes 2 times '|||'"),
        ("{{a}} ||| maybe", "no ||| yes", "writes the target 'maybe'; expected one of its answer choices 'no', 'yes'"),
        ("{{a}} ||| {{ answer_choices[-1] }}", "no ||| yes", "answer_choices has no element -1"),
        ("{{a}} ||| {{ answer_choices[0] }}", None, "'answer_choices' is undefined"),
        ("{{a}} ||| {{ answer_choices[0] }}", "{{c}} ||| no", "t, answer_choices: 'c' is undefined"),
        ("{{b}} ||| {{a}}", None, "'b' is undefined; the template was given a"),
    ],
)
def test_records_that_do_not_fit(jinja: str, choices: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        _template(jinja, choices).render({"a": "x"}, where="f:1", seed="")


def test_a_record_may_not_bring_answer_choices() -> None:
    with pytest.raises(ConfigError, match="f:1: the record's field 'answer_choices'"):
        _template("{{a}} ||| b").render({"a": "x", "answer_choices": []}, where="f:1", seed="")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a mapping with the key 'templates'"),
        ("templates: {}", "holds no template"),
        ("templates: [1]", "expected a mapping with the key 'templates'"),
        ("templates: {a: {jinja: x, name: y}}", "template a: expected a !Template, got dict"),
        ("templates:\n  a: !Template [1]", r"yaml:2: .*!Template is no mapping"),
        ("templates: {a: !Template {name: y}}", "template a: 'jinja' is None, expected a str"),
        ("templates: {a: !Template {jinja: x, name: ' '}}", "template a: 'name' is ' '"),
        ("templates: {a: !Template {jinja: x, name: y, answer_choices: [a]}}", "'answer_choices' is .*expected a str"),
        ("templates: {a: !Template {jinja: x, jinja: z, name: y}}", r"yaml:1: .*duplicate key 'jinja'"),
        ("a: !!python/object/apply:os.system [echo]", "yaml:1: not a promptsource file: could not determine"),
        ("a: [1", "not a promptsource file"),
        ("a: " + "[" * 1500, "not a promptsource file"),
    ],
)
def test_files_that_are_not_promptsource(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "templates.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_templates(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_templates(tmp_path / "no.yaml")


ONE_TEXT = {"sst2": "glue/sst2", "cola": "glue/cola", "ag_news": "ag_news"}
TREC = ("abbreviation", "entity", "description", "person", "location", "number")
REAL = [
    ("glue/sst2", "sst2", {"sentence": "text"}, 5),
    ("rotten_tomatoes", "sst2", {}, 10),
    ("glue/cola", "cola", {"sentence": "text"}, 5),
    ("glue/mrpc", "mrpc", {"sentence1": "text", "sentence2": "text_b"}, 7),
    ("glue/rte", "rte", {"sentence1": "text", "sentence2": "text_b"}, 5),
    ("super_glue/rte", "rte", {"premise": "text", "hypothesis": "text_b"}, 10),
    ("super_glue/boolq", "boolq", {"passage": "text", "question": "text_b"}, 10),
    ("ag_news", "ag_news", {}, 7),
    ("trec", "trec", {"coarse_label": "label"}, 18),
]


@pytest.mark.shared_data
@pytest.mark.parametrize(("folder", "task", "fields", "count"), REAL)
def test_real_templates_on_real_tasks(shared_data: Path, folder: str, task: str, fields: dict, count: int) -> None:
    file = shared_data / "data/promptsource" / folder / "templates.yaml"
    labels = json.loads((shared_data / "data/tasks/tasks.json").read_text())[task]["labels"]
    source = RecordSource(path=shared_data / f"data/tasks/{task}/dev.jsonl", limit=60)
    templates = read_templates(file)
    assert len(templates) == count
    for template in templates:
        if "fine_label" in template.jinja:  # these tasks have coarse labels only
            continue
        spec = TaskSpec(
            name=task,
            records={"dev": source},
            metric="accuracy" if template.answer_choices else "rouge",
            promptsource=file,
            promptsource_template=template.id,
            fields=fields,
            labels=TREC if task == "trec" else tuple(labels),
        )
        rows = load_task(spec, "dev")
        assert len(rows) + rows.skipped + rows.merged == 60
        if template.answer_choices:
            words = [word.strip() for word in template.answer_choices.split("|||")]
            assert rows.skipped == 0
            assert all(row.target == words[spec.label_order.index(str(row.label))] for row in rows)
            assert all(row.choices == tuple(words) for row in rows)
        else:
            # mrpc's writing templates ask only about paraphrases
            assert rows.skipped == sum('"different"' in line for line in Path(source.path).read_text().split("\n")[:60])


QA = {"question": "Who was it?", "context": "It was Ada.", "title": "Ada_L", "answers": {"text": ["Ada", "Ada L"]}}
MEANING = "name[The Mill], eatType[pub], food[Italian], priceRange[cheap], customer rating[low], area[centre]"
OTHERS = [
    ("squad", QA, 6),
    ("squad_v2", QA, 12),
    ("nq_open", {"question": "who was it", "answer": ["Ada", "Ada L"]}, 6),
    ("wiki_qa", {"question": "who was it", "answer": "Ada was.", "document_title": "Ada", "label": 1}, 11),
    (
        "e2e_nlg_cleaned",
        {
            "meaning_representation": MEANING + ", familyFriendly[no], near[The Inn]",
            "human_reference": "The Mill is a pub.",
        },
        12,
    ),
]


@pytest.mark.shared_data
@pytest.mark.parametrize(("folder", "record", "count"), OTHERS)
def test_real_templates_of_other_datasets(shared_data: Path, folder: str, record: dict, count: int) -> None:
    templates = read_templates(shared_data / "data/promptsource" / folder / "templates.yaml")
    assert len(templates) == count
    for source in templates:
        template = PromptsourceTemplate(source)
        assert set(template.fields) <= set(record)
        first = template.render(record, where="f:1", seed="7")
        assert first is not None
        assert first == PromptsourceTemplate(source).render(record, where="elsewhere:1", seed="7")
        assert not first.choices or first.target in first.choices


@pytest.mark.shared_data
def test_real_values_spelt_out(shared_data: Path) -> None:
    folder = shared_data / "data/promptsource"

    def target(dataset: str, name: str, record: dict) -> str | None:
        template = load_template(folder / dataset / "templates.yaml", name)
        rendered = template.render(record, where="f:1", seed="")
        return rendered and rendered.target

    e2e = OTHERS[4][1]
    assert target("e2e_nlg_cleaned", "food_qa", e2e) == "Italian"
    assert target("e2e_nlg_cleaned", "near_qa", e2e) == "The Inn"
    assert target("e2e_nlg_cleaned", "near_qa", {**e2e, "meaning_representation": "name[The Mill]"}) is None
    empty = {**QA, "answers": {"text": []}}
    assert target("squad_v2", "Questions with Context +unanswerable", empty) == "unanswerable"
    assert target("squad_v2", "Trivia", empty) is None
    assert target("squad_v2", "Topic Prediction - Context", QA) == "Ada L"
    drawn = {
        load_template(folder / "nq_open/templates.yaml", "question_answer")
        .render(OTHERS[2][1], where="f:1", seed=str(i))
        .target
        for i in range(20)
    }
    assert drawn == {"Ada", "Ada L"}
