"""When a second pass is worth its price: always, or where the first pass is unsure.

Our choice, for both forms; the paper (arXiv 2204.10019) always runs all passes. A first answer's confidence is the
geometric mean probability of its tokens, its end included, between 0 and 1: it is known after one greedy pass, before
anything has been sampled, so the sure questions pay for nothing else. An empty answer has confidence 0. The threshold
is tuned on dev questions that went through both passes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, get_args

from frozenlm.decoding import Generation
from frozenlm.errors import ConfigError

Rule = Literal["always", "below_confidence"]


@dataclass(frozen=True)
class When:
    """Which inputs get a second pass.

    rule: "below_confidence" where the first answer's confidence is below `threshold`

    Raises: ConfigError for an unknown rule, or a threshold that is missing, negative, or without use.
    """

    rule: Rule = "always"
    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule):
            raise ConfigError(f"when is {self.rule!r}; expected one of {get_args(Rule)}")
        if self.rule == "always" and self.threshold is not None:
            raise ConfigError(f"threshold {self.threshold} is never looked at with when: always; leave one of them out")
        if self.rule == "below_confidence" and not (self.threshold is not None and 0 <= self.threshold < math.inf):
            raise ConfigError(
                f"when: below_confidence needs a threshold of at least 0, got {self.threshold}; tune it on dev"
            )

    def pays(self, confidence: float) -> bool:
        """Whether an input of that confidence gets its second pass."""
        return self.threshold is None or confidence < self.threshold


UNSURE_OF_ALL = When("below_confidence", 2.0)
"""Every input gets both: its first answer and the second pass."""


def confidence(first: Generation) -> float:
    """Of a greedy first answer, 0 to 1."""
    if not first.text.strip() or not first.logprobs:
        return 0.0
    return math.exp(first.logprob / len(first.logprobs))


@dataclass(frozen=True)
class TunedThreshold:
    """What `tune_threshold` found.

    threshold: pay below it; 0 pays never, one above every confidence pays always
    score: mean score with it; share: of the questions that pay
    never, always: mean scores of the two extremes
    """

    threshold: float
    score: float
    share: float
    never: float
    always: float


def tune_threshold(
    confidences: Sequence[float],
    first_right: Sequence[float],
    second_right: Sequence[float],
    *,
    price: float = 0.0,
    max_share: float = 1.0,
) -> TunedThreshold:
    """The threshold with the highest mean score less `price` times the share that pays; of equals, the cheapest.

    confidences: of the first answers
    first_right, second_right: the score of each question's answer after one pass and after both; EM, F1, or a bool
    price: score that a second pass must bring, on average, to be worth running
    max_share: at most this share of the questions may pay

    Raises: ConfigError without a question, for lists of different lengths, a negative price, or a share outside 0..1.
    """
    count = len(confidences)
    if not count or not count == len(first_right) == len(second_right):
        raise ConfigError(
            f"got {count} confidences, {len(first_right)} first and {len(second_right)} second scores; "
            "expected as many of each, at least one"
        )
    if not (price >= 0 and 0 <= max_share <= 1):
        raise ConfigError(f"price must be at least 0 and max_share in 0..1, got {price} and {max_share}")
    rows = sorted(zip(confidences, map(float, first_right), map(float, second_right), strict=True))
    gains = list(accumulate(second - first for _, first, second in rows))
    never, always = math.fsum(map(float, first_right)), math.fsum(map(float, second_right))
    found = TunedThreshold(0.0, never / count, 0.0, never / count, always / count)
    most = 0.0
    for paying, gain in enumerate(gains, start=1):
        last = rows[paying - 1][0]
        above = rows[paying][0] if paying < count else math.nextafter(last, math.inf)
        if above == last or paying > max_share * count:  # questions of one confidence pay together
            continue
        if gain - price * paying > most + 1e-9:
            most = gain - price * paying
            found = TunedThreshold(above, (never + gain) / count, paying / count, never / count, always / count)
    return found
