"""EM, F1 and sub-span EM, to the letter of the official scorer."""

import json
from pathlib import Path

import pytest

from pipelines.errors import ConfigError
from pipelines.evaluation.answers import exact_match, f1, subspan_em
from pipelines.evaluation.questions import read_questions


@pytest.mark.parametrize(
    ("prediction", "gold", "equal"),
    [
        ("U.S.", "US", True),
        ("The  Beatles!", "beatles", True),
        ("a an the", "The", True),
        ("theatre", "atre", False),
        ("twenty-one", "twenty one", False),
        ("twenty-one", "twentyone", True),
        ("1990–91", "1990-91", False),  # the en dash is no ASCII punctuation
        ("café", "cafe\u0301", False),
        ("1,350", "1350", True),
        ("", "x", False),
    ],
)
def test_exact_match(prediction: str, gold: str, equal: bool) -> None:
    assert exact_match(prediction, [gold]) is equal


def test_the_best_gold_answer_counts() -> None:
    assert exact_match("paris", ["London", "Paris"])
    assert f1("paris france", ["London", "Paris"]) == pytest.approx(2 * 0.5 * 1 / 1.5)


@pytest.mark.parametrize(
    ("prediction", "gold", "score"),
    [
        ("the cat sat", "cat sat down", 2 / 2 * 2 / 3 * 2 / (2 / 2 + 2 / 3)),
        ("cat cat", "cat", 2 * 0.5 * 1 / 1.5),
        ("dog", "cat", 0.0),
        ("", "cat", 0.0),
        ("the", "a", 0.0),  # nothing is left of either: SQuAD 1.1 gives 0
    ],
)
def test_f1(prediction: str, gold: str, score: float) -> None:
    assert f1(prediction, [gold]) == pytest.approx(score)


def test_subspan_em_is_gold_inside_prediction() -> None:
    assert subspan_em("It was Paris, I think.", ["paris"])
    assert subspan_em("parisian", ["Paris"])  # characters, not words: as published
    assert not subspan_em("Paris", ["Paris, France"])
    assert not subspan_em("anything", ["The"])


@pytest.mark.parametrize("answers", [[], [""], ["x", "  "], "Paris"])
@pytest.mark.parametrize("score", [exact_match, f1, subspan_em])
def test_blank_and_missing_answers_are_refused(score, answers) -> None:
    with pytest.raises(ConfigError, match="gold answers"):
        score("x", answers)


PUBLISHED = {
    "models-1.1_BERT__ensemble___Google_AI_Language_.json": (86.21, 92.20),
    "models-1.1_r-net+__ensemble___Microsoft_Research_Asia_.json": (82.47, 88.48),
    "models-1.1_SLQA+__ensemble___Alibaba_iDST_NLP_.json": (81.95, 88.38),
    "models-1.1_Match-LSTM_with_Ans-Ptr__Boundary+Ensemble___Singapore_Management_University_.json": (67.63, 76.76),
}


@pytest.mark.shared_data
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_squad_scores(name: str, shared_data: Path) -> None:
    questions = read_questions(shared_data / "data/squad/squad-dev-v1.1.json")
    predictions = json.loads((shared_data / "data/squad/published_predictions" / name).read_text())
    em = sum(q.id in predictions and exact_match(predictions[q.id], q.answers) for q in questions)
    overlap = sum(f1(predictions[q.id], q.answers) for q in questions if q.id in predictions)
    assert len(questions) == 10570
    assert 100 * em / len(questions) == pytest.approx(PUBLISHED[name][0], abs=0.01)
    assert 100 * overlap / len(questions) == pytest.approx(PUBLISHED[name][1], abs=0.01)
