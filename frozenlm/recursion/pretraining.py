"""Language-model pretraining of the connector on plain text: Levine et al. 2022, arXiv 2204.10019, section 4.2, where
starting the connector so, with the LM frozen, "was vital".

The texts become blocks of tokens, and every token but the first of each block is predicted through all passes. Our
choices: the texts stand one after another, each opened and closed by the LM's own control tokens, and are cut every
`length` tokens wherever that falls; no text is padded and none is lost. No prompt takes part.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, overload

import numpy as np
from torch import Tensor

from frozenlm.errors import ConfigError, ShapeError
from frozenlm.lm_tasks import Example
from frozenlm.recursion.connector import Connector
from frozenlm.recursion.loss import mean_recursion_loss, recursion_loss
from frozenlm.recursion.neural import RecursiveLM
from frozenlm.recursion.pass_cache import FirstPassCache

if TYPE_CHECKING:
    from frozenlm.lm import FrozenLM

TEXTS_AT_ONCE = 1000


class TokenBlocks(Sequence[Example]):
    """A run of tokens as examples: the first token of a block is its context, the others are its answer.

    A block is `length` tokens to read and one more to predict, which is the first that the next block reads: every
    token but the very first is predicted once. The last block may be shorter.

    tokens: [n] ids
    length: tokens that the LM reads of a block, at most its window

    Raises: ConfigError for a length below 1; ShapeError for fewer than two tokens.
    """

    def __init__(self, tokens: Sequence[int] | np.ndarray, *, length: int) -> None:
        if length < 1:
            raise ConfigError(f"blocks of {length} tokens cannot be read; expected a length of at least 1")
        self.tokens = np.asarray(tokens, dtype=np.int32)
        self.length = length
        if len(self.tokens) < 2:
            raise ShapeError(f"the text has {len(self.tokens)} tokens; one to read and one to predict are needed")

    @classmethod
    def of_texts(cls, lm: "FrozenLM", texts: Iterable[str], *, length: int) -> "TokenBlocks":
        """The blocks of any number of texts; empty ones are passed over.

        Raises: ConfigError for a length beyond the LM's window; ShapeError when there is no text.
        """
        if lm.window is not None and length > lm.window:
            raise ConfigError(f"blocks of {length} tokens do not fit the LM's window of {lm.window}; shorten them")
        close = lm.eos_ids[:1]
        runs = [
            np.array((*lm.bos_ids, *ids, *close), dtype=np.int32)
            for batch in _batches(texts, TEXTS_AT_ONCE)
            for ids in lm.encode_batch(batch)
            if ids
        ]
        return cls(np.concatenate(runs) if runs else [], length=length)

    def __len__(self) -> int:
        return -(-(len(self.tokens) - 1) // self.length)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(f"block {index} of {len(self)}")
        first, *rest = self.tokens[number * self.length : (number + 1) * self.length + 1].tolist()
        return Example((first,), tuple(rest))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of tokens and length, for the identity of a training run."""
        return hashlib.sha256(f"{self.length} ".encode() + self.tokens.tobytes()).hexdigest()


def pretraining_loss(
    lm: "FrozenLM", connector: Connector, blocks: Sequence[Example], first_pass: FirstPassCache | None = None
) -> tuple[Tensor, int]:
    """The loss that `frozenlm.training.fit` takes: the sum of -log p over all predicted tokens, and their number.

    The head runs on some positions at a time (`token_losses.py`).

    Raises: as `recursion_loss`.
    """
    return recursion_loss(RecursiveLM(lm, connector), blocks, first_pass)


def perplexity(
    lm: "FrozenLM",
    connector: Connector,
    blocks: Sequence[Example],
    *,
    batch_size: int = 16,
    first_pass: FirstPassCache | None = None,
) -> float:
    """exp of the mean -log p of a predicted token, with the connector in eval mode.

    Raises: ConfigError without a block; as `recursion_loss`.
    """
    model = RecursiveLM(lm, connector)
    return math.exp(mean_recursion_loss(model, blocks, batch_size=batch_size, first_pass=first_pass))


def _batches(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    stream = iter(texts)
    while batch := list(islice(stream, size)):
        yield batch
