"""Training a reader's prompt through its config: only the prompt moves, it is used afterwards, a second run finds it
trained."""

import json
from pathlib import Path
from typing import Any

import pytest

from frozenlm.lm import FrozenLM
from pipelines import Pipeline
from pipelines.errors import CheckpointError, ConfigError
from pipelines.loader import load_config
from pipelines.training import train
from tests.toys import toy_folder

FACTS = {"paris": "france", "london": "england", "berlin": "germany", "nile": "egypt", "amazon": "brazil"}


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A corpus of five facts, its questions, and a toy LM."""
    corpus = [{"_id": f"p{i}", "text": f"the {a} is in {b}"} for i, (a, b) in enumerate(FACTS.items())]
    rows = [{"_id": f"q{i}", "text": f"where is the {a}", "answers": [b]} for i, (a, b) in enumerate(FACTS.items())]
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, corpus)))
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows[:4])))
    (tmp_path / "dev.jsonl").write_text(json.dumps(rows[4]))
    toy_folder("gpt2", tmp_path).rename(tmp_path / "lm")
    return tmp_path


def _config(world: Path, **changes: Any) -> Any:
    return load_config(
        {
            "kind": "frozen_reader",
            "workspace": str(world / "work"),
            "corpus": {"path": str(world / "corpus.jsonl")},
            "retriever": {"kind": "bm25"},
            "retrieve_k": 2,
            "build_index": "on_first_use",
            "lm": {"model": str(world / "lm")},
            "packing": {"answer_reserve": 6, "passage": "text : {text} "},
            "generation": {"max_new_tokens": 4},
            "prompt": {"name": "p", "length": 4, "position": "suffix"},
            "training": {
                "questions": [{"path": str(world / "train.jsonl")}],
                "dev": [{"path": str(world / "dev.jsonl")}],
                "steps": 6,
                "batch_size": 2,
                "eval_every": 3,
                "learning_rate": 0.05,
            },
        }
        | changes
    )


@pytest.mark.parametrize("position", ["prefix", "suffix"])
def test_trains_saves_and_is_used(world: Path, position: str) -> None:
    config = _config(world, prompt={"name": "p", "length": 4, "position": position})
    said: list[str] = []
    summary = train(config, log=said.append)
    assert summary["examples"] == 4
    assert summary["steps"] == 6
    assert summary["lm_weights_changed"] == 0
    assert any(line.startswith("LM weights changed: 0 of ") for line in said)
    answer = Pipeline.from_config(config)("where is the nile")
    assert answer.prompt is not None
    zero = Pipeline.from_config(config.model_copy(update={"prompt": None}))("where is the nile")
    assert zero.prompt is None
    assert answer.score != zero.score


def test_a_second_run_finds_it_trained_and_other_settings_are_refused(world: Path) -> None:
    assert not train(_config(world))["already_trained"]
    assert train(_config(world))["already_trained"]
    other = _config(world).training.model_dump(mode="json") | {"steps": 7}
    with pytest.raises(ConfigError, match="steps"):
        train(_config(world, training=other))
    assert train(_config(world, training=other), restart=True)["steps"] == 7


def test_questions_without_an_answer_in_their_context_are_counted(world: Path) -> None:
    row = {"_id": "q9", "text": "where is the nile", "answers": ["berlin"]}
    with (world / "train.jsonl").open("a") as file:
        file.write("\n" + json.dumps(row))
    assert train(_config(world))["skipped"] == 1


def test_nothing_answerable_is_an_error(world: Path) -> None:
    (world / "train.jsonl").write_text(json.dumps({"_id": "q", "text": "where is the nile", "answers": ["mars"]}))
    with pytest.raises(ConfigError, match="nothing to learn"):
        train(_config(world))


def test_dev_questions_may_not_be_training_questions(world: Path) -> None:
    base = _config(world).training.model_dump(mode="json") | {"dev": [{"path": str(world / "train.jsonl")}]}
    with pytest.raises(ConfigError, match="dev questions are training questions too"):
        train(_config(world, training=base))


def test_a_prompt_of_another_lm_or_shape_is_refused(world: Path) -> None:
    train(_config(world))
    toy_folder("gpt2", world, seed=5).rename(world / "other")
    with pytest.raises(CheckpointError, match=r"another LM|other LM"):
        Pipeline.from_config(_config(world, lm={"model": str(world / "other")}))("where is the nile")
    with pytest.raises(CheckpointError, match="4 tokens"):
        Pipeline.from_config(_config(world, prompt={"name": "p", "length": 8}))("where is the nile")


def test_closed_book_prompts_train_without_passages(world: Path) -> None:
    shared = _config(world).model_dump(mode="json", include={"workspace", "lm", "packing", "generation", "training"})
    config = load_config({"kind": "closed_book", "prompt": {"name": "closed", "length": 4}, **shared})
    assert train(config)["examples"] == 4
    assert isinstance(FrozenLM.load(world / "lm").fingerprint, str)
    assert Pipeline.from_config(config)("where is the nile").prompt is not None


def test_a_config_without_training_trains_nothing(world: Path) -> None:
    with pytest.raises(ConfigError, match="no training block"):
        train(_config(world, training=None))
