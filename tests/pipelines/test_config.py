"""The config models themselves: bounds, rules between keys, and the generated schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines import config as c
from pipelines.cli_check import schema_text
from pipelines.errors import ConfigError
from pipelines.loader import load_config

CHECKOUT = Path(__file__).parents[2]
CLOSED: dict[str, Any] = {"kind": "closed_book", "lm": {"model": "some/model"}}
BM25: dict[str, Any] = {"kind": "retrieval", "corpus": {"path": "/p.jsonl"}, "retriever": {"kind": "bm25"}}


def refused(values: dict[str, Any], *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(values, overrides=overrides)
    return str(caught.value)


def test_the_committed_schema_is_up_to_date() -> None:
    assert (CHECKOUT / "configs" / "schema.json").read_text() == schema_text(), (
        "run: frozenlm config schema > configs/schema.json"
    )


def test_the_schema_knows_every_kind() -> None:
    schema = json.loads(schema_text())
    kinds = {"retrieval", "reranker", "frozen_reader", "closed_book", "multitask"}
    kinds |= {"textual_recursion", "neural_recursion", "classification", "prompting"}
    kinds |= {"prompt_search", "method_comparison"}
    assert set(schema["discriminator"]["mapping"]) == kinds
    assert schema["$defs"]["BM25"]["additionalProperties"] is False


@pytest.mark.parametrize(
    "override",
    [
        "seed=-1",
        f"seed={2**53 + 1}",
        "generation.temperature=0",
        "generation.temperature=.inf",
        "generation.length_penalty=.nan",
        "generation.top_p=0",
        "generation.top_p=1.1",
        "generation.top_p=.nan",
        "generation.do_sample=1",
        "generation.stop=x",
        "packing.max_tokens=0",
        "packing.overflow=cut",
        "lm.device=gpu",
        "lm.dtype=fp32",
        "prompt.name=../up",
        "prompt.name=a/b",
        "prompt.length=0",
        "workspace=''",
        "evaluation.recall_at=[]",
        "evaluation.recall_at=[0]",
        "training={questions: []}",
        "training={questions: [{path: a}], learning_rate: 0}",
    ],
)
def test_out_of_bounds(override: str) -> None:
    assert f"--set {override.split('=')[0]}" in refused(CLOSED, override)


def test_rules_between_keys() -> None:
    assert "needs a corpus block" in refused({**BM25, "corpus": None})
    dense = {"kind": "dense", "encoder": {"kind": "dpr", "model": "m/m"}}
    assert "an encoder of kind dpr needs question_model" in refused({**BM25, "retriever": dense})
    plain = {"kind": "dense", "encoder": {"model": "m/m", "question_model": "m/m"}}
    assert "sentence_transformers has no question_model" in refused({**BM25, "retriever": plain})
    members = {"a": {"kind": "bm25"}, "b": {"kind": "bm25"}}
    hybrid = {"kind": "hybrid", "members": members}
    assert "rule spider joins members named bm25 and dense" in refused({**BM25, "retriever": hybrid})
    weights = {**hybrid, "rule": "rrf", "weights": {"c": 1.0}}
    assert "weights name ['c'], but the members are ['a', 'b']" in refused({**BM25, "retriever": weights})
    assert load_config({**BM25, "retriever": {**hybrid, "rule": "rrf"}}).retriever.rrf_k == 60


def test_which_retrievers_need_a_corpus() -> None:
    ours = c.Custom(kind="my_package:Retriever")
    run = c.Precomputed(kind="precomputed", file=Path("/r.json"))
    assert not c.needs_corpus(ours) and not c.needs_corpus(run)
    assert c.needs_corpus(c.BM25(kind="bm25"))
    asked = c.Questions(path=Path("/q.jsonl"))
    assert c.needs_corpus(c.Precomputed(kind="precomputed", file=Path("/r.trec"), format="trec", questions=asked))
    assert c.needs_corpus(c.Hybrid(kind="hybrid", rule="rrf", members={"a": ours, "b": c.BM25(kind="bm25")}))


def test_a_local_model_folder_becomes_absolute_and_a_hub_id_stays(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    path = tmp_path / "job.yaml"
    for written, expected in [("mine", str(tmp_path / "mine")), ("./later", str(tmp_path / "later")), ("a/b", "a/b")]:
        path.write_text(f"kind: closed_book\nlm: {{model: {written}}}\n")
        assert load_config(path).lm.model == expected


def test_params_of_a_plug_in_are_plain_data_and_dotted_paths_start_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(
        "kind: retrieval\nretriever:\n  kind: m:C\n  params: {a: ./x, b: [../y, z], c: {d: 1.5, e: null}}\n"
    )
    params = load_config(path).retriever.params
    assert params == {"a": str(tmp_path / "x"), "b": [str(tmp_path.parent / "y"), "z"], "c": {"d": 1.5, "e": None}}
    assert type(params["b"][1]) is str
    custom = {"kind": "retrieval", "retriever": {"kind": "m:C", "params": {"a": object()}}}
    assert "params hold plain data, got an object of type object" in refused(custom)
    custom["retriever"]["params"] = {"a": {1: 2}}  # type: ignore[index]
    assert "the keys of params are text" in refused(custom)
