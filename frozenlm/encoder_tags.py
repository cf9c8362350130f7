"""Tagging with a frozen encoder: a label for each word, from the hidden state of its first piece.

As P-tuning v2 (arXiv 2110.07602) and BERT (1810.04805) do it. The words are joined by single spaces and read as any
other text, so that the tokenizer cuts them as it was trained to. A word that was cut off with a text too long has no
tag (it is counted in `encoder.truncated`), and so has one that leaves no token.
Shapes: B texts, T columns, C labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from frozenlm.deltas.attach import Delta
from frozenlm.encoder import FrozenEncoder
from frozenlm.encoder_inputs import EncoderInput, encoder_inputs, read_inputs
from frozenlm.encoder_tasks import BATCH, positions_taken, with_delta
from frozenlm.errors import ShapeError
from frozenlm.task_heads import TaggingHead, label_numbers


@dataclass(frozen=True)
class TaggedWords:
    """The words of a text and their labels, () where they are to be found.

    Raises: ShapeError without a word, or with another number of labels than words.
    """

    words: tuple[str, ...]
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.words or len(self.labels) not in (0, len(self.words)):
            raise ShapeError(f"{len(self.words)} words with {len(self.labels)} labels; expected as many, at least one")

    @property
    def text(self) -> str:
        """The words joined by spaces."""
        return " ".join(self.words)


def tagging_logits(
    encoder: FrozenEncoder, head: TaggingHead, delta: Delta | None, examples: Sequence[TaggedWords]
) -> list[tuple[list[int], Tensor]]:
    """For each text, the words that can be tagged and their logits [n, C]; differentiable in head and delta.

    Raises:
        ShapeError: no text.
        ConfigError: a tokenizer that cannot say which characters a token stands for.
    """
    texts = [(example.text, None) for example in examples]
    inputs = encoder_inputs(encoder, texts, positions_taken=positions_taken(delta))
    firsts = [_first_pieces(encoder, *pair) for pair in zip(examples, inputs, strict=True)]
    with with_delta(encoder, delta):
        hidden, _ = read_inputs(encoder, inputs)
    return [
        (list(columns), head(rows[list(columns.values())]))
        for rows, columns in zip(hidden, firsts, strict=True)  # a row is [T, E]
    ]


def tagging_loss(
    encoder: FrozenEncoder, head: TaggingHead, delta: Delta | None, examples: Sequence[TaggedWords]
) -> tuple[Tensor, int]:
    """The loss that `frozenlm.training.fit` takes: the sum of -log p(label) in nats, and the number of words.

    Raises:
        ConfigError: a label that the head does not know.
        ShapeError: a text without labels.
    """
    numbers = [label_numbers(head.labels, example.labels) for example in examples]
    if not all(numbers):
        raise ShapeError("there are no labels to learn from; give each word one")
    found = tagging_logits(encoder, head, delta, examples)
    logits = torch.cat([rows for _, rows in found])
    wanted = [own[word] for own, (words, _) in zip(numbers, found, strict=True) for word in words]
    target = torch.tensor(wanted, dtype=torch.long, device=logits.device)
    return functional.cross_entropy(logits, target, reduction="sum"), len(wanted)


@torch.no_grad()
def predict_tags(
    encoder: FrozenEncoder,
    head: TaggingHead,
    delta: Delta | None,
    examples: Sequence[TaggedWords],
    *,
    batch_size: int = BATCH,
) -> list[list[str | None]]:
    """The label of each word; None for a word that was cut off or leaves no token."""
    tags = []
    for start in range(0, len(examples), batch_size):
        part = examples[start : start + batch_size]
        for example, (words, logits) in zip(part, tagging_logits(encoder, head, delta, part), strict=True):
            best = dict(zip(words, logits.argmax(dim=1).tolist(), strict=True))
            tags.append([head.labels[best[k]] if k in best else None for k in range(len(example.words))])
    return tags


def _first_pieces(encoder: FrozenEncoder, example: TaggedWords, read: EncoderInput) -> dict[int, int]:
    """The column of each word's first token, by the word's number."""
    _, offsets = encoder.codec.encode_with_offsets(example.text)
    columns: dict[int, int] = {}
    start, token = 0, 0
    for number, word in enumerate(example.words):
        end = start + len(word)
        # A piece may begin with the space before its word.
        while token < len(offsets) and offsets[token][1] <= start:
            token += 1
        if token < len(read.first) and offsets[token][0] < end:
            columns[number] = read.first[token]
        start = end + 1
    return columns
