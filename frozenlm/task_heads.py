"""Linear heads on a frozen encoder: of P-tuning v2 (arXiv 2110.07602, section 3.3), and as good with any other delta.

    ClassificationHead    one of C labels for a text or a pair of texts, from its pooled hidden states
    TaggingHead           one of C labels for each word, from the hidden state of its first piece
    SpanHead              where an answer begins and ends, from the hidden state of each token

They are C x E + C numbers (2 E + 2 for spans). Our choice: pooled is the mean over all tokens, which sentence encoders
were trained for, or with pool="first" the first one ([CLS]), BERT's own way and the paper's, or with pool="last" the
last one that is read, the only one of a causal model that sees the whole text. A head without a delta is linear
probing.
Shapes: B texts, T columns, E width of the encoder's output, C labels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from frozenlm.checkpoint import load_module, save_module, verify_module
from frozenlm.encoder import FrozenEncoder
from frozenlm.errors import CheckpointError, ConfigError
from frozenlm.prompts.initializers import frequent_ids

Pool = Literal["mean", "first", "last"]
H = TypeVar("H", bound=nn.Module)
CLASSIFICATION, TAGGING, SPAN = "classification_head", "tagging_head", "span_head"


class ClassificationHead(nn.Module):
    """One of several labels for a whole input.

    labels: C names
    width: E

    Raises: ConfigError for fewer than two labels, one that comes twice, or an unknown pooling.
    """

    KIND = CLASSIFICATION

    def __init__(self, labels: Sequence[str], width: int, *, pool: Pool = "mean") -> None:
        super().__init__()
        if pool not in get_args(Pool):
            raise ConfigError(f"pool is {pool!r}; expected one of {get_args(Pool)}")
        self.labels, self.pool = _checked_labels(labels), pool
        self.linear = nn.Linear(width, len(self.labels))

    @classmethod
    def create(
        cls, encoder: FrozenEncoder, labels: Sequence[str], *, pool: Pool = "mean", seed: int = 0
    ) -> "ClassificationHead":
        """A new head; the same seed gives the same one.

        Raises: ConfigError as the class, and for pool="first" on a causal model.
        """
        head = cls(labels, encoder.hidden_size, pool=pool)
        _check_pool(encoder, pool)
        return _drawn(head, seed)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """hidden [B, T, E], mask [B, T] -> logits [B, C]."""
        if self.pool == "first":
            return self.linear(hidden[:, 0])
        if self.pool == "last":
            columns = torch.arange(mask.shape[1], device=mask.device)
            last = (mask.long() * columns).argmax(dim=1)  # whichever side is padded
            return self.linear(hidden[torch.arange(len(hidden), device=mask.device), last])
        weights = mask.unsqueeze(2).to(hidden.dtype)
        return self.linear((hidden * weights).sum(dim=1) / weights.sum(dim=1))

    def save(self, folder: Path | str, encoder: FrozenEncoder) -> None:
        """Writes the head with the fingerprint of its encoder.

        Raises: CheckpointError when it holds non-finite or huge numbers, or the folder cannot be written.
        """
        _save(self, folder, encoder, {"labels": list(self.labels), "pool": self.pool})


class TaggingHead(nn.Module):
    """One of several labels for each token.

    labels: C names
    width: E

    Raises: ConfigError for fewer than two labels, or one that comes twice.
    """

    KIND = TAGGING

    def __init__(self, labels: Sequence[str], width: int) -> None:
        super().__init__()
        self.labels = _checked_labels(labels)
        self.linear = nn.Linear(width, len(self.labels))

    @classmethod
    def create(cls, encoder: FrozenEncoder, labels: Sequence[str], *, seed: int = 0) -> "TaggingHead":
        """A new head; the same seed gives the same one."""
        return _drawn(cls(labels, encoder.hidden_size), seed)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [..., E] -> logits [..., C]."""
        return self.linear(hidden)

    def save(self, folder: Path | str, encoder: FrozenEncoder) -> None:
        """As `ClassificationHead.save`."""
        _save(self, folder, encoder, {"labels": list(self.labels)})


