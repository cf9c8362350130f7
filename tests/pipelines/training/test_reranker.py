"""Training a re-ranker through its config, and what stands behind it."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines import Pipeline
from pipelines.errors import CheckpointError, ConfigError
from pipelines.loader import load_config
from pipelines.training import train
from tests.retrievers.toys import save_bert

PAIRS = [("paris", "france"), ("london", "england"), ("berlin", "germany"), ("cairo", "egypt"), ("rome", "italy")]


@pytest.fixture
def world(tmp_path: Path) -> Path:
    corpus = [{"_id": f"p{i}", "text": f"city {a} lies in {b}"} for i, (a, b) in enumerate(PAIRS)]
    corpus += [{"_id": f"n{i}", "text": f"city {a} has many people"} for i, (a, _) in enumerate(PAIRS)]
    rows = [{"_id": f"q{i}", "text": f"city {a} lies where", "answers": [b]} for i, (a, b) in enumerate(PAIRS)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, corpus)))
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows[:4])))
    (tmp_path / "dev.jsonl").write_text(json.dumps(rows[4]))
    save_bert(tmp_path / "bert")
    return tmp_path


def _config(world: Path, **changes: Any) -> Any:
    return load_config(
        {
            "kind": "reranker",
            "workspace": str(world / "work"),
            "corpus": {"path": str(world / "corpus.jsonl")},
            "retriever": {"kind": "bm25"},
            "retrieve_k": 5,
            "build_index": "on_first_use",
            "reranker": {"kind": "cross_encoder", "model": str(world / "bert"), "checkpoint": "r", "max_length": 32},
            "training": {
                "questions": [{"path": str(world / "train.jsonl")}],
                "dev": [{"path": str(world / "dev.jsonl")}],
                "steps": 4,
                "batch_size": 2,
                "negatives": 2,
                "learning_rate": 1e-3,
                "eval_every": 2,
            },
        }
        | changes
    )


def test_trains_saves_and_is_used(world: Path) -> None:
    summary = train(_config(world))
    assert summary["examples"] == 4
    assert 0 < summary["best_score"] <= 1
    with Pipeline.from_config(_config(world)) as pipeline:
        answer = pipeline("city rome lies where")
    assert answer.text is None
    assert {hit.passage_id for hit in answer.passages} == {hit.passage_id for hit in answer.retrieved}
    scores = [hit.rerank_score for hit in answer.passages]
    assert scores == sorted(scores, reverse=True)
    assert all(hit.rerank_score is None for hit in answer.retrieved)
    assert train(_config(world))["already_trained"]


def test_an_untrained_checkpoint_is_named_with_its_command(world: Path) -> None:
    with pytest.raises(CheckpointError, match="frozenlm train"):
        Pipeline.from_config(_config(world))("city rome")


def test_a_model_without_a_ranking_head_is_refused_for_serving(world: Path) -> None:
    from pipelines.errors import RetrieverError

    untrained = {"kind": "cross_encoder", "model": str(world / "bert")}
    with pytest.raises(RetrieverError, match="no trained cross-encoder"):
        Pipeline.from_config(_config(world, reranker=untrained))("city rome")


def test_training_needs_a_cross_encoder_with_a_name(world: Path) -> None:
    with pytest.raises(ConfigError, match="checkpoint"):
        train(_config(world, reranker={"kind": "lm_likelihood"}))


def test_nothing_to_mine_is_an_error(world: Path) -> None:
    (world / "train.jsonl").write_text(json.dumps({"_id": "q", "text": "city rome", "answers": ["mars"]}))
    with pytest.raises(ConfigError, match="no training example"):
        train(_config(world))
