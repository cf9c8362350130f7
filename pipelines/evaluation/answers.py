"""Exact match and F1 as SQuAD 1.1's official scorer defines them (Rajpurkar et al. 2016, arXiv 1606.05250), and
sub-span exact match as used for readers that answer in sentences (Liu et al. 2023, arXiv 2307.03172).

Scores lie in [0, 1]. There is no Unicode normalisation: `U.S.` equals `US`, `twenty-one` differs from `twenty one`, an
en dash is no hyphen, and "café" in composed and in decomposed form are two words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pipelines.errors import ConfigError
from retrievers.metrics import squad_normalized


def exact_match(prediction: str, answers: Sequence[str]) -> bool:
    """Whether the prediction equals one of the gold answers after SQuAD's normalisation.

    Raises:
        ConfigError: no gold answer, or a blank one.
    """
    wanted = squad_normalized(prediction)
    return any(squad_normalized(answer) == wanted for answer in _checked(answers))


def f1(prediction: str, answers: Sequence[str]) -> float:
    """The best token F1 over the gold answers: 2pr / (p + r) over the multiset of shared words, 0 where none is shared.

    Raises:
        ConfigError: no gold answer, or a blank one.
    """
    return max(
        _token_f1(squad_normalized(prediction).split(), squad_normalized(answer).split())
        for answer in _checked(answers)
    )


def subspan_em(prediction: str, answers: Sequence[str]) -> bool:
    """Whether a normalised gold answer stands inside the normalised prediction, as characters.

    A gold answer of which nothing is left ("The", "A") stands inside everything: it is matched exactly (our choice).

    Raises:
        ConfigError: no gold answer, or a blank one.
    """
    text = squad_normalized(prediction)
    golds = [squad_normalized(answer) for answer in _checked(answers)]
    return any(gold in text if gold else gold == text for gold in golds)


def _token_f1(predicted: list[str], gold: list[str]) -> float:
    shared = sum((Counter(predicted) & Counter(gold)).values())
    if shared == 0:
        return 0.0
    precision, recall = shared / len(predicted), shared / len(gold)
    return 2 * precision * recall / (precision + recall)


def _checked(answers: Sequence[str]) -> Sequence[str]:
    if isinstance(answers, str) or not answers or not all(answer.strip() for answer in answers):
        raise ConfigError(
            f"expected gold answers that are not blank, got {answers!r}; a blank one would match anything"
        )
    return answers
