"""Likelihood re-ranking through the scorer protocol: prompts, order, windows, broken scorers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from retrievers.errors import RetrieverError
from retrievers.likelihood import LikelihoodReranker
from retrievers.types import Reranker, TextScorer
from tests.retrievers.toys import hit


class SharedWords:
    """log p = minus the number of the continuation's words that the prompt lacks. Remembers what it was asked."""

    fingerprint = "shared-words"

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.calls = 0

    def score_texts(self, prompts: Sequence[str], continuations: Sequence[str]) -> list[float]:
        self.calls += 1
        self.prompts += prompts
        return [
            -float(len(set(text.split()) - set(prompt.split())))
            for prompt, text in zip(prompts, continuations, strict=True)
        ]


HITS = [
    [hit("1", "a dog runs", 3), hit("2", "cat eats fish", 2, title="Red"), hit("3", "cat eats", 1)],
    [hit("4", "nothing", 1)],
]


def test_best_explained_question_first_in_one_call() -> None:
    scorer = SharedWords()
    assert isinstance(scorer, TextScorer)
    reranker = LikelihoodReranker(scorer)
    assert isinstance(reranker, Reranker)
    first, second = reranker.rerank(["red cat eats fish", "sleeps"], HITS, 2)
    # "Red" is not "red": one word missing beside the second passage, two beside the third, four beside the first.
    assert [(h.passage_id, h.score, h.rerank_score) for h in first] == [("2", 2, -1), ("3", 1, -2)]
    assert [(h.passage_id, h.rerank_score) for h in second] == [("4", -1)]
    assert scorer.calls == 1
    assert scorer.prompts[1] == "Passage: Red cat eats fish\nPlease write a question based on this passage.\nQuestion:"
    assert scorer.prompts[0].startswith("Passage: a dog runs\n")


def test_mean_over_tokens() -> None:
    reranker = LikelihoodReranker(SharedWords(), count_tokens=lambda text: len(text.split()))
    [[best]] = reranker.rerank(["red cat eats fish"], HITS[:1], 1)
    assert best.rerank_score == -1 / 4


def test_passage_is_cut_to_whole_words_that_fit_and_counted() -> None:
    scorer = SharedWords()
    reranker = LikelihoodReranker(
        scorer, prompt="{passage} ?", fits=lambda prompt, text: len((prompt + text).split()) <= 6
    )
    hits = [[hit("1", "one two three four five six seven"), hit("2", "one two")]]
    reranker.rerank(["a b"], hits, 2)
    assert scorer.prompts == ["one two three ?", "one two ?"]
    assert reranker.truncated_passages == 1


@pytest.mark.parametrize(
    ("limit", "kept"), [(7, "one two"), (8, "one two"), (6, "one"), (2, "on"), (13, "one two three")]
)
def test_limit_in_characters(limit: int, kept: str) -> None:
    scorer = SharedWords()
    LikelihoodReranker(scorer, prompt="{passage}", max_characters=limit).rerank(["q"], [[hit("1", "one two three")]], 1)
    assert scorer.prompts == [kept]


def test_question_that_never_fits_is_an_error() -> None:
    reranker = LikelihoodReranker(SharedWords(), fits=lambda prompt, text: len(text) < 5)
    with pytest.raises(RetrieverError, match="empty passage"):
        reranker.rerank(["far too long"], HITS[:1], 1)


def test_braces_in_texts_are_plain_characters() -> None:
    scorer = SharedWords()
    LikelihoodReranker(scorer, prompt="{passage}").rerank(["{what}"], [[hit("1", "{passage} {0}")]], 1)
    assert scorer.prompts == ["{passage} {0}"]


@pytest.mark.parametrize("scores", [[float("nan")] * 4, [float("-inf")] * 4, [0.0]])
def test_broken_scorer_is_refused(scores: list[float]) -> None:
    class Broken:
        def score_texts(self, prompts: Sequence[str], continuations: Sequence[str]) -> list[float]:
            return scores

    with pytest.raises(RetrieverError, match="scorer gave"):
        LikelihoodReranker(Broken()).rerank(["a", "b"], HITS, 2)


@pytest.mark.parametrize(
    "settings", [{"prompt": "no field"}, {"prompt": "{passage} {x}"}, {"continuation": "{"}, {"max_characters": 0}]
)
def test_bad_templates_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(RetrieverError):
        LikelihoodReranker(SharedWords(), **settings)  # type: ignore[arg-type]


def test_empty_lists_and_fingerprint() -> None:
    reranker = LikelihoodReranker(SharedWords())
    assert reranker.rerank(["a"], [[]], 3) == [[]]
    assert reranker.fingerprint() == LikelihoodReranker(SharedWords()).fingerprint()
    assert reranker.fingerprint() != LikelihoodReranker(SharedWords(), prompt="{passage}").fingerprint()
    with pytest.raises(RetrieverError, match="1 queries and 2 lists"):
        reranker.rerank(["a"], HITS, 1)


def test_the_retrievers_score_can_be_added() -> None:
    found = [[hit("1", "a dog runs", 3.0), hit("2", "cat eats fish", 1.0)]]
    # "cat eats": both words are missing beside the first passage (-2), none beside the second (0)
    plain = LikelihoodReranker(SharedWords()).rerank(["cat eats"], found, 2)[0]
    weighted = LikelihoodReranker(SharedWords(), retrieval_weight=2.0).rerank(["cat eats"], found, 2)[0]
    assert [h.passage_id for h in plain] == ["2", "1"]
    assert [(h.passage_id, h.rerank_score) for h in weighted] == [("1", 4.0), ("2", 2.0)]
