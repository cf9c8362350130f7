"""What a training step holds: counted parts by hand, the estimate against what autograd really saves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from frozenlm.architectures import meta_model
from frozenlm.errors import ConfigError
from frozenlm.footprint import encoder_activations, prompt_activations, step_bytes, weight_bytes
from frozenlm.lm import FrozenLM
from frozenlm.lm_tasks import Example, prompt_loss, reads_context_once
from frozenlm.prompts.soft_prompt import SoftPrompt
from frozenlm.rows import Tokens
from tests.toys import toy_encoder_model, toy_lm, toy_model


def test_what_is_counted() -> None:
    held = step_bytes(frozen=1000, trained=[(10, 32), (5,)], optimizer="adamw", activations=7)
    assert (held.trained, held.gradients, held.optimizer) == (4 * 325, 4 * 325, 8 * 325)
    assert held.total == 1000 + 16 * 325 + 7
    small = step_bytes(frozen=0, trained=[(10, 32), (5,)], optimizer="adafactor", activations=0)
    assert small.optimizer == 4 * (10 + 32 + 5)  # a row's mean, a column's mean; a vector whole
    with pytest.raises(ConfigError, match="optimizer is 'sgd'"):
        step_bytes(frozen=0, trained=[(1,)], optimizer="sgd", activations=0)


def test_weights_in_their_own_dtype_tied_ones_once() -> None:
    real = toy_model("gpt2")
    numbers = sum(parameter.numel() for parameter in real.parameters())
    assert weight_bytes(meta_model(real.config, "lm", dtype=torch.float32)) == 4 * numbers
    assert weight_bytes(meta_model(real.config, "lm", dtype=torch.bfloat16)) == 2 * numbers


def really_kept(lm: FrozenLM, prompt: SoftPrompt, example: Example) -> int:
    """Bytes that a real forward pass saves, the LM's own left out; with its memory, and three copies of the logits."""
    own = {t.untyped_storage().data_ptr() for t in (*lm.model.parameters(), *lm.model.buffers())}
    kept: dict[int, int] = {}
    alive: list[Any] = []

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        prompt_loss(lm, prompt, [example])
    saved = sum(size for address, size in kept.items() if address not in own)
    memory = lm.read([[Tokens.of(example.context)]]).nbytes if reads_context_once(lm, prompt) else 0
    return saved + memory + 3 * 4 * len(example.answer) * lm.vocab_size


@pytest.mark.parametrize("position", ["prefix", "suffix"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_the_estimate_is_near_what_autograd_saves(name: str, position: Any) -> None:
    lm = toy_lm(name)
    prompt = SoftPrompt.create(lm, 5, position=position)
    example = Example.of([5 + i % 20 for i in range(70)], [6, 7, 8, 9])
    estimate = prompt_activations(
        lm.model.config,
        dtype=torch.float32,
        tokens=70,
        answer_tokens=4,
        length=5,
        remembered=reads_context_once(lm, prompt),
    )
    assert estimate == pytest.approx(really_kept(lm, prompt, example), rel=0.25)


def test_a_context_that_is_read_once_keeps_less() -> None:
    config = toy_model("llama").config
    sizes: dict[str, Any] = {"dtype": torch.float32, "tokens": 80, "answer_tokens": 4, "length": 5}
    assert 2 * prompt_activations(config, remembered=True, **sizes) < prompt_activations(
        config, remembered=False, **sizes
    )


def test_an_encoder_that_is_trained_keeps_more_for_more_tokens() -> None:
    config = toy_encoder_model("bert").config
    short, long = (encoder_activations(config, dtype=torch.float32, tokens=tokens) for tokens in (10, 40))
    assert 3.5 * short < long < 6 * short
