"""FLOPs of answering, scoring and writing prompts, against sums by hand and runs step by step."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, T5Config

from frozenlm.architectures import meta_model
from frozenlm.cost import encode, generate, input_dependent, prompt_writer, score, soft_tokens
from frozenlm.prompts.input_dependent_sizes import PAPER, Sizes
from frozenlm.shapes import Crossing, Growth, ModelShape, count_flops, read
from tests.toys import toy_model

DECODER = ModelShape("toy", "decoder", 1000, 100, 8, 50, 96, Growth(0, 10, 1), head=7)
PAIR = ModelShape(
    "toy", "encoder-decoder", 1000, 100, 8, 50, None, Growth(0, 10, 1), Growth(0, 20, 2), Crossing(3, 5), head=7
)


def test_an_answer_is_counted_token_by_token() -> None:
    """The text once; of three answer tokens all are chosen by the head, and the last is never read."""
    found = generate(DECODER, 4, 3)
    assert found.reading == 10 * 4 + 1 * 4 * 4
    assert found.answering == 3 * 7 + (10 + 5) + (10 + 6)  # heads; a token that sees 5 keys, one that sees 6
    assert generate(DECODER, 4, 1).answering == 7
    assert found.total == found.reading + found.answering


def test_every_beam_takes_its_own_steps() -> None:
    assert generate(DECODER, 4, 3, beams=2).answering == 7 + 2 * (7 + 7) + 2 * (15 + 16)


def test_an_encoder_decoder_reads_a_start_token_and_crosses_to_the_text() -> None:
    found = generate(PAIR, 4, 2)
    assert found.reading == 10 * 4 + 4 * 4
    crossed = 3 * 4 + 2 * 5 * 4  # keys and values of the text, once; two decoder tokens look at four
    assert found.answering == crossed + (20 + 2 * 1) + (20 + 2 * 2) + 2 * 7
    assert generate(PAIR, 4, 2, beams=3).answering == 3 * 4 + (20 + 2 + 20) + 7 + 3 * ((20 + 4 + 20) + 7)


def test_scoring_reads_the_answer_at_once() -> None:
    assert score(DECODER, 4, 3).answering == (10 * 2 + 2 * 6) + 3 * 7  # the last token is only predicted
    assert score(PAIR, 4, 3).answering == (20 * 3 + 2 * 9) + (3 * 4 + 5 * 3 * 4) + 3 * 7


def test_soft_tokens_cost_what_text_costs() -> None:
    assert soft_tokens(DECODER, 4, 3, 2) == generate(DECODER, 6, 3).total - generate(DECODER, 4, 3).total
    assert soft_tokens(DECODER, 4, 1, 2) == 10 * 2 + (36 - 16)


def test_many_texts() -> None:
    assert encode(DECODER, 4, texts=5) == 5 * (40 + 16)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_equals_a_run_of_the_model_step_by_step(name: str) -> None:
    model = meta_model(toy_model(name).config, "lm", dtype=torch.float32)
    body, cache = model.base_model, DynamicCache()
    flops = count_flops(partial(read, body, 30, cache=cache))
    flops += sum(count_flops(partial(read, body, 1, cache=cache, before=30 + step)) for step in range(4))
    hidden = torch.zeros(5, 32, device="meta")
    flops += count_flops(lambda: model.get_output_embeddings()(hidden))
    assert generate(ModelShape.of_lm(model), 30, 5).total == flops


@pytest.mark.parametrize("mutual", [False, True])
def test_a_written_prompt_by_hand(mutual: bool) -> None:
    """P queries of width W over n features of width E: two blocks, then W -> H."""
    p, w, e, inner, h, n = 4, 8, 16, 12, 32, 10
    sizes = Sizes(
        hidden_size=h, encoder_size=e, length=p, width=w, depth=2, heads=2, feed_forward=inner, self_attention=mutual
    )
    cross = p * 2 * w * w + n * 2 * e * w + 2 * p * n * w
    looking = p * 4 * w * w + 2 * p * p * w if mutual else 0
    assert prompt_writer(sizes).at(n) == 2 * (2 * (cross + looking + p * 2 * w * inner) + p * w * h)


@pytest.fixture(scope="module")
def paper() -> tuple[ModelShape, ModelShape, Sizes]:
    """The shape of arXiv 2204.10019, section 2: T5-base's encoder half before a 7B decoder."""
    sizes: dict[str, Any] = {"d_model": 768, "num_layers": 12, "num_heads": 12, "d_kv": 64, "d_ff": 3072}
    encoder = ModelShape.of_encoder(meta_model(T5Config(vocab_size=32128, **sizes), "encoder"))
    lm = ModelShape.of_lm(meta_model(LlamaConfig(), "lm"))  # the defaults are LLaMA-7B's
    return lm, encoder, Sizes(hidden_size=4096, encoder_size=768, **PAPER)


def test_the_paper_s_shape_in_parameters(paper: tuple[ModelShape, ModelShape, Sizes]) -> None:
    """The paper says +0.3%: what is trained. With the frozen encoder, which must be held too, it is 2%."""
    lm, encoder, sizes = paper
    assert (lm.parameters, encoder.parameters) == (6_738_415_616, 109_628_544)
    assert 430 * 768 == 330_240 and sizes.parameters == pytest.approx(25.2e6, rel=0.01)
    assert 100 * sizes.parameters / lm.parameters == pytest.approx(0.37, abs=0.01)
    assert 100 * (sizes.parameters + encoder.parameters) / lm.parameters == pytest.approx(2.0, abs=0.01)


def test_the_paper_s_shape_in_flops(paper: tuple[ModelShape, ModelShape, Sizes]) -> None:
    """The paper says +1% of inference time. In FLOPs, at 512 tokens of input and 10 of answer, encoder and network are
    3% of the LM's pass; what dominates is that the LM reads P = 100 tokens more, as with any prompt of that length."""
    lm, encoder, sizes = paper
    alone = generate(lm, 512, 10)
    assert alone.reading == pytest.approx(2 * 6.476e9 * 512 + 4 * 512**2 * 4096 * 32, rel=1e-3)
    added = input_dependent(lm, encoder, sizes, tokens=512, encoder_tokens=512, answer_tokens=10)
    assert added.encoder == 2 * 84_934_656 * (430 + 512) + 4 * (430 + 512) ** 2 * 768 * 12
    assert 100 * added.encoder / alone.total == pytest.approx(2.8, abs=0.05)
    assert 100 * added.writer / alone.total == pytest.approx(0.17, abs=0.01)
    assert 100 * added.soft_tokens / alone.total == pytest.approx(19.7, abs=0.1)
    prompt_tuned = generate(lm, 612, 10).total
    assert 100 * (added.total - added.soft_tokens) / prompt_tuned == pytest.approx(2.5, abs=0.05)
