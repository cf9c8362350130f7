"""Tunes on dev when recursion is worth its price: one threshold for either form, by exact match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from frozenlm.decoding import Generation
from frozenlm.recursion.when import confidence, tune_threshold
from pipelines import build_recursion
from pipelines import config as c
from pipelines.build import Log
from pipelines.errors import ConfigError
from pipelines.evaluation.answers import exact_match
from pipelines.surface import clean
from pipelines.training.reader import Prepared

if TYPE_CHECKING:
    from frozenlm.lm import FrozenLM


def check_tunable(when: c.When, training: c.Training) -> None:
    """Refuse a threshold that nothing could tune, before anything is trained.

    Raises:
        ConfigError: no dev questions.
    """
    if when.rule == "below_confidence" and when.threshold is None and not training.dev:
        raise ConfigError("when: below_confidence is tuned on dev; name training.dev, or set when.threshold")


def tune_when(
    config: build_recursion.Recursion,
    lm: FrozenLM,
    dev: Sequence[Prepared],
    firsts: Sequence[Generation],
    lasts: Sequence[str],
    modules: Mapping[str, Any],
    log: Log,
) -> dict[str, Any]:
    """The threshold below which recursion pays on dev, recorded in the workspace.

    Args:
        firsts, lasts: what one pass and all passes answer to each dev question.
        modules: as `build_recursion.when` wants them.
    """
    tuned = tune_threshold(
        [confidence(one) for one in firsts],
        _right(config.surface, dev, [one.text for one in firsts]),
        _right(config.surface, dev, lasts),
        price=config.when.price,
        max_share=config.when.max_share,
    )
    folder = build_recursion.save_threshold(config, lm, tuned, modules, len(dev))
    log(
        f"second pass where the first answer's confidence is below {tuned.threshold:.4f}: {100 * tuned.share:.1f}% "
        f"of dev questions, EM {tuned.score:.3f} (never {tuned.never:.3f}, always {tuned.always:.3f}); {folder}"
    )
    return asdict(tuned)


def _right(surface: c.Surface, dev: Sequence[Prepared], answers: Sequence[str]) -> list[float]:
    """Exact match of each answer, with the surface that readers expect."""
    found = []
    for one, answer in zip(dev, answers, strict=True):
        texts = [kept.text for kept in one.packed.kept]
        text = clean(answer, texts, join_digits=surface.join_digits, as_in_passage=surface.as_in_passage)
        found.append(float(exact_match(text, one.question.answers)))
    return found
