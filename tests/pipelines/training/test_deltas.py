"""Every delta of a config, trained, saved, measured and served beside others, on a toy world."""

from pathlib import Path
from typing import Any

import pytest
import torch

from frozenlm.checkpoint import load_module
from pipelines.build_deltas import delta_class
from pipelines.config_deltas import DELTA_KINDS
from pipelines.errors import CheckpointError, ConfigError
from pipelines.evaluation.multitask import evaluate_multitask
from pipelines.pipeline import Pipeline
from pipelines.training import train
from tests.pipelines.toy_multitask import configured, make_world

BLOCKS: list[dict[str, Any]] = [
    {"kind": "lora", "rank": 2},
    {"kind": "dora", "rank": 2},
    {"kind": "rslora", "rank": 2},
    {"kind": "loha", "rank": 2},
    {"kind": "lokr", "rank": 2},
    {"kind": "vera", "rank": 4},
    {"kind": "ia3"},
    {"kind": "adapter", "width": 4},
    {"kind": "bitfit"},
    {"kind": "prefix_tuning", "length": 3, "middle_size": 8},
    {"kind": "p_tuning_v2", "length": 3, "init": "the cat"},
    {"kind": "diff_pruning", "share": 0.01},
    {"kind": "masking"},
    {"kind": "partial_layers"},
    {"kind": "random_subset", "share": 0.01},
    {"kind": "intrinsic_dimension", "dimension": 16},
    {"kind": "full_copy"},
]


def test_every_kind_of_delta_has_a_class_and_is_tried_here() -> None:
    assert set(DELTA_KINDS) == {block["kind"] for block in BLOCKS}
    assert all(isinstance(delta_class(kind), type) for kind in DELTA_KINDS)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block["kind"])
def test_a_delta_is_trained_measured_and_served(tmp_path: Path, block: dict[str, Any]) -> None:
    world = make_world(tmp_path, "opt")  # has biases, and dense layers that peft knows
    config = configured(world, prompt=None, delta=block | {"name": "d"})
    summary = train(config)
    assert summary["lm_weights_changed"] == 0 and summary["trained_parameters"] > 0 and summary["saved_bytes"] > 0
    with Pipeline.from_config(config) as pipeline:
        metrics = evaluate_multitask(pipeline, tmp_path / "out", progress=False)  # type: ignore[arg-type]
        assert metrics["lm_weights_changed"] == 0
        tuned, plain = pipeline("text the cat is red answer"), pipeline.answer(["the nile"], modules=[None])[0]
        both = pipeline.answer(["text the cat is red answer", "the nile"], modules=["d", None])
        assert [one.text for one in both] == [tuned.text, plain.text]
        assert both[0].score == pytest.approx(tuned.score, abs=1e-5) and tuned.module == "d"
        lm = pipeline.lm  # type: ignore[union-attr]
        delta = delta_class(block["kind"]).load(world / "work" / "modules" / "d", lm)
        assert sum(p.numel() for p in delta.parameters()) <= sum(p.numel() for p in lm.model.parameters())


def test_diff_pruning_is_two_runs(tmp_path: Path) -> None:
    config = configured(make_world(tmp_path), prompt=None, delta={"kind": "diff_pruning", "name": "d", "share": 0.01})
    summary = train(config)
    assert summary["steps"] == 4 + 2  # retrain is half of the steps
    tensors, _ = load_module(tmp_path / "work" / "modules" / "d", kind="diff_pruning")
    assert set(tensors) == {"values", "index"} and len(tensors["values"]) == summary["kept_parameters"]
    assert [entry["step"] for entry in summary["history"] if "score" in entry] == [2, 4, 6]
    again = train(config)
    assert again["saved_bytes"] == summary["saved_bytes"] > 0
    assert again["already_trained"] and torch.equal(
        load_module(tmp_path / "work" / "modules" / "d", kind="diff_pruning")[0]["values"], tensors["values"]
    )


