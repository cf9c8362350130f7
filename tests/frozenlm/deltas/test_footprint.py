"""What a step with a delta keeps and computes, told without weights: against what autograd saves, and by hand."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from frozenlm.architectures import meta_model
from frozenlm.deltas.adapter import Adapter
from frozenlm.deltas.attach import attach
from frozenlm.deltas.bitfit import BitFit
from frozenlm.deltas.diff_pruning import DiffPruning
from frozenlm.deltas.footprint import kept_bytes, read_and_answer, read_and_label, step_flops
from frozenlm.deltas.full_copy import FullCopy
from frozenlm.deltas.intrinsic_dimension import IntrinsicDimension
from frozenlm.deltas.lora import PeftDelta
from frozenlm.deltas.masking import Masking
from frozenlm.deltas.outline import META, Subset, outlined
from frozenlm.deltas.p_tuning_v2 import PTuningV2
from frozenlm.deltas.partial_layers import PartialLayers
from frozenlm.deltas.prefix_tuning import PrefixTuning
from frozenlm.deltas.random_subset import RandomSubset
from frozenlm.encoder_tasks import LabelledText, classification_loss
from frozenlm.lm_tasks import Example, prompt_loss
from frozenlm.saved_bytes import saved_bytes
from frozenlm.shapes import count_flops
from frozenlm.task_heads import ClassificationHead
from tests.toys import toy_encoder, toy_lm, toy_model

ROWS, TOKENS, ANSWER = 3, 40, 4
SIZES = {"rows": ROWS, "tokens": TOKENS, "answer_tokens": ANSWER}
METHODS: dict[str, tuple[Any, dict[str, Any]]] = {
    "lora": (PeftDelta, {"method": "lora", "r": 2}),
    "dora": (PeftDelta, {"method": "dora", "r": 2}),
    "loha": (PeftDelta, {"method": "loha", "r": 2}),
    "lokr": (PeftDelta, {"method": "lokr", "r": 2}),
    "vera": (PeftDelta, {"method": "vera", "r": 4}),
    "ia3": (PeftDelta, {"method": "ia3"}),
    "adapter": (Adapter, {"width": 4}),
    "bitfit": (BitFit, {}),
    "prefix_tuning": (PrefixTuning, {"length": 3, "middle_size": 8}),
    "p_tuning_v2": (PTuningV2, {"length": 3}),
    "diff_pruning": (DiffPruning, {"share": 0.01}),
    "masking": (Masking, {}),
    "partial_layers": (PartialLayers, {}),
    "random_subset": (RandomSubset, {"share": 0.01, "targets": "all"}),
    "intrinsic_dimension": (
        IntrinsicDimension,
        {"dimension": 16, "scales": "layer", "projection": "fastfood", "targets": "model"},
    ),
    "full_copy": (FullCopy, {}),
}
SOME = ("lora", "prefix_tuning", "masking", "partial_layers", "full_copy")


def check_kept(name: str, method: str) -> None:
    """Within 10% of what autograd saves, and three float32 copies of the logits [B, A, V] that it does not."""
    lm, (made, sizes) = toy_lm(name), METHODS[method]
    real = made.create(lm, **sizes)
    examples = [Example.of([5 + (i + row) % 20 for i in range(TOKENS)], [6, 7, 8, 9]) for row in range(ROWS)]
    with saved_bytes(lm.model, real) as saved, attach(lm, real):
        loss, units = prompt_loss(lm, None, examples)
        if hasattr(real, "penalty"):
            loss = loss + units * real.penalty()
    config = lm.model.config
    delta = outlined(made, meta_model(config, "lm", dtype=torch.float32), sizes)
    assert sum(p.numel() for p in delta.parameters()) == sum(p.numel() for p in real.parameters())
    kept = kept_bytes(config, "lm", partial(read_and_answer, **SIZES), dtype=torch.float32, delta=delta)
    assert kept == pytest.approx(saved.total + 3 * 4 * ROWS * ANSWER * lm.vocab_size, rel=0.1)


@pytest.mark.parametrize("method", SOME)
def test_the_estimate_is_near_what_autograd_saves(method: str) -> None:
    check_kept("opt", method)


@pytest.mark.slow
@pytest.mark.parametrize("method", [method for method in METHODS if method not in SOME])
def test_the_estimate_of_every_other_method(method: str) -> None:
    check_kept("opt", method)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "p_tuning_v2", "full_copy"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "bart"])
def test_the_estimate_on_other_architectures(name: str, method: str) -> None:
    check_kept(name, method)


@pytest.mark.parametrize("made", [None, BitFit], ids=["head", "bitfit"])
def test_an_encoder_and_its_head(made: Any) -> None:
    encoder, labels = toy_encoder("bert"), ("red", "blue")
    head, delta = ClassificationHead.create(encoder, labels), None if made is None else made.create(encoder)
    texts = [LabelledText("the cat sat on the mat in paris", label="red") for _ in range(ROWS)]
    tokens = len(encoder.tokens([texts[0].text])[0])
    with saved_bytes(encoder.model, head, *([] if delta is None else [delta])) as saved:
        classification_loss(encoder, head, delta, texts)
    config = encoder.model.config
    with META:
        empty = ClassificationHead(labels, 24)
    outline = None if made is None else outlined(made, meta_model(config, "encoder"), {})
    run = partial(read_and_label, rows=ROWS, tokens=tokens, head=empty)
    kept = kept_bytes(config, "encoder", run, dtype=torch.float32, delta=outline, head=empty)
    assert kept == pytest.approx(saved.total, rel=0.15 if made is not None else 0.3)  # a head keeps next to nothing


def test_flops_forth_and_back() -> None:
    """Forth 1; back 1 for the states and 1 for each dense layer's weights that are trained."""
    meta = meta_model(toy_model("opt").config, "lm")
    run: Any = partial(read_and_answer, **SIZES)
    once = count_flops(lambda: run(meta))

    def passes(delta: Any) -> float:
        return step_flops(meta, run, delta=delta) / once

    assert passes(outlined(FullCopy, meta, {})) == 3
    copied = outlined(FullCopy, meta, {})
    assert passes(Subset(copied.flat, copied.flat.total)) == 3
    assert passes(outlined(PartialLayers, meta, {"blocks": 2})) == pytest.approx(3, abs=0.25)
    assert passes(outlined(PartialLayers, meta, {"blocks": 1})) == pytest.approx(2, abs=0.1)
    assert 2 < passes(outlined(PeftDelta, meta, {"method": "lora", "r": 2})) < 2.3


def test_a_head_alone_costs_one_pass_and_its_own_matrix() -> None:
    meta = meta_model(toy_encoder("bert").model.config, "encoder")
    with META:
        head: nn.Module = ClassificationHead(("red", "blue"), 24)
    run: Any = partial(read_and_label, rows=ROWS, tokens=8, head=head)
    once = count_flops(lambda: run(meta))
    assert step_flops(meta, run, delta=None) - once == 2 * ROWS * 24 * 2  # the gradient of [24, 2]
