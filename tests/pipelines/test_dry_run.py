"""`frozenlm train --dry-run`: the parts of a plan, and that nothing is loaded to make one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from transformers import BertConfig

from frozenlm import cost as flops
from frozenlm.architectures import meta_model
from frozenlm.shapes import ModelShape
from pipelines.cost import Assumed
from pipelines.dry_run import describe, plan_table
from pipelines.errors import ConfigError
from pipelines.loader import load_config
from tests.toys import toy_model

H = 32
SMALL = Assumed(question_tokens=8, passage_tokens=20)
TRAINING = {"questions": [{"path": "not/there.jsonl"}], "steps": 10, "batch_size": 8, "warmup_steps": 0}
BERT = {"hidden_size": H, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 99}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    toy_model("llama").config.save_pretrained(folder / "llama")
    BertConfig(**BERT).save_pretrained(folder / "bert")
    return folder


def closed_book(world: Path, **changes: Any) -> Any:
    block: dict[str, Any] = {
        "kind": "closed_book",
        "lm": {"model": str(world / "llama"), "dtype": "bfloat16"},
        "prompt": {"length": 5, "name": "mine"},
        "packing": {"answer_reserve": 6},
        "generation": {"max_new_tokens": 6},
        "training": TRAINING,
    }
    return load_config({**block, **changes})


def test_a_soft_prompt(world: Path) -> None:
    plan = describe(closed_book(world), SMALL)
    lm = ModelShape.of_lm(meta_model(toy_model("llama").config, "lm"))
    memory = plan["memory"]
    assert (plan["module"], plan["trained_parameters"], plan["lm_parameters"]) == ("mine", 5 * H, lm.parameters)
    assert (memory["frozen"], plan["dtype"]) == (2 * lm.parameters, "bfloat16")
    assert (memory["trained"], memory["gradients"], memory["optimizer"]) == (4 * 5 * H, 4 * 5 * H, 8 * 5 * H)
    assert memory["total"] == sum(size for name, size in memory.items() if name != "total")
    read, whole = lm.body.at(8), flops.score(lm, 8 + 5, 6).total
    assert plan["flops_per_step"] == 8 * (read + 2 * (whole - read))  # the text once; prompt and answer forth and back
    assert plan["flops"] == 10 * plan["flops_per_step"]


def test_a_micro_batch_and_adafactor_hold_less(world: Path) -> None:
    whole = describe(closed_book(world), SMALL)
    changes = {"gradient_accumulation": 4, "optimizer": "adafactor"}
    parts = describe(closed_book(world, training=TRAINING | changes), SMALL)
    assert (whole["rows_at_once"], parts["rows_at_once"]) == (8, 2)
    assert 4 * parts["memory"]["activations"] == whole["memory"]["activations"]
    assert parts["memory"]["optimizer"] == 4 * (5 + H)
    assert parts["flops_per_step"] == whole["flops_per_step"]


def test_a_re_ranker(world: Path) -> None:
    block = {"kind": "cross_encoder", "model": str(world / "bert"), "checkpoint": "ranker"}
    job = {"kind": "reranker", "retriever": {"kind": "bm25"}, "corpus": {"path": "not/there.jsonl"}, "reranker": block}
    plan = describe(load_config({**job, "training": TRAINING | {"negatives": 3, "gradient_accumulation": 8}}), SMALL)
    shape = ModelShape.of_encoder(meta_model(BertConfig(**BERT), "cross_encoder"))
    assert (plan["module"], plan["trained_parameters"]) == ("ranker", shape.parameters)
    assert (plan["lm_parameters"], plan["rows_at_once"]) == (None, 1 + 3)
    assert plan["memory"]["optimizer"] == 8 * shape.parameters
    assert plan["flops_per_step"] == 8 * (1 + 3) * 3 * shape.body.at(8 + 20 + 3)
    ready = {**job, "reranker": block | {"checkpoint": None}, "training": TRAINING}
    with pytest.raises(ConfigError, match="with a checkpoint"):
        describe(load_config(ready))


def test_nothing_to_train(world: Path) -> None:
    with pytest.raises(ConfigError, match="no training block"):
        describe(closed_book(world, training=None))
    with pytest.raises(ConfigError, match="needs both a prompt and a training block"):
        describe(closed_book(world, prompt=None))


def test_for_the_eye_and_for_programs(world: Path) -> None:
    plan = describe(closed_book(world), SMALL)
    assert json.loads(json.dumps(plan)) == plan
    console = Console(width=120)
    with console.capture() as shown:
        console.print(plan_table(plan))
    text = " ".join(shown.get().split())
    assert "would train: mine" in text and "memory: activations" in text and "(estimate)" in text
