"""Spans with a frozen encoder: where in a passage the answer to a question begins and ends.

As P-tuning v2 (arXiv 2110.07602) and BERT (1810.04805) do it: question and passage are one input, and every token of
the passage gets a logit of beginning and one of ending an answer. Our choices: only tokens of the passage count, in
training too; there is always an answer; the best span is the best pair of a beginning and an end at most `longest`
tokens later. A passage too long is cut, which is counted in `encoder.truncated`; to learn from an answer in the part
cut off is an error.
Shapes: B examples, n tokens of a passage.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from frozenlm.deltas.attach import Delta
from frozenlm.encoder import FrozenEncoder
from frozenlm.encoder_inputs import encoder_inputs, read_inputs
from frozenlm.encoder_tasks import BATCH, positions_taken, with_delta
from frozenlm.errors import ConfigError, ShapeError
from frozenlm.task_heads import SpanHead

LONGEST = 30  # tokens of an answer, as in BERT's own code


@dataclass(frozen=True)
class SpanQuestion:
    """A question, a passage, and where its answer stands there: passage[start:end]; None where it is to be found."""

    question: str
    passage: str
    start: int | None = None
    end: int | None = None


@dataclass(frozen=True)
class Span:
    """text: passage[start:end]; score: log-probability (nats) of the beginning plus that of the end."""

    text: str
    start: int
    end: int
    score: float


def span_logits(
    encoder: FrozenEncoder, head: SpanHead, delta: Delta | None, examples: Sequence[SpanQuestion]
) -> list[tuple[list[tuple[int, int]], Tensor]]:
    """For each example, the characters of the passage's tokens and their logits [n, 2]; differentiable.

    Raises:
        ShapeError: no example, a question that fills all the room, or a passage without a token.
        ConfigError: a tokenizer that cannot say which characters a token stands for.
    """
    pairs = [(example.question, example.passage) for example in examples]
    inputs = encoder_inputs(encoder, pairs, positions_taken=positions_taken(delta), cut="second")
    if empty := [example.passage for example, one in zip(examples, inputs, strict=True) if not one.second]:
        raise ShapeError(f"the passage {empty[0]!r} has no token, so nothing in it can be the answer")
    with with_delta(encoder, delta):
        hidden, _ = read_inputs(encoder, inputs)
    offsets = [encoder.codec.encode_with_offsets(example.passage)[1] for example in examples]
    return [
        (own[: len(one.second)], head(rows[one.second.start : one.second.stop]))
        for own, one, rows in zip(offsets, inputs, hidden, strict=True)
    ]


def span_loss(
    encoder: FrozenEncoder, head: SpanHead, delta: Delta | None, examples: Sequence[SpanQuestion]
) -> tuple[Tensor, int]:
    """The loss that `frozenlm.training.fit` takes: the sum over examples of the mean -log p (nats) of the answer's
    beginning and its end, and the number of examples.

    Raises:
        ShapeError: an example without an answer, or with one that has no token or is not in the part of the passage
            that is read.
    """
    losses = []
    for example, (offsets, logits) in zip(examples, span_logits(encoder, head, delta, examples), strict=True):
        first, last = _tokens_of(example, offsets)
        target = torch.tensor([first, last], device=logits.device)
        losses.append(functional.cross_entropy(logits.T, target))
    return torch.stack(losses).sum(), len(losses)


@torch.no_grad()
def predict_spans(
    encoder: FrozenEncoder,
    head: SpanHead,
    delta: Delta | None,
    examples: Sequence[SpanQuestion],
    *,
    longest: int = LONGEST,
    batch_size: int = BATCH,
) -> list[Span]:
    """The best span of each passage, of at most `longest` tokens.

    Raises:
        ConfigError: longest below 1.
        ShapeError: as `span_logits`.
    """
    if longest < 1:
        raise ConfigError(f"longest is {longest}; expected at least 1, the tokens of the longest answer")
    found = []
    for at in range(0, len(examples), batch_size):
        part = examples[at : at + batch_size]
        for example, (offsets, logits) in zip(part, span_logits(encoder, head, delta, part), strict=True):
            begins, ends = logits.log_softmax(dim=0).unbind(1)
            scores = begins.unsqueeze(1) + ends.unsqueeze(0)  # [n, n]
            allowed = torch.ones_like(scores, dtype=torch.bool).triu().tril(longest - 1)
            first, last = divmod(int(scores.masked_fill(~allowed, -torch.inf).argmax()), len(offsets))
            start, end = offsets[first][0], offsets[last][1]
            start += len(example.passage[start:end]) - len(example.passage[start:end].lstrip())
            found.append(Span(example.passage[start:end], start, end, float(scores[first, last])))
    return found


def _tokens_of(example: SpanQuestion, offsets: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The first and the last token of the answer."""
    start, end = example.start, example.end
    if start is None or end is None or not 0 <= start < end <= len(example.passage):
        raise ShapeError(f"the answer to {example.question!r} is passage[{start}:{end}]; expected characters of it")
    if example.passage[start:end].isspace():
        raise ShapeError(
            f"the answer to {example.question!r} is passage[{start}:{end}], {example.passage[start:end]!r}, which has "
            "no token; expected characters of a word"
        )
    inside = [number for number, (a, b) in enumerate(offsets) if a < end and b > start]
    if not inside or offsets[inside[-1]][1] < end:
        raise ShapeError(
            f"the answer to {example.question!r}, {example.passage[start:end]!r}, is not in the {len(offsets)} tokens "
            "of the passage that are read; cut passages around their answers"
        )
    return inside[0], inside[-1]
