"""What recursion computes for one input, in FLOPs; conventions as in `frozenlm/shapes.py`. The paper (arXiv 2204.10019,
section 4): double the cost of one pass, paid only where needed.

Textual recursion reads what stands before the question once where its prompts stand behind it, so over passages it
costs less than two passes. Neural recursion runs every token through every pass and computes logits in the last.
"""

from dataclasses import dataclass

import torch

from frozenlm.cost import OnePass, generate
from frozenlm.recursion.blocks import Bridge
from frozenlm.recursion.sizes import ConnectorSizes
from frozenlm.shapes import Growth, ModelShape, count_flops, growth


@dataclass(frozen=True)
class NeuralCost:
    """FLOPs of all passes but the last, of the connectors between them, and of the last pass."""

    earlier: int
    connector: int
    last: int

    @property
    def total(self) -> int:
        """All three."""
        return self.earlier + self.connector + self.last


def connector_growth(state_size: int, hidden_size: int, sizes: ConnectorSizes) -> Growth:
    """One connector as a function of the tokens that go through it."""
    with torch.device("meta"):
        bridge = Bridge(state_size, hidden_size, sizes.filled(state_size)).requires_grad_(False)

    def run(tokens: int) -> int:
        states = torch.zeros(1, tokens, state_size, device="meta")
        allowed = torch.ones(1, 1, tokens, tokens, dtype=torch.bool, device="meta")
        return count_flops(lambda: bridge(states, allowed, None))

    return growth(run)


def neural(
    lm: ModelShape,
    sizes: ConnectorSizes,
    *,
    tokens: int,
    answer_tokens: int,
    soft_tokens: int = 0,
    beams: int = 1,
) -> NeuralCost:
    """Read a text and decode an answer through `sizes.passes` passes.

    tokens: of the text, control tokens included
    soft_tokens: of the prompt in the last pass
    """
    between = connector_growth(lm.head // (2 * lm.vocab_size), lm.hidden_size, sizes)
    crossings = sizes.passes - 1

    def through(part: Growth) -> int:
        return part.at(tokens) + beams * part.one_by_one(answer_tokens - 1, before=tokens)

    last = generate(lm, tokens + soft_tokens, answer_tokens, beams=beams).total
    return NeuralCost(crossings * through(lm.body), crossings * through(between), last)


def trained_row(
    lm: ModelShape, sizes: ConnectorSizes, *, tokens: int, answer_tokens: int, soft_tokens: int = 0, first_pass: bool
) -> int:
    """One row of a training step, forward and backward.

    tokens: of the text in front of the answer
    answer_tokens: that are predicted, all at once
    first_pass: whether pass 1 is run, and not read from a cache

    Back through a frozen LM costs as much as forth, back through a connector, which learns, twice as much.
    """
    between = connector_growth(lm.head // (2 * lm.vocab_size), lm.hidden_size, sizes)
    read, crossings = tokens + answer_tokens - 1, sizes.passes - 1
    later = (crossings - 1) * lm.body.at(read) + lm.body.at(read + soft_tokens) + answer_tokens * lm.head
    return first_pass * lm.body.at(read) + 2 * later + 3 * crossings * between.at(read)


@dataclass(frozen=True)
class TextualCost:
    """FLOPs of reading for and sampling the candidates, and of the second pass."""

    candidates: OnePass
    second: OnePass

    @property
    def total(self) -> int:
        """Both passes."""
        return self.candidates.total + self.second.total


def textual(
    lm: ModelShape, *, before: int, first: int, second: int, answer_tokens: int, n: int, shared: bool
) -> TextualCost:
    """Sample n candidates after one reading, then read them and answer.

    before: tokens that stand in front of the question in both passes: control tokens, passages
    first, second: tokens that each pass reads behind them: the question, with the candidates in the second; soft tokens
    shared: whether the second pass goes on from what the first has read
    """
    sampling = generate(lm, before + first, answer_tokens, beams=n)
    answer = generate(lm, before + second, answer_tokens)
    if shared:
        answer = OnePass(lm.body.at(second, before=before), answer.answering)
    return TextualCost(sampling, answer)
