"""Deltas beside the rest: gradient checkpointing, memories, generation, all within `attach`."""

from typing import Any

import pytest
import torch
from torch.utils.checkpoint import CheckpointError

from frozenlm.deltas.adapter import Adapter
from frozenlm.deltas.attach import attach
from frozenlm.deltas.bitfit import BitFit
from frozenlm.deltas.lora import PeftDelta
from frozenlm.rows import Tokens
from tests.frozenlm.deltas.checks import ROWS, noisy
from tests.toys import toy_lm, toy_model, toy_tokenizer

DELTAS = {
    "houlsby": lambda lm: Adapter.create(lm, form="houlsby", width=4),
    "parallel": lambda lm: Adapter.create(lm, form="parallel", width=4),
    "bitfit": lambda lm: BitFit.create(lm, extra=True),
    "lora": lambda lm: PeftDelta.create(lm, r=3),
    "dora": lambda lm: PeftDelta.create(lm, method="dora", targets="all", r=3),
    "ia3": lambda lm: PeftDelta.create(lm, method="ia3"),
}
every_delta = pytest.mark.parametrize("name", DELTAS)
QUIET = {"t5": {"dropout_rate": 0.0}, "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}}


def quiet_lm(lm_name: str) -> Any:
    """An LM that computes in training mode what it computes in eval mode."""
    return type(toy_lm()).from_model(toy_model(lm_name, **QUIET.get(lm_name, {})), toy_tokenizer())


def loss(model: Any) -> torch.Tensor:
    more = {"decoder_input_ids": torch.tensor([[0, 20, 21]])} if model.config.is_encoder_decoder else {}
    return model(input_ids=torch.tensor([[5, 6, 7, 8, 9]]), use_cache=False, **more).logits.square().mean()


@every_delta
@pytest.mark.parametrize("lm_name", ["gpt2", "llama", "t5"])
def test_gradient_checkpointing(lm_name: str, name: str) -> None:
    """Layers that run again in the backward pass run through the delta again."""
    lm = quiet_lm(lm_name)
    delta = noisy(DELTAS[name](lm))
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            lm.model.activation_checkpointing_enable()
            lm.model.train()
        delta.zero_grad()
        with attach(lm, delta):
            loss(lm.model).backward()
        gradients.append([parameter.grad.clone() for parameter in delta.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("name", [name for name in DELTAS if name != "bitfit"])  # of which torch keeps no trace
def test_layers_that_run_again_without_the_delta_are_an_error(name: str) -> None:
    lm = quiet_lm("llama")
    delta = noisy(DELTAS[name](lm))
    lm.model.activation_checkpointing_enable()
    lm.model.train()
    with attach(lm, delta):
        value = loss(lm.model)
    with pytest.raises(CheckpointError, match="recomputation"):
        value.backward()


@every_delta
@pytest.mark.parametrize("lm_name", ["gpt2", "llama"])
def test_a_memory_read_inside_is_gone_on_from(lm_name: str, name: str) -> None:
    lm = toy_lm(lm_name)
    delta = noisy(DELTAS[name](lm))
    with attach(lm, delta):
        memory = lm.read(ROWS)
        whole = lm.score([[*row, Tokens((30, 31))] for row in ROWS], [[40, 41]] * len(ROWS))
        after = lm.score([[Tokens((30, 31))]] * len(ROWS), [[40, 41]] * len(ROWS), memory=memory)
    torch.testing.assert_close(torch.tensor(after), torch.tensor(whole), atol=1e-4, rtol=1e-5)


@every_delta
@pytest.mark.parametrize("lm_name", ["gpt2", "t5"])
def test_what_is_generated_scores_as_it_was_generated(lm_name: str, name: str) -> None:
    lm = toy_lm(lm_name)
    delta = noisy(DELTAS[name](lm))
    with attach(lm, delta):
        found = lm.generate(ROWS, max_new_tokens=4)
        scores = lm.score(ROWS, [one.ids for one in found])
        beams = lm.generate(ROWS, max_new_tokens=4, num_beams=2, length_penalty=0.0)
    torch.testing.assert_close(
        torch.tensor([sum(one.logprobs) for one in found]), torch.tensor(scores), atol=1e-4, rtol=0
    )
    assert len(beams) == len(ROWS) and not lm.is_changed
