"""What a frozen LM and the modules around it compute for one input, in FLOPs; `shapes.py` has the conventions.

The figures follow how this project runs an LM: the text is read once, the head is called only where a token is chosen
or scored, and every further token of an answer costs one pass over itself and attention to the keys and values that are
kept. A soft token costs what a text token costs.

ID-PT (arXiv 2204.10019, section 2) adds to that its frozen encoder over its own prompt and the text, its trained
cross-attention network, and its P soft tokens in the LM. The paper says +0.3% parameters and +1% inference time of a 7B
LM; `input_dependent` says what the FLOPs are.
"""

from dataclasses import dataclass

import torch

from frozenlm.prompts.input_dependent import InputDependentPrompt
from frozenlm.prompts.input_dependent_sizes import Sizes
from frozenlm.shapes import Crossing, Growth, ModelShape, count_flops, growth


@dataclass(frozen=True)
class OnePass:
    """FLOPs of reading a text, and of making an answer after it."""

    reading: int
    answering: int

    @property
    def total(self) -> int:
        """Both."""
        return self.reading + self.answering


def generate(lm: ModelShape, tokens: int, answer_tokens: int, *, beams: int = 1) -> OnePass:
    """Read a text and decode an answer token by token with kept keys and values.

    tokens: of the text, control and soft tokens included
    answer_tokens: at least 1; the last one is chosen and never read
    """
    heads = 1 + beams * (answer_tokens - 1)
    if lm.decoder is None or lm.crossing is None:
        steps = lm.body.one_by_one(answer_tokens - 1, before=tokens)
        return OnePass(lm.body.at(tokens), beams * steps + heads * lm.head)
    # The decoder reads its start token before there are several beams.
    opening = _steps(lm.decoder, lm.crossing, 1, tokens)
    further = _steps(lm.decoder, lm.crossing, answer_tokens, tokens) - opening
    return OnePass(lm.body.at(tokens), lm.crossing.memory * tokens + opening + beams * further + heads * lm.head)


def score(lm: ModelShape, tokens: int, answer_tokens: int) -> OnePass:
    """Read a text and score a given answer, all of its tokens at once."""
    heads = answer_tokens * lm.head
    if lm.decoder is None or lm.crossing is None:
        return OnePass(lm.body.at(tokens), lm.body.at(answer_tokens - 1, before=tokens) + heads)
    crossed = (lm.crossing.memory + lm.crossing.pair * answer_tokens) * tokens
    return OnePass(lm.body.at(tokens), lm.decoder.at(answer_tokens) + crossed + heads)


def soft_tokens(lm: ModelShape, tokens: int, answer_tokens: int, length: int, *, beams: int = 1) -> int:
    """What `length` more tokens, soft ones, cost in reading and answering."""
    longer = generate(lm, tokens + length, answer_tokens, beams=beams)
    return longer.total - generate(lm, tokens, answer_tokens, beams=beams).total


def encode(encoder: ModelShape, tokens: int, *, texts: int = 1) -> int:
    """An encoder, or a cross-encoder, over so many texts of so many tokens each."""
    return texts * encoder.body.at(tokens)


def prompt_writer(sizes: Sizes) -> Growth:
    """ID-PT's network as a function of the features that it reads, the encoder prompt's among them."""
    with torch.device("meta"):
        module = InputDependentPrompt(sizes).requires_grad_(False)

    def write(tokens: int) -> int:
        features = torch.zeros(1, tokens, sizes.encoder_size, device="meta")
        seen = torch.ones(1, tokens, dtype=torch.bool, device="meta")
        return count_flops(lambda: module.out(module.resampler(features, seen)))

    return growth(write)


@dataclass(frozen=True)
class WrittenPrompt:
    """FLOPs that a prompt written for each input adds to one pass of the LM."""

    encoder: int
    writer: int
    soft_tokens: int

    @property
    def total(self) -> int:
        """All three."""
        return self.encoder + self.writer + self.soft_tokens


def input_dependent(
    lm: ModelShape,
    encoder: ModelShape,
    sizes: Sizes,
    *,
    tokens: int,
    encoder_tokens: int,
    answer_tokens: int,
    beams: int = 1,
) -> WrittenPrompt:
    """ID-PT beside one pass of the LM over `tokens`, which are `encoder_tokens` to the encoder."""
    read = sizes.encoder_prompt + encoder_tokens
    added = soft_tokens(lm, tokens, answer_tokens, sizes.length, beams=beams)
    return WrittenPrompt(encode(encoder, read), prompt_writer(sizes).at(read), added)


def _steps(decoder: Growth, crossing: Crossing, steps: int, encoded: int) -> int:
    return decoder.one_by_one(steps) + crossing.pair * steps * encoded
