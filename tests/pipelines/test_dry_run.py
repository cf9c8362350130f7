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
from pipelines.cli import main
from pipelines.cost_types import Assumed
from pipelines.cost_words import short
from pipelines.dry_run import describe, plan_table
from pipelines.errors import ConfigError
from pipelines.loader import load_config
from pipelines.training import pretrain, train
from tests.pipelines.toy_recursion import configured, make_world, settings, written
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


def test_both_prompts_of_textual_recursion(tmp_path: Path) -> None:
    made = make_world(tmp_path, "llama")
    plan = describe(configured(made, "textual_recursion"), SMALL)
    first, second = plan["stages"]
    assert (plan["module"], plan["trained_parameters"]) == ("p, s", (3 + 2) * H)
    assert (first["module"], first["runs"], first["trained_parameters"]) == ("p", 1 + 2, 3 * H)  # two folds, and all
    assert (second["module"], second["runs"], second["trained_parameters"]) == ("s", 1, 2 * H)
    assert (first["assumptions"]["input_tokens"], second["assumptions"]["input_tokens"]) == (8, 8 + 4 * 6)
    once = {key: settings(made, "textual_recursion")[key] for key in ("workspace", "lm", "prompt", "packing")}
    once |= {"kind": "closed_book", "training": settings(made, "neural_recursion")["training"]}
    alone = describe(load_config(once), SMALL)
    assert first["memory"] == alone["memory"] and first["flops"] == 3 * alone["flops"]
    assert plan["memory"] == max(first["memory"], second["memory"], key=lambda held: held["total"])
    assert plan["flops"] == first["flops"] + second["flops"]
    assert any("sampling candidates" in line for line in plan["not_counted"])
    own = {"prompt": {"name": "s", "length": 2}, "training": {"steps": 7, "batch_size": 1}}
    one = describe(configured(made, "textual_recursion", second_pass=own, prompt=None), SMALL)
    assert (one["module"], one["steps"], one["batch_size"]) == ("s", 7, 1)
    with pytest.raises(ConfigError, match="at least one prompt"):
        describe(configured(made, "textual_recursion", prompt=None, second_pass={"prompt": None}), SMALL)


@pytest.mark.parametrize("passes", [2, 3])
def test_both_stages_of_neural_recursion_are_those_of_the_real_modules(tmp_path: Path, passes: int) -> None:
    made, sizes = make_world(tmp_path, "llama"), {"width": 8, "heads": 2, "feed_forward": 8}
    config = configured(made, "neural_recursion", connector=sizes | {"passes": passes, "shared": False})
    plan, before = describe(config, SMALL), describe(config, SMALL, pretrain=True)
    found, pretrained = train_both(config)
    assert (plan["module"], before["module"]) == ("connector, p", "connector_pretrained")
    assert plan["trained_parameters"] == found["trained_parameters"]
    assert before["trained_parameters"] == pretrained["trained_parameters"] == found["trained_parameters"] - 3 * H
    assert plan["memory"]["optimizer"] == 2 * plan["memory"]["trained"] == 8 * found["trained_parameters"]
    assert before["assumptions"] == {
        "input_tokens": 1,
        "answer_tokens": 8,
        "passes": passes,
        "first_pass_kept": True,
    }  # of blocks of 8 tokens the first is read, and the rest and one more predicted
    lm = ModelShape.of_lm(meta_model(toy_model("llama").config, "lm"))
    assert any(f"{short(lm.body.at(8))} FLOPs" in line for line in before["not_counted"])
    anew = describe(configured(made, "neural_recursion", connector=config.connector, first_pass_cache={"kind": "off"}))
    kept = describe(configured(made, "neural_recursion", connector=config.connector))
    assert anew["flops"] > kept["flops"] and not anew["not_counted"]


def train_both(config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    pretrained = pretrain(config)
    return train(config), pretrained


def test_what_has_no_plan(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to pretrain"):
        describe(closed_book(world), pretrain=True)
    made = make_world(tmp_path)
    with pytest.raises(ConfigError, match="no pretraining block"):
        describe(configured(made, "neural_recursion", pretraining=None), pretrain=True)
    toy_model("t5").config.save_pretrained(tmp_path / "t5")
    other: Any = {"lm": {"model": str(tmp_path / "t5")}, "packing": {"max_tokens": 64}}
    for stage in (False, True):
        with pytest.raises(ConfigError, match="decoder-only"):
            describe(configured(made, "neural_recursion", **other), pretrain=stage)


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = make_world(tmp_path)
    neural = str(written(made, "neural_recursion"))
    for command in ("train", "pretrain"):
        assert main([command, neural, "--dry-run", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["kind"] == "neural_recursion"
    assert main(["train", str(written(made, "textual_recursion")), "--dry-run"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "would train: p, s" in shown and "p: steps x batch" in shown and "3 runs" in shown
    assert not (made / "work").exists()


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
