"""The scores of tasks: of chosen classes (accuracy, macro-F1, Matthews correlation) and of written texts (exact match,
F1, ROUGE, BLEU).

Every score is a function of means over examples, and `Measure` holds both parts: what each example adds, and the
function. So one bootstrap gives the interval of any of them, a corpus score such as BLEU included.

    macro_f1         mean of 2 tp / (gold + predicted) over the classes that are gold or predicted at least once
    matthews         R_K for any number of classes (Gorodkin 2004); 0 where it is 0 / 0
    em, f1           SQuAD's (`answers.py`), the best over the references
    rouge1, 2, L     F-measures of the package rouge-score (Lin 2004), no stemming, the best over the references; it
                     knows ASCII letters and digits only
    bleu             of the corpus, by the package sacrebleu (Post 2018, arXiv 1804.08771): all references at once,
                     tokenizer 13a, smoothing exp; divided by 100

Scores lie in [0, 1], `matthews` in [-1, 1]. Shapes: N examples, M numbers of each, B samples of examples, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

from pipelines.errors import ConfigError, MissingExtraError, ShapeError
from pipelines.evaluation.answers import exact_match, f1
from pipelines.evaluation.statistics import Floats, bootstrap, resampled_means, wilson

CLASS_FIGURES = ("accuracy", "macro_f1", "matthews")
TEXT_FIGURES = ("em", "f1", "rouge1", "rouge2", "rougeL", "bleu")
_GROUPS = {"em_f1": ("em", "f1"), "rouge": ("rougeL", "rouge1", "rouge2")}
METRICS = (*CLASS_FIGURES, *TEXT_FIGURES, *_GROUPS)
"""What a task can name as its metric."""


def figures_of(metric: str) -> tuple[str, ...]:
    """The figures that a metric stands for; the first is the task's score.

    Raises:
        ConfigError: unknown metric.
        MissingExtraError: its package is not installed.
    """
    if metric not in METRICS:
        raise ConfigError(f"unknown metric {metric!r}; expected one of {', '.join(METRICS)}")
    figures = _GROUPS.get(metric, (metric,))
    for figure in figures:
        package = "rouge_score" if figure.startswith("rouge") else "sacrebleu" if figure == "bleu" else None
        if package is not None and find_spec(package) is None:
            raise MissingExtraError(
                f"the metric {metric} needs the package {package}, which is not installed; "
                'run: pip install "frozenlm[text-metrics]", or choose another metric'
            )
    return figures


def _first(means: Floats) -> Floats:
    return means[:, 0]


@dataclass(frozen=True, eq=False)
class Measure:
    """One figure of N examples.

    Args:
        values: [N, M] what each example adds.
        statistic: means [B, M] -> scores [B].
        yes_or_no: whether the values are one column of 0 and 1.
    """

    values: Floats
    statistic: Callable[[Floats], Floats] = _first
    yes_or_no: bool = False

    @property
    def score(self) -> float:
        """The figure over all examples."""
        return float(self.statistic(self.values.mean(axis=0, keepdims=True))[0])

    def draws(self, *, resamples: int = 2000, seed: int = 0) -> Floats:
        """[resamples] scores of bootstrap samples of the examples."""
        return self.statistic(resampled_means(self.values, resamples=resamples, seed=seed))

    def interval(self, *, seed: int = 0) -> list[float] | None:
        """95%: Wilson's for a share of examples, else the percentile bootstrap's."""
        if self.yes_or_no:
            return list(wilson(self.score, len(self.values)))
        found = bootstrap(self.values, self.statistic, seed=seed)
        return None if found is None else list(found)


def class_measure(figure: str, predicted: Sequence[int], gold: Sequence[int]) -> Measure:
    """A figure of classification.

    Args:
        figure: one of `CLASS_FIGURES`.
        predicted, gold: N class numbers each, from 0.

    Raises:
        ConfigError: unknown figure.
        ShapeError: no examples, or lists of two lengths.
    """
    _check_lengths(len(predicted), len(gold))
    first, second = np.asarray(gold), np.asarray(predicted)
    if figure == "accuracy":
        return Measure((first == second).astype(np.float64)[:, None], yes_or_no=True)
    k = int(max(first.max(), second.max())) + 1
    confusion = np.zeros((len(first), k * k))
    confusion[np.arange(len(first)), first * k + second] = 1.0
    if figure == "macro_f1":
        return Measure(confusion, _macro_f1)
    if figure == "matthews":
        return Measure(confusion, _matthews)
    raise ConfigError(f"unknown figure of classification {figure!r}; expected one of {', '.join(CLASS_FIGURES)}")


def text_measure(figure: str, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Measure:
    """A figure of written texts.

    Args:
        figure: one of `TEXT_FIGURES`.
        predictions: N texts; may be empty ones.
        references: for each, one or more texts that would be right, none blank.

    Raises:
        ConfigError: unknown figure, or an example without references or with a blank one.
        MissingExtraError: its package is not installed.
        ShapeError: no examples, or lists of two lengths.
    """
    _check_lengths(len(predictions), len(references))
    figures_of(figure)
    for number, golds in enumerate(references):
        if isinstance(golds, str) or not golds or not all(gold.strip() for gold in golds):
            raise ConfigError(f"example {number} has the references {golds!r}; expected texts that are not blank")
    pairs = list(zip(predictions, references, strict=True))
    if figure == "em":
        return Measure(np.array([[float(exact_match(*pair))] for pair in pairs]), yes_or_no=True)
    if figure == "f1":
        return Measure(np.array([[f1(*pair)] for pair in pairs]))
    if figure == "bleu":
        return _bleu(pairs)
    if figure in TEXT_FIGURES:
        return _rouge(figure, pairs)
    raise ConfigError(f"unknown figure of texts {figure!r}; expected one of {', '.join(TEXT_FIGURES)}")


def majority_share(gold: Sequence[int]) -> float:
    """Accuracy of always answering with the commonest class."""
    return float(np.bincount(np.asarray(gold)).max()) / len(gold)


def _macro_f1(means: Floats) -> Floats:
    tables = _tables(means)
    right, both = np.einsum("bkk->bk", tables), tables.sum(axis=1) + tables.sum(axis=2)
    occurs = both > 0
    each = np.divide(2 * right, both, out=np.zeros_like(both), where=occurs)
    shares: Floats = each.sum(axis=1) / occurs.sum(axis=1)
    return shares


def _matthews(means: Floats) -> Floats:
    tables = _tables(means)
    predicted, gold = tables.sum(axis=1), tables.sum(axis=2)
    together = np.einsum("bkk->b", tables) - (predicted * gold).sum(axis=1)
    spread = (1 - (predicted**2).sum(axis=1)) * (1 - (gold**2).sum(axis=1))
    varies = spread > 1e-12
    return np.divide(together, np.sqrt(np.abs(spread)), out=np.zeros_like(together), where=varies)


def _tables(means: Floats) -> Floats:
    """[B, K * K] -> [B, K, K]: gold class by predicted class."""
    k = round(means.shape[1] ** 0.5)
    return means.reshape(len(means), k, k)


def _rouge(figure: str, pairs: Sequence[tuple[str, Sequence[str]]]) -> Measure:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([figure])
    return Measure(np.array([[scorer.score_multi(list(golds), text)[figure].fmeasure] for text, golds in pairs]))


def _bleu(pairs: Sequence[tuple[str, Sequence[str]]]) -> Measure:
    """Each example adds its n-grams, those that match, its length and that of the closest reference."""
    from sacrebleu.metrics.bleu import BLEU

    scorer = BLEU(effective_order=True)  # sentence by sentence; of no effect on the counts
    found = [scorer.sentence_score(text, list(golds)) for text, golds in pairs]
    values = np.array([[*one.counts, *one.totals, one.sys_len, one.ref_len] for one in found], dtype=np.float64)
    n = len(values)

    def corpus_bleu(means: Floats) -> Floats:
        sums = np.rint(means * n).astype(int).tolist()  # smoothing depends on counts, not on their means
        return np.array([BLEU.compute_bleu(s[:4], s[4:8], s[8], s[9], smooth_method="exp").score / 100 for s in sums])

    return Measure(values, corpus_bleu)


def _check_lengths(one: int, other: int) -> None:
    if one != other or one == 0:
        raise ShapeError(f"expected as many predictions as examples and at least one, got {one} and {other}")
