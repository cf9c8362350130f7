"""The template grammar and what it says about records that do not fit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import ConfigError
from pipelines.tasks.template import Template


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{text}", "a {b}"),
        ("Review: {text}\nGood? {n}", "Review: a {b}\nGood? 3"),
        ("{{text}} {text}", "{text} a {b}"),
        ("{{{text}}}", "{a {b}}"),
        ("{text}{text}", "a {b}a {b}"),
        ("{yes}/{half}/{empty}.", "true/0.5/."),
    ],
)
def test_rendering(source: str, text: str) -> None:
    record = {"text": "a {b}", "n": 3, "yes": True, "half": 0.5, "empty": ""}
    assert Template(source).render(record, where="f:1") == text


def test_fields_in_order_of_first_use() -> None:
    assert Template("{b} {a} {b}").fields == ("b", "a")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("ab {text", r"t has a lone '\{' at character 4; write \{\{"),
        ("{text} }", r"t has a lone '\}' at character 8"),
        ("{text!r}", r"the slot '\{text!r\}' at character 1"),
        ("{a} {text:>9}", r"the slot '\{text:>9\}' at character 5"),
        ("{a.b}", r"the slot '\{a.b\}'"),
        ("{a[0]}", r"the slot '\{a\[0\]\}'"),
        ("{}", r"the slot '\{\}'"),
        ("no slot", r"t 'no slot' has no \{field\}"),
        ("{{a}}", r"has no \{field\}"),
    ],
)
def test_refused_templates(source: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Template(source, name="t")


def test_a_missing_field_names_template_field_and_record() -> None:
    with pytest.raises(ConfigError, match=r"f.jsonl:7: t reads \{txt\}, the record has only label, text; did you mean"):
        Template("{txt}", name="t").render({"text": "x", "label": 1}, where="f.jsonl:7")


@pytest.mark.parametrize(("value", "got"), [(None, "null"), (["a"], "list"), ({"a": 1}, "dict")])
def test_null_and_lists_are_no_text(value: object, got: str) -> None:
    with pytest.raises(ConfigError, match=f"f:1: t reads {{a}}, which is {got}"):
        Template("{a}", name="t").render({"a": value}, where="f:1")


@given(st.text(), st.text())
def test_any_value_comes_out_as_it_went_in(literal: str, value: str) -> None:
    escaped = literal.replace("{", "{{").replace("}", "}}")
    assert Template(escaped + "{a}" + escaped).render({"a": value}, where="f:1") == literal + value + literal
