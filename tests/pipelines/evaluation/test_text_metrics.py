"""Scores of tasks against arithmetic done by hand, and against the packages' own corpus functions."""

import math
from importlib.util import find_spec

import numpy as np
import pytest

from pipelines.errors import ConfigError, MissingExtraError, ShapeError
from pipelines.evaluation import text_metrics
from pipelines.evaluation.text_metrics import METRICS, class_measure, figures_of, majority_share, text_measure

needs_rouge = pytest.mark.skipif(find_spec("rouge_score") is None, reason="needs frozenlm[text-metrics]")
needs_sacrebleu = pytest.mark.skipif(find_spec("sacrebleu") is None, reason="needs frozenlm[text-metrics]")

# Gold 0 0 0 1 1 2; right: two of class 0, one of class 1, none of class 2.
GOLD = [0, 0, 0, 1, 1, 2]
SAID = [0, 0, 1, 1, 0, 0]


def test_accuracy_and_its_wilson_interval() -> None:
    measure = class_measure("accuracy", SAID, GOLD)
    assert measure.score == 3 / 6
    low, high = measure.interval()
    assert (low, high) == (pytest.approx(0.1876, abs=1e-4), pytest.approx(0.8124, abs=1e-4))


def test_macro_f1_by_hand() -> None:
    # 2 tp / (gold + predicted): 4 / (3 + 4), 2 / (2 + 2), 0 / (1 + 0)
    assert class_measure("macro_f1", SAID, GOLD).score == pytest.approx((4 / 7 + 1 / 2 + 0) / 3)


def test_macro_f1_leaves_out_a_class_that_nobody_named() -> None:
    assert class_measure("macro_f1", [0, 0, 2, 0], [0, 0, 2, 2]).score == pytest.approx((4 / 5 + 2 / 3) / 2)


def test_matthews_of_two_classes_by_hand() -> None:
    # tp 6, tn 3, fp 1, fn 2: (6*3 - 1*2) / sqrt(7 * 8 * 4 * 5)
    gold = [1] * 8 + [0] * 4
    said = [1] * 6 + [0] * 2 + [1] + [0] * 3
    assert class_measure("matthews", said, gold).score == pytest.approx(16 / math.sqrt(1120))


def test_matthews_of_three_classes_by_hand() -> None:
    # Gorodkin's R_K: c s - sum p t = 3*6 - (4*3 + 2*2 + 0*1) = 2; 36 - (16+4+0) = 16; 36 - (9+4+1) = 22
    assert class_measure("matthews", SAID, GOLD).score == pytest.approx(2 / math.sqrt(16 * 22))


@pytest.mark.parametrize(("said", "score"), [([0, 0, 1, 1], 1.0), ([1, 1, 0, 0], -1.0), ([1, 1, 1, 1], 0.0)])
def test_matthews_at_its_ends(said: list[int], score: float) -> None:
    assert class_measure("matthews", said, [0, 0, 1, 1]).score == pytest.approx(score)


def test_classes_against_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    for k in (2, 3, 6):
        gold, noise = rng.integers(k, size=200), rng.integers(k, size=200)
        said = np.where(rng.random(200) < 0.5, gold, noise)
        ours = {name: class_measure(name, said.tolist(), gold.tolist()).score for name in ("macro_f1", "matthews")}
        assert ours["macro_f1"] == pytest.approx(metrics.f1_score(gold, said, average="macro"))
        assert ours["matthews"] == pytest.approx(metrics.matthews_corrcoef(gold, said))


def test_majority() -> None:
    assert majority_share(GOLD) == 3 / 6


def test_em_and_f1_take_the_best_reference() -> None:
    said, golds = ["The Nile.", "a b c"], [["Amazon", "nile"], ["b c d", "x"]]
    assert text_measure("em", said, golds).score == 0.5
    # "a b c" is "b c" without its article; of "b c d" it has two of three words: precision 1, recall 2/3, F1 4/5.
    assert text_measure("f1", said, golds).score == pytest.approx((1 + 4 / 5) / 2)


@needs_rouge
def test_rouge_by_hand() -> None:
    said, golds = ["the cat sat on the mat"], [["the cat is on the mat", "dogs"]]
    # shared words: the cat on the mat, 5 of 6 and 6; bigrams: the-cat, on-the, the-mat, 3 of 5 and 5; LCS 5
    assert text_measure("rouge1", said, golds).score == pytest.approx(5 / 6)
    assert text_measure("rouge2", said, golds).score == pytest.approx(3 / 5)
    assert text_measure("rougeL", said, golds).score == pytest.approx(5 / 6)


