"""States below the trained blocks: equal results, computed once, within the budget."""

from typing import Any

import pytest
import torch

from frozenlm.deltas.adapter import Adapter
from frozenlm.deltas.attach import attach, hooked
from frozenlm.deltas.lora import PeftDelta
from frozenlm.deltas.lower_states import LowerStates
from frozenlm.deltas.p_tuning_v2 import PTuningV2
from frozenlm.deltas.partial_layers import PartialLayers, last_stack
from frozenlm.deltas.random_subset import RandomSubset
from frozenlm.errors import ConfigError
from frozenlm.lm_tasks import Example, prompt_loss
from frozenlm.prompts.soft_prompt import SoftPrompt
from frozenlm.rows import Tokens
from tests.test_frozen import state_of
from tests.toys import toy_encoder, toy_lm

EXAMPLES = [Example.of(range(5, 10 + 4 * k), [40 + k, 41]) for k in range(4)]


def partial(host, **sizes) -> PartialLayers:
    delta = PartialLayers.create(host, **sizes)
    torch.nn.init.normal_(delta.offsets, std=0.02, generator=torch.Generator().manual_seed(0))
    return delta


def step(lm, delta, examples) -> tuple[torch.Tensor, torch.Tensor]:
    delta.offsets.grad = None
    with attach(lm, delta):
        loss = prompt_loss(lm, None, examples)[0]
        loss.backward()
    return loss.detach(), delta.offsets.grad


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", ["gpt2", "opt", "llama", "qwen2"])
def test_losses_and_gradients_are_equal_with_and_without(name: str, side: str) -> None:
    lm = toy_lm(name, padding_side=side)
    before, delta, plain = state_of(lm.model), partial(lm), partial(lm)
    states = delta.lower_states = LowerStates()
    # Other batches of the same rows, with other padding: the second knows one of its rows, the last two all of them.
    for batch, hits in ((EXAMPLES[:2], 0), (EXAMPLES[1:], 1), (EXAMPLES[1:3], 3), (EXAMPLES[::-1], 7)):
        for found, wanted in zip(step(lm, delta, batch), step(lm, plain, batch), strict=True):
            assert torch.allclose(found, wanted, atol=1e-4, rtol=1e-4)
        assert states.hits == hits
    assert states.nbytes == sum(e.length - 1 for e in EXAMPLES) * 32 * 4  # the last answer token is never read
    assert state_of(lm.model) == before
    lm.assert_unchanged()


def test_the_blocks_below_do_not_run() -> None:
    lm = toy_lm("llama", num_hidden_layers=4)
    delta, calls = partial(lm, blocks=2), []
    delta.lower_states = LowerStates()
    inner = [
        (block.mlp, lambda module, args, kwargs, output: calls.append(module)) for _, block in last_stack(lm.model)
    ]
    plain = step(lm, partial(lm, blocks=2), EXAMPLES)
    step(lm, delta, EXAMPLES)
    top = [module for module, _ in inner[2:]]
    with attach(lm, delta), hooked(inner[2:]):
        loss = prompt_loss(lm, None, EXAMPLES)[0]
    assert calls == top and delta.lower_states.hits == 4 and torch.allclose(loss, plain[0], atol=1e-4)


def test_an_encoder() -> None:
    encoder = toy_encoder("bert")
    delta, texts = partial(encoder), ["who was the king", "a dog", "what is blue"]
    with attach(encoder, delta):
        plain = encoder.vectors(texts)
    delta.keep_lower_states(encoder)
    for hits in (0, 3):
        with attach(encoder, delta):
            assert torch.allclose(encoder.vectors(texts), plain, atol=1e-5)
        assert delta.lower_states.hits == hits
    with attach(encoder, delta):
        assert torch.allclose(encoder.vectors(texts[1:2]), plain[1:2], atol=1e-5)
    assert delta.lower_states.hits == 4


def test_the_budget() -> None:
    lm = toy_lm("gpt2")
    delta = partial(lm)
    first = EXAMPLES[0].length - 1
    delta.lower_states = LowerStates(max_bytes=first * 32 * 4)
    for _ in range(2):
        step(lm, delta, EXAMPLES)
    assert delta.lower_states.nbytes == first * 32 * 4 and delta.lower_states.refused == 2 * 3
    assert delta.lower_states.hits == 1 and delta.lower_states.misses == 4 + 3
    step(lm, delta, EXAMPLES[:1])
    assert delta.lower_states.hits == 2


