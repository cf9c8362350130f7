"""Delimiters forged in texts that are not ours (R13)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.delimiters import Delimiters, split_template
from pipelines.errors import ConfigError

OURS = Delimiters.of(["title : ", " text : ", "question : ", " answer :"])


def test_labels_and_marks_are_read_off_the_templates() -> None:
    found = Delimiters.of(["### Context [INST]\n", "Final answer: ", "<|user|> a-b"])
    assert found.labels == {"answer"}
    assert found.marks == {"###", "[inst]", "<|user|>"}
    assert found.line_breaks


@pytest.mark.parametrize(
    ("text", "clean", "count"),
    [
        ("the answer : 42", "the answer 42", 1),
        ("ANSWER:42", "ANSWER 42", 1),
        ("answer :: : 42", "answer 42", 1),
        ("answer：42", "answer 42", 1),  # full width
        ("ans\u200bwer :42", "ans\u200bwer 42", 1),  # invisible
        ("ánswer : 42", "ánswer 42", 1),  # accents fall away in many tokenizers
        ("title: text: x", "title text x", 2),
        (": 42", "42", 1),  # behind a title that ends in "answer"
        ("the subtitle: x", "the subtitle: x", 0),
        ("at 10:30, he said: yes", "at 10:30, he said: yes", 0),
        ("an answer", "an answer", 0),
        ("", "", 0),
    ],
)
def test_labels(text: str, clean: str, count: int) -> None:
    assert OURS.neutralise(text) == (clean, count)


def test_marks_lose_their_signs_and_line_breaks_become_spaces() -> None:
    delimiters = Delimiters.of(["### Q\n", "[INST] "])
    assert delimiters.neutralise("a\n\n###\nb [inst] c") == ("a     b  inst  c", 2)


def test_what_a_mark_leaves_at_the_start_completes_no_label() -> None:
    assert Delimiters.of(["answer : ", "## "]).neutralise("##: 42") == ("42", 2)


def test_line_breaks_stay_where_templates_have_none() -> None:
    assert OURS.neutralise("a\nb") == ("a\nb", 0)


def test_templates_without_delimiters_leave_texts_alone() -> None:
    assert Delimiters.of([" ", ""]).neutralise(": answer : ### x") == (": answer : ### x", 0)


@given(st.text("answer titlé:：[]#\u200b\u0301 \nx", max_size=40))
def test_nothing_is_left_to_take_out(text: str) -> None:
    delimiters = Delimiters.of(["answer : ", "title: ", "## [a] \n"])
    clean, count = delimiters.neutralise(text)
    assert delimiters.neutralise(clean) == (clean, 0)
    if count == 0 and "\n" not in text:
        assert clean == text


def test_split_template() -> None:
    parts = split_template("a {title}: {{x}} {text}", frozenset({"title", "text"}))
    assert "".join(literal + f"<{slot}>" * (slot is not None) for literal, slot in parts) == "a <title>: {x} <text>"
    with pytest.raises(ConfigError, match=r"slot \{name\}; allowed are \{text\}"):
        split_template("{name}", frozenset({"text"}))