@needs_rouge
def test_rouge_as_in_the_packages_own_example() -> None:
    """The two sentences of rouge-score's README."""
    target, said = "The quick brown fox jumps over the lazy dog", "The quick brown dog jumps on the log."
    # shared: the quick brown dog jumps the = 6 of 9 and of 8 words; LCS: the quick brown jumps the = 5
    assert text_measure("rouge1", [said], [[target]]).score == pytest.approx(2 * 6 / (9 + 8))
    assert text_measure("rougeL", [said], [[target]]).score == pytest.approx(2 * 5 / (9 + 8))


@needs_rouge
def test_rouge_has_no_stemming_and_takes_the_maximum() -> None:
    assert text_measure("rouge1", ["cats"], [["cat"]]).score == 0.0
    assert text_measure("rouge1", ["cats", ""], [["cat", "cats sat"], ["dog"]]).score == pytest.approx((2 / 3 + 0) / 2)


# sacrebleu's README, "Using SacreBLEU from Python": three outputs, two sets of references; BLEU 48.53.
OUTPUTS = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
REFERENCES = [
    ["The dog bit the man.", "The dog had bit the man."],
    ["It was not unexpected.", "No one was surprised."],
    ["The man bit him first.", "The man had bitten the dog."],
]


@needs_sacrebleu
def test_bleu_as_in_the_packages_own_example() -> None:
    assert round(100 * text_measure("bleu", OUTPUTS, REFERENCES).score, 2) == 48.53


@needs_sacrebleu
def test_bleu_by_hand() -> None:
    # "a b c d e" against "a b c d x": precisions 4/5, 3/4, 2/3, 1/2, no brevity penalty
    measure = text_measure("bleu", ["a b c d e"], [["a b c d x"]])
    assert measure.score == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)


@needs_sacrebleu
def test_bleu_is_sacrebleus_with_any_number_of_references() -> None:
    import sacrebleu

    said = [*OUTPUTS, "", "a", "one two three four five six"]
    golds = [*REFERENCES[:2], REFERENCES[2][:1], ["something"], ["a"], ["one two three four six", "x", "y z"]]
    streams = [[(row[i] if i < len(row) else None) for row in golds] for i in range(3)]
    theirs = sacrebleu.corpus_bleu(said, streams).score / 100
    assert text_measure("bleu", said, golds).score == pytest.approx(theirs, abs=1e-12)


@needs_sacrebleu
def test_bootstrap_of_bleu_draws_whole_examples() -> None:
    import sacrebleu

    measure = text_measure("bleu", OUTPUTS, REFERENCES)
    possible = {
        round(
            sacrebleu.corpus_bleu([OUTPUTS[i] for i in ids], [[REFERENCES[i][j] for i in ids] for j in (0, 1)]).score, 6
        )
        for ids in np.ndindex(3, 3, 3)
    }
    assert {round(100 * score, 6) for score in measure.draws(resamples=300)} == possible
    low, high = measure.interval()
    assert low <= measure.score <= high


@pytest.mark.parametrize("figure", ["macro_f1", "matthews"])
def test_bootstrap_of_classes_draws_whole_examples(figure: str) -> None:
    draws = class_measure(figure, SAID, GOLD).draws(resamples=50, seed=3)
    again = class_measure(figure, SAID, GOLD).draws(resamples=50, seed=3)
    assert draws.tolist() == again.tolist() and np.isfinite(draws).all()
    same = class_measure(figure, [0, 1] * 20, [0, 1] * 20)
    assert same.interval() == [1.0, 1.0]


@needs_rouge
@needs_sacrebleu
def test_what_a_metric_stands_for() -> None:
    assert figures_of("rouge")[0] == "rougeL"
    assert figures_of("em_f1") == ("em", "f1")
    assert (figures_of("accuracy"), figures_of("bleu")) == (("accuracy",), ("bleu",))
    assert {figures_of(metric)[0] for metric in METRICS} <= set(METRICS)


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_metrics, "find_spec", lambda name: None)
    for metric in ("rouge", "bleu", "rouge2"):
        with pytest.raises(MissingExtraError, match=r"frozenlm\[text-metrics\]"):
            figures_of(metric)
    assert text_measure("em", ["a"], [["b"]]).score == 0.0


@needs_rouge
def test_bad_input() -> None:
    with pytest.raises(ConfigError, match="unknown metric 'meteor'"):
        figures_of("meteor")
    with pytest.raises(ConfigError, match="unknown figure of texts 'accuracy'"):
        text_measure("accuracy", ["a"], [["a"]])
    with pytest.raises(ConfigError, match="unknown figure of classification 'em'"):
        class_measure("em", [0], [0])
    with pytest.raises(ShapeError, match="got 1 and 2"):
        class_measure("accuracy", [0], [0, 1])
    with pytest.raises(ShapeError, match="got 0 and 0"):
        text_measure("em", [], [])
    for golds in ([], [" "], "text"):
        with pytest.raises(ConfigError, match="example 1 has the references"):
            text_measure("rouge1", ["a", "b"], [["a"], golds])
