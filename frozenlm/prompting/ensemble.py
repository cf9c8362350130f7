"""Ensembles of prompts (PET, arXiv 2001.07676, combines its patterns so): N members cost one batch of N rows a record.

`mean` averages the members' class probabilities, `vote` counts the members' labels (shares of the votes; a tie goes to
the label of the larger mean). Members may differ in all: template, words, demonstrations, calibration; the labels must
be the same.
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch

from frozenlm.errors import ConfigError
from frozenlm.lm import BATCH_TOKENS
from frozenlm.prompting.classify import Prediction, Prompt, Record, probabilities
from frozenlm.prompting.demonstrations import check_shown
from frozenlm.prompting.filled import Filled, PromptHost

How = Literal["mean", "vote"]


class Ensemble:
    """Several prompts as one.

    Raises: ConfigError without members, for members with other labels, an unknown `how`, or weights that do not fit.
    """

    def __init__(self, members: Sequence[Prompt], *, how: How = "mean", weights: Sequence[float] | None = None) -> None:
        if not members or how not in get_args(How):
            raise ConfigError(
                f"an ensemble of {len(members)} members, how {how!r}; expected 1 or more, {get_args(How)}"
            )
        self.members, self.how = tuple(members), how
        self.labels = self.members[0].verbalizer.labels
        for number, member in enumerate(self.members):
            if set(member.verbalizer.labels) != set(self.labels):
                raise ConfigError(
                    f"member {number} knows the labels {list(member.verbalizer.labels)}, member 0 {list(self.labels)}; "
                    "the members of an ensemble answer the same question"
                )
        self.weights = [1.0] * len(self.members) if weights is None else list(weights)
        if len(self.weights) != len(self.members) or not all(0 < weight < math.inf for weight in self.weights):
            raise ConfigError(
                f"weights are {self.weights}; expected a finite one above 0 for each of {len(self.members)} members"
            )

    @torch.no_grad()
    def classify(
        self, host: PromptHost, records: Sequence[Record], *, batch_tokens: int = BATCH_TOKENS
    ) -> list[Prediction]:
        """The label of each record; cut and dropped are sums over the members.

        Raises: as `Prompt.classify`.
        """
        return self.answered(host, self.fill(host, records), batch_tokens=batch_tokens)

    @torch.no_grad()
    def fill(self, host: PromptHost, records: Sequence[Record]) -> list[tuple[Filled, ...]]:
        """What the host reads for each record, a member each.

        Raises: as `Prompt.fill`, and as `check_shown` for the questions of any member.
        """
        filled = [member.fill(host, records) for member in self.members]
        for own in filled:
            check_shown(own)
        return list(zip(*filled, strict=True))

    @torch.no_grad()
    def answered(
        self, host: PromptHost, filled: Sequence[tuple[Filled, ...]], *, batch_tokens: int = BATCH_TOKENS
    ) -> list[Prediction]:
        """The label of each question that `fill` gave; so many questions can be asked in parts."""
        asked = [pair for one in filled for pair in zip(self.members, one, strict=True)]
        found = probabilities(host, asked, batch_tokens=batch_tokens)
        size = len(self.members)
        predictions = []
        for number, own in enumerate(filled):
            shares = torch.stack([self._ordered(place, found[number * size + place]) for place in range(size)])
            predictions.append(self._joined(shares.cpu(), sum(one.cut for one in own), sum(one.dropped for one in own)))
        return predictions

    def _ordered(self, place: int, found: torch.Tensor) -> torch.Tensor:
        """A member's [C] probabilities in the order of the first member's labels."""
        theirs = self.members[place].verbalizer.labels
        return found[[theirs.index(label) for label in self.labels]]

    def _joined(self, shares: torch.Tensor, cut: int, dropped: int) -> Prediction:
        """shares: [N, C]"""
        weights = torch.tensor(self.weights, dtype=shares.dtype) / sum(self.weights)
        mean = weights @ shares
        result = mean
        if self.how == "vote":
            votes = torch.nn.functional.one_hot(shares.argmax(dim=1), shares.shape[1]).to(shares.dtype)
            result = weights @ votes
        rank = list(zip(result.tolist(), mean.tolist(), strict=True))
        best = max(range(len(rank)), key=lambda i: (round(rank[i][0], 6), rank[i][1]))
        return Prediction(self.labels[best], dict(zip(self.labels, result.tolist(), strict=True)), cut, dropped)