class SpanHead(nn.Module):
    """Where a span begins and where it ends."""

    KIND = SPAN

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 2)

    @classmethod
    def create(cls, encoder: FrozenEncoder, *, seed: int = 0) -> "SpanHead":
        """A new head; the same seed gives the same one."""
        return _drawn(cls(encoder.hidden_size), seed)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [..., E] -> logits [..., 2] of a beginning and of an end."""
        return self.linear(hidden)

    def save(self, folder: Path | str, encoder: FrozenEncoder) -> None:
        """As `ClassificationHead.save`."""
        _save(self, folder, encoder, {})


Head = ClassificationHead | TaggingHead | SpanHead


def load_head(folder: Path | str, encoder: FrozenEncoder, *, allow_other_lm: bool = False) -> Head:
    """Reads what a head's `save` wrote.

    Raises: CheckpointError when it is missing, damaged, no head, or was trained on another encoder; ConfigError for a
        head that reads the first token of a causal model.
    """
    kind = verify_module(folder).kind
    if kind not in (CLASSIFICATION, TAGGING, SPAN):
        raise CheckpointError(f"{folder} holds a {kind}; expected one of {CLASSIFICATION}, {TAGGING}, {SPAN}")
    tensors, config = load_module(folder, kind=kind, lm_fingerprint=encoder.fingerprint, allow_other_lm=allow_other_lm)
    head: Head
    try:
        if kind == CLASSIFICATION:
            head = ClassificationHead(config["labels"], encoder.hidden_size, pool=config["pool"])
        else:
            head = (
                TaggingHead(config["labels"], encoder.hidden_size) if kind == TAGGING else SpanHead(encoder.hidden_size)
            )
        head.load_state_dict(tensors)
    except (KeyError, RuntimeError, ConfigError) as error:
        shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        raise CheckpointError(
            f"{folder} holds {shapes} and {config}, which is no {kind} for {encoder.hidden_size} features: {error}"
        ) from error
    if isinstance(head, ClassificationHead):
        _check_pool(encoder, head.pool)
    return head


def head_parameter_count(width: int, outputs: int) -> int:
    """How many numbers a head trains: E x C weights and C biases."""
    return width * outputs + outputs


def label_numbers(labels: Sequence[str], given: Sequence[str]) -> list[int]:
    """The number of each label that was given.

    Raises: ConfigError for one that is not among them.
    """
    numbers = {label: number for number, label in enumerate(labels)}
    if unknown := [label for label in given if label not in numbers]:
        raise ConfigError(f"the label {unknown[0]!r} is not one of the head's: {', '.join(labels)}")
    return [numbers[label] for label in given]


def sees_only_before(encoder: FrozenEncoder) -> bool:
    """Whether a token's state depends on no token behind it: the model is causal.

    Asked of the model itself, since not every attention says so: whether the first token's state has a gradient in the
    second's embedding, which is exactly 0 where that is masked.
    """
    ids = torch.tensor([frequent_ids(encoder, 2)])
    with torch.inference_mode(False), torch.enable_grad():
        embeds = encoder.embed(ids).detach().requires_grad_()
        first = encoder.model(inputs_embeds=embeds).last_hidden_state[0, 0].float()
        # Numbers of different weight: neither their sum nor that of their squares moves behind a norm.
        weights = torch.linspace(-1, 1, len(first), device=first.device)
        (gradient,) = torch.autograd.grad(first @ weights, embeds)
    return not bool(gradient[0, 1].any())


def causal_first(name: str) -> ConfigError:
    """The error of reading the first token of a causal model."""
    return ConfigError(
        f"pool is 'first', which is not defined for causal models such as {name}: their first token sees nothing of "
        "the text behind it, so all texts would look alike; set pool to 'last' or 'mean'"
    )


def _check_pool(encoder: FrozenEncoder, pool: Pool) -> None:
    if pool == "first" and sees_only_before(encoder):
        raise causal_first(type(encoder.model).__name__)


def _checked_labels(labels: Sequence[str]) -> tuple[str, ...]:
    named = () if isinstance(labels, str) else tuple(labels)
    if len(named) < 2 or len(set(named)) < len(named) or not all(isinstance(label, str) for label in named):
        raise ConfigError(f"a head has at least two labels, strings of which none comes twice; got {labels!r}")
    return named


def _drawn(head: H, seed: int) -> H:
    """With weights from N(0, 0.02^2), BERT's start, and biases of 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_() if parameter.ndim == 1 else parameter.normal_(0, 0.02, generator=generator)
    return head


def _save(head: Head, folder: Path | str, encoder: FrozenEncoder, config: dict[str, object]) -> None:
    save_module(folder, head.state_dict(), config, lm_fingerprint=encoder.fingerprint, kind=head.KIND)
