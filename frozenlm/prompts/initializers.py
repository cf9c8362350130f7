"""Where a learned prompt begins: one function a way, each named like a sentence.

Prompt tuning (arXiv 2104.08691, section 3.2) compares uniform [-0.5, 0.5], rows of the 5,000 most frequent tokens drawn
without replacement, and the words of the class labels. The start decides much of the result: in a public benchmark
N(0, 1), the usual library default, ended at 0.057 accuracy where sampled vocabulary ended at 0.343.

Our choices, where the paper is silent:
- A vocabulary is taken to be sorted by frequency, as BPE, unigram and WordPiece tokenizers nearly are. Ids that never
  stand in text are passed over: special tokens, unused slots, byte pieces, and rows past the tokenizer's last token.
- A text shorter than the prompt is repeated, a longer one is cut.
- Class labels are encoded as given, so a label that follows a space in the text is best given with that space.

Each function returns an `Initializer`, which is called once, when the prompt is made.
Shapes: P soft tokens, H hidden size.
"""

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from frozenlm.errors import ConfigError, ShapeError

if TYPE_CHECKING:
    from frozenlm.lm import FrozenLM

Initializer = Callable[["FrozenLM", int, torch.Generator], Tensor]
"""(the LM, P, source of randomness) -> [P, H] float32 on the CPU."""


class Vocabulary(Protocol):
    """What has a tokenizer and embeddings: an LM or an encoder."""

    tokenizer: Any
    vocab_size: int

    @property
    def device(self) -> torch.device: ...

    def embed(self, ids: Tensor) -> Tensor:
        """ids [...] -> embeddings [..., H]."""
        ...


MOST_FREQUENT = 5000
_NEVER_IN_TEXT = re.compile(r"^(<0x[0-9A-Fa-f]{2}>|[<\[]unused_?\d+[>\]]|<extra_id_\d+>|<\|?reserved.*\|?>)$")


def uniform(scale: float = 0.5) -> Initializer:
    """Every number drawn from [-scale, scale], whatever the LM's embeddings look like.

    Raises: ConfigError for a scale that is not above 0.
    """
    if not scale > 0:
        raise ConfigError(f"uniform: scale is {scale!r}; expected a number above 0")

    def draw(lm: "FrozenLM", length: int, generator: torch.Generator) -> Tensor:
        return (torch.rand(length, lm.hidden_size, generator=generator) * 2 - 1) * scale

    return draw


def from_sampled_vocabulary(top: int = MOST_FREQUENT) -> Initializer:
    """Embeddings of tokens drawn without replacement from the `top` first, so most frequent, ones of the vocabulary.

    Raises (when called): ConfigError when the prompt is longer than the tokens to draw from.
    """

    def draw(lm: "FrozenLM", length: int, generator: torch.Generator) -> Tensor:
        return sampled_embeddings(lm, length, generator, top)

    return draw


def from_text(text: str) -> Initializer:
    """Embeddings of a text, repeated or cut to the prompt's length.

    Raises (when called): ConfigError when the text has no token.
    """

    def copy(lm: "FrozenLM", length: int, generator: torch.Generator) -> Tensor:
        ids = lm.encode(text)
        if not ids:
            raise ConfigError(f"from_text: {text!r} has no token; give at least one word")
        repeated = ids * (length // len(ids) + 1)
        return _embeddings(lm, torch.tensor(repeated[:length]))

    return copy


def from_class_labels(labels: Sequence[str], top: int = MOST_FREQUENT) -> Initializer:
    """Row i is label i, the mean over its pieces; the rows left are sampled vocabulary.

    Raises: ConfigError without a label, or (when called) for more labels than rows or a label without a token.
    """
    if isinstance(labels, str) or not labels:
        raise ConfigError(f"from_class_labels: got {labels!r}; expected a list of at least one label")

    def average(lm: "FrozenLM", length: int, generator: torch.Generator) -> Tensor:
        if len(labels) > length:
            raise ConfigError(
                f"from_class_labels: {len(labels)} labels do not fit into {length} soft tokens; lengthen the prompt"
            )
        rows = []
        for label in labels:
            ids = lm.encode(label)
            if not ids:
                raise ConfigError(f"from_class_labels: the label {label!r} has no token; give each label a word")
            rows.append(_embeddings(lm, torch.tensor(ids)).mean(dim=0))
        rest = length - len(labels)
        if rest:
            rows.extend(from_sampled_vocabulary(top)(lm, rest, generator))
        return torch.stack(rows)

    return average


def from_vectors(vectors: Tensor) -> Initializer:
    """The vectors of a trained prompt, as another's start: prompt transfer (SPoT, arXiv 2110.07904).

    vectors: [P, H]; copied

    Raises (when called): ShapeError when they are not as many as the prompt is long, or not as wide as the LM's
        embeddings.
    """

    def copy(lm: "FrozenLM", length: int, generator: torch.Generator) -> Tensor:
        if vectors.shape != (length, lm.hidden_size):
            raise ShapeError(
                f"from_vectors: the prompt to start from is {list(vectors.shape)}, the new one [P, H] = "
                f"[{length}, {lm.hidden_size}]; make them of one length, for one LM"
            )
        return vectors.detach().to("cpu", torch.float32, copy=True)

    return copy


def sampled_embeddings(host: Vocabulary, length: int, generator: torch.Generator, top: int = MOST_FREQUENT) -> Tensor:
    """What `from_sampled_vocabulary` draws, for an LM or an encoder: [length, width of the embeddings].

    Raises: ConfigError when there are fewer tokens than `length` to draw from.
    """
    ids = frequent_ids(host, top)
    if length > len(ids):
        raise ConfigError(
            f"from_sampled_vocabulary: {length} soft tokens cannot be drawn without replacement from {len(ids)} "
            "tokens; use a shorter prompt, a larger top, or from_text"
        )
    chosen = torch.randperm(len(ids), generator=generator)[:length]
    return _embeddings(host, torch.tensor(ids)[chosen])


def embedding_scale(host: Vocabulary, top: int = MOST_FREQUENT) -> float:
    """Root mean square of the numbers in the embeddings of the `top` most frequent tokens."""
    return float(_embeddings(host, torch.tensor(frequent_ids(host, top))).square().mean().sqrt())


def frequent_ids(host: Vocabulary, top: int) -> list[int]:
    """The first `top` ids of the vocabulary that can stand in text."""
    special = set(host.tokenizer.all_special_ids)
    count = min(host.vocab_size, len(host.tokenizer))
    pieces = host.tokenizer.convert_ids_to_tokens(list(range(count)))
    usable = (i for i, piece in enumerate(pieces) if piece and i not in special and not _NEVER_IN_TEXT.match(piece))
    return [token for token, _ in zip(usable, range(top), strict=False)]


def _embeddings(host: Vocabulary, ids: Tensor) -> Tensor:
    """[n] ids -> [n, H] float32 on the CPU, no gradient."""
    with torch.no_grad():
        return host.embed(ids.to(host.device)).float().cpu()
