"""The prompt's loss: worth and gradient compared with the plain forward pass over the whole row."""

import pytest
import torch
from torch.nn import functional

from frozenlm.context_cache import ContextCache
from frozenlm.errors import ConfigError, ShapeError
from frozenlm.lm import FrozenLM
from frozenlm.lm_tasks import Example, mean_loss, prompt_loss
from frozenlm.prompts.soft_prompt import SoftPrompt
from frozenlm.rows import Tokens
from tests.toys import WINDOW, toy_lm

EXAMPLES = [
    Example.of([5, 6, 7, 8, 9, 10, 11], [40, 41]),
    Example.of([12, 13], [42]),
    Example.of([20, 21, 22, 23], [43, 44, 45]),
]


def prompt_at(position: str, length: int = 3) -> SoftPrompt:
    vectors = torch.randn(length, 32, generator=torch.Generator().manual_seed(2)) * 0.5
    return SoftPrompt(vectors, position=position)  # type: ignore[arg-type]


def by_hand(lm: FrozenLM, prompt: SoftPrompt, example: Example) -> torch.Tensor:
    """Sum of -log p(answer), from transformers alone: one unpadded row, all of it in one forward pass."""
    context, answer = (torch.tensor(ids) for ids in (example.context, example.answer))
    text = lm.embed(context)
    parts = [prompt(), text] if prompt.position == "prefix" else [text, prompt()]
    if lm.kind == "decoder":
        row = torch.cat([*parts, lm.embed(answer)])[None]
        logits = lm.model(inputs_embeds=row).logits[0, -len(answer) - 1 : -1]
    else:
        decoder_ids = torch.tensor([[*lm.start_ids, *example.answer[:-1]]])
        logits = lm.model(inputs_embeds=torch.cat(parts)[None], decoder_input_ids=decoder_ids).logits[0]
        logits = logits[-len(answer) :]
    return functional.cross_entropy(logits, answer, reduction="sum")


@pytest.mark.parametrize("position", ["prefix", "suffix"])
@pytest.mark.parametrize("name", ["gpt2", "opt", "llama", "qwen2", "t5", "bart"])
def test_loss_and_gradient_equal_the_plain_forward(name: str, position: str) -> None:
    """The suffix form of a decoder goes through a memory read without gradient; its gradient must lose nothing."""
    lm, prompt = toy_lm(name), prompt_at(position)
    value, count = prompt_loss(lm, prompt, EXAMPLES)
    value.backward()
    got = prompt.vectors.grad
    prompt.vectors.grad = None
    plain = torch.stack([by_hand(lm, prompt, example) for example in EXAMPLES]).sum()
    plain.backward()
    assert count == 2 + 1 + 3
    torch.testing.assert_close(value, plain, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got, prompt.vectors.grad, rtol=1e-4, atol=1e-5)


def test_a_long_answer_weighs_as_much_as_a_short_one() -> None:
    lm, prompt = toy_lm("gpt2"), prompt_at("suffix")
    each = [by_hand(lm, prompt, example).item() / len(example.answer) for example in EXAMPLES]
    value, units = prompt_loss(lm, prompt, EXAMPLES, unit="example")
    assert units == 3
    assert float(value.detach()) == pytest.approx(sum(each), abs=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_side_does_not_matter(side: str) -> None:
    lm, prompt = toy_lm("llama", padding_side=side), prompt_at("suffix")
    plain = sum(float(by_hand(lm, prompt, example).detach()) for example in EXAMPLES)
    assert float(prompt_loss(lm, prompt, EXAMPLES)[0].detach()) == pytest.approx(plain, abs=1e-4)


def test_bfloat16_lm_trains_a_float32_prompt() -> None:
    from tests.toys import toy_model, toy_tokenizer

    lm = FrozenLM.from_model(toy_model("gpt2"), toy_tokenizer(), dtype="bfloat16")
    prompt = prompt_at("suffix")
    cache = ContextCache(lm)
    value, _ = prompt_loss(lm, prompt, EXAMPLES, cache)
    value.backward()
    assert value.dtype == torch.float32 and prompt.vectors.grad is not None
    assert bool(prompt.vectors.grad.abs().sum() > 0)


def test_autocast_reads_contexts_in_the_lm_dtype() -> None:
    """A memory that was read under autocast must serve a step without it, and the other way round."""
    lm, prompt = toy_lm("gpt2"), prompt_at("suffix")
    cache = ContextCache(lm)
    with torch.autocast("cpu", torch.bfloat16):
        rough, _ = prompt_loss(lm, prompt, EXAMPLES, cache)
        rough.backward()
    exact, _ = prompt_loss(lm, prompt, EXAMPLES, cache)
    assert cache.counts.read == 3 and cache.counts.found == 3
    plain = sum(float(by_hand(lm, prompt, example).detach()) for example in EXAMPLES)
    assert float(exact.detach()) == pytest.approx(plain, abs=1e-4)
    assert float(rough.detach()) == pytest.approx(plain, rel=0.05)


def test_step_over_a_memory_runs_only_prompt_and_answer() -> None:
    lm, prompt = toy_lm("gpt2"), prompt_at("suffix")
    cache = ContextCache(lm)
    prompt_loss(lm, prompt, EXAMPLES, cache)
    widths = []
    hook = lm.model.transformer.h[0].register_forward_hook(lambda block, args, out: widths.append(args[0].shape[1]))
    prompt_loss(lm, prompt, EXAMPLES, cache)
    hook.remove()
    assert widths == [3 + 3 - 1]  # P + the longest answer, whose last token is never read


def test_without_a_prompt_it_measures_the_lm() -> None:
    lm = toy_lm()
    value, count = prompt_loss(lm, None, EXAMPLES)
    scores = lm.score([[Tokens.of(e.context)] for e in EXAMPLES], [list(e.answer) for e in EXAMPLES])
    assert float(value) == pytest.approx(-sum(scores), abs=1e-4)
    assert mean_loss(lm, None, EXAMPLES, batch_size=2) == pytest.approx(float(value) / count, abs=1e-5)


def test_example_needs_an_answer() -> None:
    with pytest.raises(ShapeError, match="empty answer"):
        Example.of([5], [])


def test_mean_loss_needs_an_example() -> None:
    with pytest.raises(ConfigError, match="no example"):
        mean_loss(toy_lm(), None, [])


@pytest.mark.parametrize("position", ["prefix", "suffix"])
def test_example_past_the_window(position: str) -> None:
    example = Example.of([5] * (WINDOW - 3), [6])  # with three soft tokens exactly the window: the answer is not read
    assert prompt_loss(toy_lm(), prompt_at(position), [example])[1] == 1
    with pytest.raises(ShapeError, match=str(WINDOW)):
        prompt_loss(toy_lm(), prompt_at(position), [Example.of([5] * (WINDOW - 2), [6])])


def test_cache_of_another_lm_is_refused() -> None:
    with pytest.raises(ConfigError, match="another FrozenLM"):
        prompt_loss(toy_lm(seed=1), prompt_at("suffix"), EXAMPLES, ContextCache(toy_lm()))
