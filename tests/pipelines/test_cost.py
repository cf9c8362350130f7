"""`frozenlm cost`: the components of a config, their sums, and what is said where a model is not at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig

from frozenlm import cost as flops
from frozenlm.architectures import meta_model
from frozenlm.shapes import ModelShape
from pipelines.cli import main
from pipelines.cost import cost
from pipelines.cost_types import Assumed
from pipelines.cost_words import short
from pipelines.errors import ConfigError
from pipelines.loader import load_config
from tests.toys import WINDOW, toy_model

H = 32
SMALL = Assumed(question_tokens=8, passage_tokens=20)
KEYS = (
    "kind trained_parameters lm_parameters lm_embedding_parameters parameter_ratio flops_per_input flops_one_pass "
    "flops_ratio_to_one_pass flops_spared_input second_pass_share flops_mean components assumptions not_counted"
)
BERT = {"hidden_size": H, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 99}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders that hold a config.json and nothing else, and a corpus of three passages."""
    folder = tmp_path_factory.mktemp("cost")
    toy_model("llama").config.save_pretrained(folder / "llama")
    BertConfig(**BERT).save_pretrained(folder / "bert")
    lines = [json.dumps({"id": str(i), "title": "", "text": "x" * 20}) for i in range(3)]
    (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def lm(world: Path) -> ModelShape:
    return ModelShape.of_lm(meta_model(toy_model("llama").config, "lm"))


def closed_book(world: Path, **changes: Any) -> Any:
    block = {"kind": "closed_book", "lm": {"model": str(world / "llama")}, "generation": {"max_new_tokens": 6}}
    return load_config({**block, "packing": {"answer_reserve": 6}, **changes})


def reader(world: Path, **changes: Any) -> Any:
    block = {
        "kind": "frozen_reader",
        "corpus": {"path": str(world / "corpus.jsonl"), "format": "jsonl"},
        "retriever": {"kind": "bm25"},
        "retrieve_k": 10,
        "lm": {"model": str(world / "llama")},
        "prompt": {"length": 5},
        "packing": {"answer_reserve": 6},
        "generation": {"max_new_tokens": 6},
    }
    return load_config({**block, **changes})


def ranker(world: Path, **changes: Any) -> dict[str, Any]:
    return {"kind": "cross_encoder", "model": str(world / "bert"), "checkpoint": "mine", **changes}


def test_the_lm_alone_is_one_pass(world: Path, lm: ModelShape) -> None:
    found = cost(closed_book(world), SMALL)
    assert list(found) == KEYS.split()
    assert found["flops_per_input"] == found["flops_one_pass"] == flops.generate(lm, 8, 6).total
    assert (found["trained_parameters"], found["parameter_ratio"], found["flops_ratio_to_one_pass"]) == (0, 0, 1)
    assert (found["lm_parameters"], found["lm_embedding_parameters"]) == (lm.parameters, 128 * H)
    assert found["components"]["lm_prefill"]["flops"] == lm.body.at(8)


def test_a_soft_prompt_adds_its_tokens_and_its_numbers(world: Path, lm: ModelShape) -> None:
    found = cost(closed_book(world, prompt={"length": 5}), SMALL)
    assert found["trained_parameters"] == 5 * H
    assert found["parameter_ratio"] == 5 * H / lm.parameters
    assert found["components"]["prompt"]["flops"] == flops.soft_tokens(lm, 8, 6, 5)
    assert found["flops_per_input"] == flops.generate(lm, 8 + 5, 6).total
    assert found["flops_one_pass"] == flops.generate(lm, 8, 6).total


def test_beams(world: Path, lm: ModelShape) -> None:
    found = cost(closed_book(world, generation={"max_new_tokens": 6, "num_beams": 3}), SMALL)
    assert found["flops_one_pass"] == flops.generate(lm, 8, 6, beams=3).total
    assert found["assumptions"]["beams"] == 3


def test_as_many_passages_as_fit_and_are_offered(world: Path) -> None:
    """The window of 96 leaves 96 - 6 - 5 = 85 tokens: a question of 8 and three passages of 20."""
    assert WINDOW - 6 - 5 == 8 + 3 * 20 + 17

    def packed(**changes: Any) -> tuple[int, int]:
        found = cost(reader(world, **changes), SMALL)["assumptions"]
        return found["input_tokens"], found["passages"]

    assert packed() == (68, 3)
    assert packed(retrieve_k=2) == (48, 2)
    assert packed(packing={"answer_reserve": 6, "max_passages": 1}) == (28, 1)
    assert packed(packing={"answer_reserve": 6, "max_tokens": 60}) == (48, 2)
    assert packed(reranker=ranker(world), rerank_k=1) == (28, 1)


def test_what_is_given_is_not_assumed(world: Path, lm: ModelShape) -> None:
    given = Assumed(input_tokens=50, answer_tokens=2, question_tokens=8, passage_tokens=20)
    found = cost(reader(world, prompt=None), given)
    assert found["flops_per_input"] == flops.generate(lm, 50, 2).total
    assert found["assumptions"]["passages"] == 2
    with pytest.raises(ConfigError, match=r"91 tokens of input do not fit: .* leave 90"):
        cost(reader(world, prompt=None), Assumed(input_tokens=91))


def test_a_re_ranker_reads_every_pair(world: Path) -> None:
    config = reader(world, reranker=ranker(world), rerank_depth=7)
    found = cost(config, SMALL)
    shape = ModelShape.of_encoder(meta_model(BertConfig(**BERT), "cross_encoder"))
    part = found["components"]["reranker"]
    assert part["flops"] == 7 * shape.body.at(8 + 20 + 3)  # question, passage, three control tokens
    assert part["parameters"] == part["trained_parameters"] == shape.parameters
    assert found["trained_parameters"] == shape.parameters + 5 * H
    assert found["flops_per_input"] == sum(one["flops"] for one in found["components"].values())
    ready = cost(reader(world, reranker=ranker(world, checkpoint=None)), SMALL)
    assert ready["components"]["reranker"]["trained_parameters"] == 0


def test_a_re_ranker_that_is_the_lm(world: Path, lm: ModelShape) -> None:
    found = cost(reader(world, reranker={"kind": "lm_likelihood"}, rerank_depth=4), SMALL)
    assert found["components"]["reranker"] == {
        "flops": 4 * flops.score(lm, 20, 8).total,
        "parameters": 0,
        "trained_parameters": 0,
    }


def test_a_dense_retriever_encodes_the_question_and_searches(world: Path) -> None:
    dense = {"kind": "dense", "encoder": {"model": str(world / "bert")}}
    hybrid = {"kind": "hybrid", "members": {"bm25": {"kind": "bm25"}, "dense": dense}}
    config = load_config(
        {"kind": "retrieval", "retriever": hybrid, "corpus": {"path": str(world / "corpus.jsonl"), "format": "jsonl"}}
    )
    found = cost(config, SMALL)
    shape = ModelShape.of_encoder(meta_model(BertConfig(**BERT), "encoder"))
    assert found["components"]["retriever.dense"]["flops"] == shape.body.at(8 + 2)
    assert found["components"]["retriever.dense.search"]["flops"] == 2 * H * 3  # a dot product a passage
    assert found["not_counted"] == ["retriever.bm25: BM25 looks words up and adds"]
    assert (found["lm_parameters"], found["flops_one_pass"], found["parameter_ratio"]) == (None, None, None)


def test_a_model_that_is_not_at_hand(world: Path, lm: ModelShape) -> None:
    with pytest.raises(ConfigError, match=r"lm: 'nobody/an-lm' is not at hand.*give lm\.architecture"):
        cost(closed_book(world, lm={"model": "nobody/an-lm"}))
    fields = toy_model("llama").config.to_dict()
    given = closed_book(world, lm={"model": "nobody/an-lm", "architecture": fields})
    assert cost(given, SMALL)["lm_parameters"] == lm.parameters
    other = {"model": str(world / "llama"), "architecture": fields | {"num_hidden_layers": 1}}
    assert cost(closed_book(world, lm=other), SMALL)["lm_parameters"] == lm.parameters  # the folder's own counts
    wrong = {"model": "nobody/an-lm", "architecture": {"model_type": "llama", "hiden_size": 8}}
    with pytest.raises(ConfigError, match="no config field hiden_size"):
        cost(closed_book(world, lm=wrong))


def test_what_is_missing_is_said_and_what_a_config_is_about_is_not_missed(world: Path) -> None:
    away = ranker(world, model="nobody/a-ranker")
    found = cost(reader(world, reranker=away), SMALL)
    assert "reranker" not in found["components"]
    assert any("'nobody/a-ranker' is not at hand" in one for one in found["not_counted"])
    job = {"kind": "reranker", "retriever": {"kind": "bm25"}, "corpus": {"path": str(world / "corpus.jsonl")}}
    with pytest.raises(ConfigError, match="name a local folder"):
        cost(load_config({**job, "reranker": away}))


def test_an_lm_without_a_window(world: Path, tmp_path: Path) -> None:
    toy_model("t5").config.save_pretrained(tmp_path / "t5")
    block = {"lm": {"model": str(tmp_path / "t5")}}
    with pytest.raises(ConfigError, match=r"set packing\.max_tokens"):
        cost(closed_book(world, **block))
    room = {"answer_reserve": 6, "max_tokens": 50}
    assert cost(closed_book(world, **block, packing=room), SMALL)["assumptions"]["input_tokens"] == 8


def test_the_command(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(f"kind: closed_book\nlm: {{model: {world}/llama}}\nprompt: {{length: 5}}\n")
    assert main(["cost", str(job), "--json", "--input-tokens", "20", "--answer-tokens", "3"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == cost(load_config(job), Assumed(input_tokens=20, answer_tokens=3))
    assert main(["cost", str(job)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "lm prefill" in out and "in all" in out and "passes" in out and "assumed: input tokens 16" in out
    assert main(["cost", str(job), "--input-tokens", "1000"]) == 2
    assert "do not fit" in capsys.readouterr().err
    assert main(["cost", str(job), "--set", "lm.model=nobody/an-lm"]) == 2


def test_numbers_for_the_eye() -> None:
    assert [short(n) for n in (0, 999, 1000, 1_234_567, 6_738_415_616, 10**18)] == [
        "-", "999", "1k", "1.235M", "6.738G", "1E",
    ]  # fmt: skip
