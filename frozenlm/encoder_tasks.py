"""Classification with a frozen encoder: a head, any delta, and what is trained and kept of both.

    tuned = TunedEncoder(ClassificationHead.create(encoder, ["no", "yes"]), PTuningV2.create(encoder, 20))
    fit(tuned, examples=examples, loss=lambda part: classification_loss(encoder, tuned.head, tuned.delta, part), ...)
    predict(encoder, tuned.head, tuned.delta, [LabelledText("it never rains", "it is dry")])

The delta may be a prefix, BitFit, adapters, LoRA or none; the encoder itself never changes. Tagging and spans are in
`encoder_tags.py` and `encoder_spans.py`.
Shapes: B examples, C labels.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from frozenlm.deltas.attach import Delta, attach
from frozenlm.encoder import FrozenEncoder
from frozenlm.encoder_inputs import EncoderInput, encoder_inputs, read_inputs
from frozenlm.errors import ConfigError
from frozenlm.saved_parts import check_parts, save_parts
from frozenlm.task_heads import ClassificationHead, Head, label_numbers, load_head

BATCH = 32  # examples read at once where none is learned from


@dataclass(frozen=True)
class LabelledText:
    """A text, or a pair of texts, and its label; None where it is to be found."""

    text: str
    text_b: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class PredictedLabel:
    """The likeliest label, the probability of each, and whether the text was too long and its end was not read."""

    label: str
    probabilities: dict[str, float]
    cut: bool = False


def with_delta(encoder: FrozenEncoder, delta: Delta | None) -> AbstractContextManager[None]:
    """The encoder with the delta, or as it is."""
    return attach(encoder, *([] if delta is None else [delta]))


def positions_taken(delta: Any) -> int:
    """How many of the encoder's positions a delta takes from the text."""
    return int(getattr(delta, "positions_taken", 0))


def classification_logits(
    encoder: FrozenEncoder, head: ClassificationHead, delta: Delta | None, examples: Sequence[LabelledText]
) -> Tensor:
    """[B, C] float32; differentiable in head and delta.

    Raises:
        ShapeError: no example.
        ConfigError: a delta that does not fit the encoder.
    """
    return _logits(encoder, head, delta, _inputs(encoder, delta, examples))


def classification_loss(
    encoder: FrozenEncoder, head: ClassificationHead, delta: Delta | None, examples: Sequence[LabelledText]
) -> tuple[Tensor, int]:
    """The loss that `frozenlm.training.fit` takes: the sum of -log p(label) in nats, and the number of examples.

    Raises:
        ConfigError: an example without a label, or with one that the head does not know.
    """
    if missing := [example.text for example in examples if example.label is None]:
        raise ConfigError(f"there is no label to learn from for {missing[0]!r}; give each example one")
    numbers = label_numbers(head.labels, [example.label or "" for example in examples])
    logits = classification_logits(encoder, head, delta, examples)
    return functional.cross_entropy(logits, torch.tensor(numbers, device=logits.device), reduction="sum"), len(examples)


@torch.no_grad()
def predict(
    encoder: FrozenEncoder,
    head: ClassificationHead,
    delta: Delta | None,
    examples: Sequence[LabelledText],
    *,
    batch_size: int = BATCH,
) -> list[PredictedLabel]:
    """The label of each example, by the head; the examples' own are not looked at."""
    found = []
    for start in range(0, len(examples), batch_size):
        inputs = _inputs(encoder, delta, examples[start : start + batch_size])
        rows = _logits(encoder, head, delta, inputs).softmax(dim=1).tolist()
        for row, read in zip(rows, inputs, strict=True):
            probabilities = dict(zip(head.labels, row, strict=True))
            found.append(PredictedLabel(max(probabilities, key=probabilities.__getitem__), probabilities, read.cut))
    return found


def _inputs(encoder: FrozenEncoder, delta: Delta | None, examples: Sequence[LabelledText]) -> list[EncoderInput]:
    texts = [(example.text, example.text_b) for example in examples]
    return encoder_inputs(encoder, texts, positions_taken=positions_taken(delta))


def _logits(
    encoder: FrozenEncoder, head: ClassificationHead, delta: Delta | None, inputs: Sequence[EncoderInput]
) -> Tensor:
    with with_delta(encoder, delta):
        return head(*read_inputs(encoder, inputs))


class TunedEncoder(nn.Module):
    """All that is trained around an encoder for one task, in one folder: `head/`, `delta/` and what ties them.

    head: of `task_heads.py`
    delta: any, or None
    """

    def __init__(self, head: Head, delta: Any | None = None) -> None:
        super().__init__()
        self.head, self.delta = head, delta

    def save(self, folder: Path | str, encoder: FrozenEncoder) -> None:
        """Writes both.

        Raises: CheckpointError when one holds non-finite or huge numbers, or the folder cannot be written.
        """
        save_parts(folder, {"head": self.head} | ({} if self.delta is None else {"delta": self.delta}), encoder)

    @classmethod
    def load(cls, folder: Path | str, encoder: FrozenEncoder, *, delta: type[Any] | None = None) -> "TunedEncoder":
        """Reads what `save` wrote.

        delta: the class of the saved delta; None where there is none

        Raises: CheckpointError when a part is missing, damaged, of another training or of another encoder.
        """
        folder = Path(folder)
        check_parts(folder, ["head"] if delta is None else ["head", "delta"])
        return cls(
            load_head(folder / "head", encoder), None if delta is None else delta.load(folder / "delta", encoder)
        )
