"""Calibration: what the LM would answer to a question about nothing is taken off what it answers.

`ContextualCalibration`: Zhao et al. 2021, arXiv 2102.09690. The template is filled with content-free texts ("N/A", "",
"[MASK]", as plain text), the words' probabilities for these are averaged, and every answer's probabilities are divided
by that average. The paper puts a softmax over the quotient, we divide by its sum: the order is the same, and a
content-free input comes out exactly uniform.

`DomainPMI`: Holtzman et al. 2021, arXiv 2104.08315. log p(word | x) - log p(word | domain premise), the premise
being the text right before the answer. With all words under one softmax this is the same quotient with another
denominator. An empty premise asks for p(word) alone, the unconditional PMI.

Both ask with the question's own demonstrations in front (our choice for PMI). That suits demonstrations that are the
same for all questions. Those chosen as nearest carry the answer in their labels, which such a calibration takes off
again: `demonstrations=False` asks about nothing without any.

All of it works on logarithms: a word of some 14 pieces can be e^-90 as likely as another, which float32 cannot hold.
Shapes: W words.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from frozenlm.errors import ConfigError
from frozenlm.prompting.parts import Answer, Field
from frozenlm.prompting.template import Template

CONTENT_FREE = ("N/A", "", "[MASK]")


class Calibration(Protocol):
    """What an answer about nothing is asked with. demonstrations: whether those of the question stand in front."""

    @property
    def demonstrations(self) -> bool: ...

    def blanks(self, template: Template) -> list[tuple[Template, Mapping[str, str]]]:
        """Templates and records that say nothing; the average over them is taken off."""
        ...


@dataclass(frozen=True)
class ContextualCalibration:
    """texts: what every field is filled with, one after another. demonstrations: as `Calibration`."""

    texts: Sequence[str] = CONTENT_FREE
    demonstrations: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.texts, str) or not self.texts:
            raise ConfigError(f"contextual calibration got texts {self.texts!r}; expected a list of at least one")

    def blanks(self, template: Template) -> list[tuple[Template, Mapping[str, str]]]:
        """As `Calibration`."""
        return [(template, dict.fromkeys(template.fields, text)) for text in self.texts]


@dataclass(frozen=True)
class DomainPMI:
    """premise: what stands before the answer; None for what follows the template's last field.

    demonstrations: as `Calibration`
    """

    premise: str | None = None
    demonstrations: bool = True

    def blanks(self, template: Template) -> list[tuple[Template, Mapping[str, str]]]:
        """As `Calibration`."""
        if self.premise is not None:
            text = self.premise.removesuffix(" ") + (" " if template.spaced else "")
            return [(Template([text, Answer()], sentinel=template.sentinel, name="the domain premise"), {})]
        places = [number for number, part in enumerate(template.parts) if isinstance(part, Field)]
        parts = list(template.parts[max(places, default=-1) + 1 :])
        if Answer() not in parts:
            parts = [part for part in template.parts if not isinstance(part, Field)]
        made = Template(parts, sentinel=template.sentinel, name=f"{template.name}'s domain premise")
        if template.spaced and not made.spaced:  # the words are to be the pieces that they are behind a field
            parts.insert(parts.index(Answer()), " ")
            made = Template(parts, sentinel=template.sentinel, name=made.name)
        return [(made, {})]


def calibrated(logprobs: Tensor, blank: Tensor) -> Tensor:
    """[W] log-probabilities and [n, W] those of the blanks -> [W] calibrated log-probabilities; in nats.

    Raises: ConfigError where the LM gives a word no probability at all when asked about nothing.
    """
    prior = blank.logsumexp(dim=0) - math.log(len(blank))
    if not bool(prior.isfinite().all()):
        raise ConfigError("a word has probability 0 for content-free input, so nothing can be divided by it; change it")
    return (logprobs - prior).log_softmax(dim=0)


def class_means(logprobs: Tensor, owners: Sequence[int], classes: int) -> Tensor:
    """[W] -> [classes]: logarithms of the mean probability over each class's words, made to sum to one; in nats."""
    index = torch.tensor(owners, device=logprobs.device)
    own = index == torch.arange(classes, device=logprobs.device)[:, None]
    sums = logprobs.expand(classes, -1).masked_fill(~own, -math.inf).logsumexp(dim=1)
    return (sums - own.sum(dim=1).log()).log_softmax(dim=0)