@pytest.mark.parametrize("lm", ["opt", "llama", "t5"])
def test_prefixes_of_several_tasks_prompts_and_nothing_in_one_call(tmp_path: Path, lm: str) -> None:
    world = make_world(tmp_path, lm)
    blocks = [
        {"kind": "prefix_tuning", "name": "one", "length": 3, "middle_size": 8},
        {"kind": "p_tuning_v2", "name": "two", "length": 5},
        {"kind": "lora", "name": "three", "rank": 2},
    ]
    for block in blocks:
        train(configured(world, prompt=None, delta=block))
    config = configured(world, prompt=None, modules=blocks)
    texts, names = ["the cat is red", "the nile", "the dog is blue", "who is it"], ["one", "two", "three", None]
    with Pipeline.from_config(config) as pipeline:
        lm_of = pipeline.lm  # type: ignore[union-attr]
        calls, generate = [], lm_of.generate
        lm_of.generate = lambda rows, **more: calls.append(len(rows)) or generate(rows, **more)
        together = pipeline.answer(texts, modules=names)
        assert sorted(calls) == ([1, 3] if lm != "t5" else [1, 1, 1, 1])  # prefixes and nothing; the rest by itself
        for text, name, answer in zip(texts, names, together, strict=True):
            alone = pipeline.answer([text], modules=[name])[0]
            assert answer.text == alone.text and answer.score == pytest.approx(alone.score, abs=1e-4)
            lm_of.assert_unchanged()


CHANGES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"kind": "lora", "rank": 2}, {"rank": 4}, "with rank 2, the config asks for 4"),
    ({"kind": "lora", "rank": 2}, {"alpha": 1}, "with alpha 16.0, the config asks for 1.0"),
    ({"kind": "lora", "rank": 2}, {"targets": ["q_proj"]}, "with targets .*q_proj"),
    ({"kind": "lora", "rank": 2}, {"kind": "dora"}, "with kind 'lora', the config asks for 'dora'"),
    ({"kind": "vera", "rank": 4}, {"rank": 8}, "with rank 4"),
    ({"kind": "adapter", "width": 4}, {"width": 8}, "with width 4, the config asks for 8"),
    ({"kind": "adapter", "width": 4}, {"form": "parallel"}, "with form 'pfeiffer'"),
    ({"kind": "adapter", "width": 4, "scale": 2}, {"scale": None}, "with scale 2.0, the config asks for 1.0"),
    ({"kind": "bitfit"}, {"norms": False}, "with norms True"),
    ({"kind": "prefix_tuning", "length": 3, "middle_size": 8}, {"length": 5}, "with length 3, the config asks for 5"),
    ({"kind": "p_tuning_v2", "length": 3}, {"position_offset": False}, "with position_offset True"),
    ({"kind": "diff_pruning", "share": 0.01}, {"share": 0.02}, "with share 0.01"),
    ({"kind": "masking"}, {"targets": "attention"}, "with targets 'all'"),
    ({"kind": "masking"}, {"masked": 0.1}, "with masked 0.05, the config asks for 0.1"),
    ({"kind": "partial_layers"}, {"blocks": 2}, "with blocks 1"),
    ({"kind": "random_subset", "share": 0.01}, {"share": 0.02}, "with share 0.01"),
    ({"kind": "intrinsic_dimension", "dimension": 16}, {"dimension": 20}, "with dimension 16, the config asks for 20"),
    ({"kind": "intrinsic_dimension", "dimension": 16}, {"projection": "dense"}, "with projection 'fastfood'"),
]


@pytest.mark.parametrize(("block", "change", "words"), CHANGES)
def test_what_was_trained_with_other_settings_is_never_used(
    tmp_path: Path, block: dict[str, Any], change: dict[str, Any], words: str
) -> None:
    world = make_world(tmp_path, "opt")
    train(configured(world, prompt=None, delta=block | {"name": "d"}))
    other = configured(world, prompt=None, delta=block | {"name": "d"} | change)
    with Pipeline.from_config(other) as pipeline, pytest.raises(CheckpointError, match=words):
        pipeline("text the cat is red answer")
    with pytest.raises(ConfigError, match="holds a run with other settings"):
        train(other)
    train(other, restart=True)
    with Pipeline.from_config(other) as pipeline:
        assert pipeline("text the cat is red answer").module == "d"
