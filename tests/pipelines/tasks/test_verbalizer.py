"""Labels to words."""

import pytest

from pipelines.errors import ConfigError
from pipelines.tasks.verbalizer import Verbalizer


def test_text_numbers_and_booleans_are_labels() -> None:
    words = Verbalizer({"neg": "bad", 2: "good", True: "yes"}, task="t")
    assert words.choices == ("bad", "good", "yes")
    found = [words.word(label, where="f:1") for label in ("neg", 2, "2", True, "true")]
    assert found == ["bad", "good", "good", "yes", "yes"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"a": "x", "b": "x"}, "labels 'a' and 'b' share the word 'x'"),
        ({"a": "x", "b": " x"}, "labels 'a' and 'b' share the word ' x'"),
        ({"a": "x", "b": ""}, "the word for 'b' is ''"),
        ({"a": "x", "b": " "}, "the word for 'b' is ' '"),
        ({"a": "x", "b": 3}, "the word for 'b' is 3"),
        ({"a": "x"}, "1 labels; expected at least two"),
        ({1: "x", "1": "y"}, "label '1' is given twice"),
        ({1.5: "x", "b": "y"}, r"the label is 1.5 \(float\)"),
    ],
)
def test_refused_verbalizers(words: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=f"verbalizer of task 't': {message}"):
        Verbalizer(words, task="t")


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("c", "f:3: task 't' has no word for the label 'c'; its verbalizer has 'a', 'b'"),
        (None, "f:3: the label is null"),
        (["a"], r"f:3: the label is \['a'\] \(list\)"),
    ],
)
def test_a_label_without_a_word(label: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Verbalizer({"a": "x", "b": "y"}, task="t").word(label, where="f:3")
