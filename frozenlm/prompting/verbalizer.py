"""Verbalizers: PET (Schick & Schuetze 2021, arXiv 2001.07676), and its relatives with several words a label (Hu et al.
2022, arXiv 2108.02035).

A label has one word or several synonyms. A word of several pieces is scored by

    logprob    its full log-probability: the sum over its pieces, each given those before it (a masked LM: each at a
               mask of its own); the default, and the only one that looks at more than the first token written
    first, mean, max    over the log-probabilities that its pieces have in the answer's place (OpenPrompt,
               arXiv 2111.01998)

All words of all labels share one softmax; calibration acts on that, and a label's probability is the mean over its
words (`classify.py`). Shapes: n questions, W words, H' width of the head's input.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from frozenlm.errors import ConfigError
from frozenlm.prompting.filled import PromptHost, word_ids
from frozenlm.prompting.labels import word_of, word_table
from frozenlm.prompting.scoring import head

Pieces = Literal["logprob", "first", "mean", "max"]


class Verbalizer:
    """Label -> words.

    words: label -> its word, or a list of synonyms
    pieces: how a word of several pieces is scored
    name: what messages call it

    Attributes:
        table: label as text -> its words. labels: as text, in the given order.
        words: of all labels, one after another. owners: of each word, the place of its label.

    Raises: ConfigError for fewer than two labels, a label without a word, a blank word, one word under two labels, or
        an unknown `pieces`.
    """

    def __init__(
        self, words: Mapping[Any, str | Sequence[str]], *, pieces: Pieces = "logprob", name: str = "verbalizer"
    ) -> None:
        if pieces not in get_args(Pieces):
            raise ConfigError(f"{name}: pieces is {pieces!r}; expected one of {get_args(Pieces)}")
        self.table = word_table(words, where=name, synonyms=True)
        self.pieces, self.name = pieces, name
        self.labels: tuple[str, ...] = tuple(self.table)
        self.words: tuple[str, ...] = tuple(word for own in self.table.values() for word in own)
        self.owners: tuple[int, ...] = tuple(n for n, own in enumerate(self.table.values()) for _ in own)
        self._ids: dict[tuple[str, bool], list[list[int]]] = {}

    def word(self, label: object, *, where: str) -> str:
        """The first word of a label as it stands in the data.

        Raises: ConfigError for a label that has no word.
        """
        return word_of(self.table, label, where=where, whose=self.name)

    def ids(self, host: PromptHost, *, spaced: bool = True) -> list[list[int]]:
        """Token ids of each word. spaced: whether it follows a space.

        Raises: ConfigError for a word without a token, and for words of two labels that read the same to this LM.
        """
        key = (host.fingerprint, spaced)
        if key not in self._ids:
            self._ids[key] = self._checked([word_ids(host, word, spaced=spaced) for word in self.words], host)
        return self._ids[key]

    def whole(self, host: PromptHost, *, spaced: bool) -> list[list[int]] | None:
        """As `LabelWords`."""
        ids = self.ids(host, spaced=spaced)
        return ids if self.pieces == "logprob" and any(len(word) > 1 for word in ids) else None

    def from_states(self, host: PromptHost, states: Tensor, *, spaced: bool) -> Tensor:
        """As `LabelWords`."""
        logprobs = head(host, states).log_softmax(dim=1)
        columns = []
        for word in self.ids(host, spaced=spaced):
            found = logprobs[:, torch.tensor(word[:1] if self.pieces == "first" else word, device=logprobs.device)]
            columns.append(found.amax(dim=1) if self.pieces == "max" else found.mean(dim=1))
        return torch.stack(columns, dim=1)

    def _checked(self, ids: list[list[int]], host: PromptHost) -> list[list[int]]:
        unknown = host.tokenizer.unk_token_id
        seen: dict[tuple[int, ...], int] = {}
        for number, (word, own) in enumerate(zip(self.words, ids, strict=True)):
            label = self.labels[self.owners[number]]
            if not own or all(token == unknown for token in own):
                raise ConfigError(
                    f"{self.name}: the word {word!r} for {label!r} has no token in this LM's vocabulary; use another"
                )
            read = tuple(own[:1] if self.pieces == "first" else own)
            other = seen.setdefault(read, number)
            if other != number and self.owners[other] != self.owners[number]:
                raise ConfigError(
                    f"{self.name}: {self.words[other]!r} for {self.labels[self.owners[other]]!r} and {word!r} for "
                    f"{label!r} are the same tokens {list(read)} to this LM; choose words that it tells apart"
                )
        return ids
