"""R7: whatever is in a config file, reading it raises nothing but `ConfigError`, in under a second."""

from __future__ import annotations

import copy
import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.assets import config_folder, packaged_configs
from pipelines.errors import ConfigError
from pipelines.loader import as_written, load_config

EXAMPLES = int(os.environ.get("FROZENLM_FUZZ_EXAMPLES", "150"))
LIMIT_SECONDS = 1.0
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

NAMES = ["kind", "retrieval", "closed_book", "frozen_reader", "bm25", "hybrid", "extends", "lm", "model", "members"]
PLAIN = [
    "null",
    "yes",
    "1e-3",
    ".nan",
    "-.inf",
    "0x1",
    "${env:HOME}",
    "${env:",
    "${env:NO_X}",
    "~",
    "~nobody",
    "/",
    "..",
]
SYNTAX = [
    "<<",
    "*a",
    "&a",
    "!!int",
    "!x",
    "?",
    "|",
    ">",
    "[",
    "]",
    "{",
    "}",
    ":",
    "-",
    ",",
    "#",
    "'",
    '"',
    "%YAML",
    "---",
]
BLANKS = ["...", "a:b", "..:..", "\n", "  ", "\t", "\x85", "\u2028", "\ufeff"]
WORDS = st.sampled_from([*NAMES, *PLAIN, *SYNTAX, *BLANKS])
SCALARS: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), WORDS, st.just("x" * 300)
)
TREES: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | WORDS, inner, max_size=3),
    max_leaves=8,
)
VALID: list[dict[str, Any]] = [yaml.safe_load((config_folder() / name).read_text()) for name in packaged_configs()]


def attempt(source: Any, overrides: tuple[str, ...] = ()) -> None:
    """Load; anything but a config or a ConfigError fails the test, and so does a second's delay.

    The best of two attempts is timed: the machine may be busy with something else during one.
    """
    seconds = []
    for _ in range(2):
        start = time.process_time()
        try:
            as_written(load_config(source, overrides=overrides))
        except ConfigError as error:
            assert str(error)
        seconds.append(time.process_time() - start)
    assert min(seconds) < LIMIT_SECONDS


def places(tree: Any, where: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every key and list entry of a tree."""
    steps = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else []
    return [found for step, inner in steps for found in [(*where, step), *places(inner, (*where, step))]]


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    """A valid config with one to three keys replaced, removed, renamed or added."""
    tree = copy.deepcopy(draw(st.sampled_from(VALID)))
    for _ in range(draw(st.integers(1, 3))):
        where = draw(st.sampled_from(places(tree) or [("kind",)]))
        node = tree
        for step in where[:-1]:
            node = node[step]
        action = draw(st.sampled_from(["replace", "remove", "rename", "add"]))
        if action == "replace":
            node[where[-1]] = draw(TREES)
        elif action == "add" and isinstance(node, dict):
            node[draw(st.text(max_size=8) | WORDS)] = draw(TREES)
        elif isinstance(node, dict):
            value = node.pop(where[-1], None)
            if action == "rename":
                node[str(where[-1])[:-1] + draw(st.text(max_size=2))] = value
        if not isinstance(tree, dict) or not tree:
            break
    return tree


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "fuzz.yaml"


@fuzz
@given(text=st.text(max_size=400))
def test_any_text(file: Path, text: str) -> None:
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    attempt(file)


@fuzz
@given(data=st.binary(max_size=400))
def test_any_bytes(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    attempt(file)


@fuzz
@given(words=st.lists(WORDS, max_size=40))
def test_words_that_mean_something_to_yaml(file: Path, words: list[str]) -> None:
    file.write_text(" ".join(words), encoding="utf-8")
    attempt(file)


@fuzz
@given(tree=mutated())
def test_a_mutated_config_as_yaml(file: Path, tree: dict[str, Any]) -> None:
    file.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    attempt(file)


@fuzz
@given(tree=mutated())
def test_a_mutated_config_as_a_mapping(tree: dict[str, Any]) -> None:
    attempt(tree)


@fuzz
@given(data=st.data())
def test_a_config_with_characters_changed(file: Path, data: st.DataObject) -> None:
    text = (config_folder() / data.draw(st.sampled_from(packaged_configs()))).read_text()
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        text = text[:at] + data.draw(WORDS | st.text(max_size=3)) + text[at + data.draw(st.integers(0, 3)) :]
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    attempt(file)


SETTABLE = (
    "seed lm.model retriever retriever.members.bm25.k1 evaluation.recall_at.0 training.questions.0.path extends a.b"
)
OVERRIDES = st.text(max_size=30) | st.builds("{}={}".format, st.sampled_from(SETTABLE), WORDS | st.text(max_size=9))


@fuzz
@given(overrides=st.lists(OVERRIDES, max_size=3))
def test_any_override(overrides: list[str]) -> None:
    attempt("frozen_reader.yaml", tuple(overrides))