def test_memories_soft_prompts_and_generation_go_the_plain_way() -> None:
    lm = toy_lm("opt")
    delta, plain = partial(lm), partial(lm)
    delta.lower_states = LowerStates()
    rows = [[Tokens.of(example.context)] for example in EXAMPLES]
    with attach(lm, plain):
        wanted = [one.ids for one in lm.generate(rows, max_new_tokens=4)]
    with attach(lm, delta):
        assert [one.ids for one in lm.generate(rows, max_new_tokens=4)] == wanted
        assert delta.lower_states.nbytes == 0
        prompt = SoftPrompt.create(lm, 3, position="prefix")
        prompt_loss(lm, prompt, EXAMPLES)[0].backward()
    assert prompt.vectors.grad is not None and delta.lower_states.nbytes == 0


@pytest.mark.parametrize("name", ["gpt2", "opt", "llama"])
def test_the_same_bits_whatever_was_read_before(name: str) -> None:
    """What a run that was stopped and goes on, or one with a smaller budget, relies on."""
    lm, found = toy_lm(name), []
    for budget, before in ((2**30, []), (2**30, [EXAMPLES, EXAMPLES[2:]]), (2**30, [EXAMPLES[1:2]]), (1, [EXAMPLES])):
        delta = partial(lm)
        states = delta.keep_lower_states(lm, max_bytes=budget)
        for batch in before:
            step(lm, delta, batch)
        found.append(step(lm, delta, EXAMPLES))
        assert (states.nbytes == 0) == (budget == 1)
    assert all(torch.equal(loss, found[0][0]) and torch.equal(grad, found[0][1]) for loss, grad in found)


def test_autocast_has_states_of_its_own() -> None:
    lm = toy_lm("llama")
    delta, plain = partial(lm), partial(lm)
    states = delta.keep_lower_states(lm)
    exact = step(lm, delta, EXAMPLES)
    with torch.autocast("cpu", torch.bfloat16):
        wanted = step(lm, plain, EXAMPLES)
        assert torch.allclose(step(lm, delta, EXAMPLES)[0], wanted[0], rtol=0.01)
        assert (states.hits, states.misses) == (0, 8)
        assert torch.allclose(step(lm, delta, EXAMPLES)[0], wanted[0], rtol=0.01)
        assert (states.hits, states.misses) == (4, 8)
    assert all(torch.equal(*pair) for pair in zip(step(lm, delta, EXAMPLES), exact, strict=True))


@pytest.mark.parametrize(
    "other",
    [
        lambda lm: RandomSubset.create(lm, share=0.1),
        lambda lm: PeftDelta.create(lm, method="lora", r=2),
        lambda lm: Adapter.create(lm, width=2),
        lambda lm: PTuningV2.create(lm, 2),
    ],
)
def test_another_delta_below_is_refused(other: Any) -> None:
    lm = toy_lm("gpt2")
    delta, below = partial(lm), other(lm)
    delta.keep_lower_states(lm)
    before = state_of(lm.model)
    for order in ((delta, below), (below, delta)):
        with pytest.raises(ConfigError, match="another delta changes"), attach(lm, *order):
            prompt_loss(lm, None, EXAMPLES)
    assert state_of(lm.model) == before


def test_models_that_it_is_not_for() -> None:
    for host in (toy_lm("t5"), toy_lm("bart")):
        delta = partial(host)
        delta.lower_states = LowerStates()
        with pytest.raises(ConfigError, match="encoder-decoder"), attach(host, delta):
            pass
        with pytest.raises(ConfigError, match="encoder-decoder"):
            delta.keep_lower_states(host)
    encoder = toy_encoder("t5")
    before = state_of(encoder.model)
    with pytest.raises(ConfigError, match="more than hidden states"):
        partial(encoder).keep_lower_states(encoder)
    assert state_of(encoder.model) == before
    lm = toy_lm("gpt2")
    with pytest.raises(ConfigError, match="all 2 blocks are trained"):
        partial(lm, blocks=2).keep_lower_states(lm)
    with pytest.raises(ConfigError, match="max_bytes is 0"):
        LowerStates(0)
