"""Fusion by hand: Spider's rule with the list minimum, reciprocal ranks, ties by id, lambda tuned on dev."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from retrievers.bm25 import BM25Retriever
from retrievers.check import check_retriever
from retrievers.errors import RetrieverError
from retrievers.hybrid import HybridRetriever, fuse, tune_lambda
from retrievers.types import Hit, Passage


class Fixed:
    """Gives the same scores for every question, or the ones listed for it."""

    def __init__(self, scores: Mapping[str, float], *, text: str = "text of {}", mark: str | None = "mark") -> None:
        self.scores, self.text, self.mark = scores, text, mark
        self.asked: list[int] = []

    def retrieve(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        self.asked.append(k)
        best = sorted(self.scores.items(), key=lambda item: (-item[1], item[0]))[:k]
        return [[Hit(name, score, self.text.format(name)) for name, score in best] for _ in queries]

    def fingerprint(self) -> str | None:
        return self.mark


DENSE = {"a": 10.0, "b": 8.0, "c": 6.0}
BM25 = {"c": 5.0, "d": 4.0}


def ranked(hybrid: HybridRetriever, k: int = 10) -> list[tuple[str, float]]:
    return [(hit.passage_id, hit.score) for hit in hybrid.retrieve(["q"], k)[0]]


def test_spiders_rule_by_hand() -> None:
    hybrid = HybridRetriever({"dense": Fixed(DENSE), "bm25": Fixed(BM25)}, lambda_=0.5)
    # a: 10 + 4/2, b: 8 + 4/2, c: 6 + 5/2, d: the dense minimum 6 + 4/2
    assert ranked(hybrid) == [("a", 12.0), ("b", 10.0), ("c", 8.5), ("d", 8.0)]
    assert ranked(hybrid, 2) == [("a", 12.0), ("b", 10.0)]
    assert hybrid.retrieve(["q"], 4)[0][2].meta["member_scores"] == {"dense": 6.0, "bm25": 5.0}
    assert hybrid.retrieve(["q"], 4)[0][3].meta["member_scores"] == {"bm25": 4.0}
    assert hybrid.rank(["q"], 4) == [ranked(hybrid)]


def test_reciprocal_ranks_by_hand() -> None:
    members = {"dense": Fixed(DENSE), "bm25": Fixed(BM25)}
    hybrid = HybridRetriever(members, rule="rrf", rrf_k=1, weights={"bm25": 3})
    # a 1/2, b 1/3, c 1/4 + 3/2, d 3/3
    assert ranked(hybrid) == [("c", 1.75), ("d", 1.0), ("a", 0.5), ("b", pytest.approx(1 / 3))]


def test_a_member_that_finds_nothing_adds_nothing() -> None:
    hybrid = HybridRetriever({"dense": Fixed(DENSE), "bm25": Fixed({})})
    assert ranked(hybrid) == [("a", 10.0), ("b", 8.0), ("c", 6.0)]
    assert HybridRetriever({"x": Fixed({}), "y": Fixed({})}).retrieve(["q", "r"], 5) == [[], []]


def test_ties_are_broken_by_id() -> None:
    scores = {"x": {"b": 1.0, "a": 0.0}, "y": {"a": 1.0, "b": 0.0}}
    assert fuse(scores, weights={"x": 1, "y": 1}) == [("a", 1.0), ("b", 1.0)]


def test_three_members_and_depth() -> None:
    members = {"x": Fixed(DENSE), "y": Fixed(BM25), "z": Fixed({"e": 100.0})}
    hybrid = HybridRetriever(members, weights={"x": 0.0}, depth=2)
    # x weighs nothing, but what it found is still there with the others' minima; c is beyond x's depth.
    assert ranked(hybrid) == [("c", 105.0), ("a", 104.0), ("b", 104.0), ("d", 104.0), ("e", 104.0)]
    assert members["x"].asked == [10]
    hybrid.retrieve(["q"], 1)
    assert members["x"].asked == [10, 2]


def test_texts_are_taken_from_whichever_list_has_them() -> None:
    hybrid = HybridRetriever({"dense": Fixed(DENSE, text=""), "bm25": Fixed(BM25)})
    texts = {hit.passage_id: hit.text for hit in hybrid.retrieve(["q"], 4)[0]}
    assert texts == {"a": "", "b": "", "c": "text of c", "d": "text of d"}


def test_the_member_that_breaks_its_contract_is_named() -> None:
    hybrid = HybridRetriever({"good": Fixed(DENSE), "bad": Fixed({"a": float("nan")})})
    with pytest.raises(RetrieverError, match=r"hybrid member 'bad' \(.*Fixed\): query 0 .* score is nan"):
        hybrid.retrieve(["q"], 3)


def test_fingerprint() -> None:
    def mark(**options: object) -> str | None:
        return HybridRetriever({"x": Fixed(DENSE), "y": Fixed(BM25)}, **options).fingerprint()  # type: ignore[arg-type]

    assert mark() == mark() == mark(lambda_=1.0)
    assert len({mark(), mark(lambda_=2.0), mark(rule="rrf"), mark(depth=5), mark(rrf_k=1)}) == 5
    other = {"x": Fixed(DENSE, mark="new"), "y": Fixed(BM25)}
    assert HybridRetriever(other).fingerprint() != mark()
    assert HybridRetriever({"x": Fixed(DENSE), "y": Fixed(BM25, mark=None)}).fingerprint() is None


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"rule": "sum"}, "rule is 'sum'"),
        ({"depth": 0}, "depth is 0"),
        ({"rrf_k": -1}, "rrf_k -1"),
        ({"weights": {"z": 1}}, r"weights for \['z'\]"),
        ({"weights": {"x": -1}}, "weights are"),
        ({"weights": {"x": 0, "y": 0}}, "not all 0"),
        ({"weights": {"x": 1}, "lambda_": 1}, "without weights"),
    ],
)
def test_bad_arguments(options: dict[str, object], told: str) -> None:
    with pytest.raises(RetrieverError, match=told):
        HybridRetriever({"x": Fixed(DENSE), "y": Fixed(BM25)}, **options)  # type: ignore[arg-type]
    with pytest.raises(RetrieverError, match="at least two"):
        HybridRetriever({"x": Fixed(DENSE)})


class ByQuestion:
    def __init__(self, lists: Mapping[str, Mapping[str, float]]) -> None:
        self.lists = lists
        self.calls = 0

    def retrieve(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        self.calls += 1
        return [Fixed(self.lists[query], text="word {}").retrieve([query], k)[0] for query in queries]


def test_lambda_is_tuned_by_answers_or_qrels() -> None:
    # q1 wants a, which dense puts first; q2 wants d, which bm25 puts first by a wide margin: only 0.5 gets both.
    dense = ByQuestion({"q1": {"a": 3.0, "c": 2.5, "d": 2.0}, "q2": {"a": 3.0, "d": 2.9}})
    bm25 = ByQuestion({"q1": {"c": 1.5, "a": 0.0}, "q2": {"d": 9.0, "a": 1.0}})
    members = {"dense": dense, "bm25": bm25}
    grid = [2.0, 0.0, 0.1]
    expected = ((0.0, 0.5), (0.1, 1.0), (2.0, 0.5))
    by_answers = tune_lambda(members, ["q1", "q2"], answers=[["a"], ["d"]], grid=grid, k=1)
    assert (by_answers.best, by_answers.table, by_answers.measure) == (0.1, expected, "recall@1")
    by_qrels = tune_lambda(members, ["q1", "q2"], qrels=[{"a": 1}, {"d": 1}], grid=grid, k=1)
    assert (by_qrels.best, by_qrels.table, by_qrels.measure) == (0.1, expected, "nDCG@1")
    assert dense.calls == 2 and by_qrels.questions == 2
    with pytest.raises(RetrieverError, match="answers or qrels"):
        tune_lambda(members, ["q1"])
    with pytest.raises(RetrieverError, match="answers or qrels"):
        tune_lambda(members, ["q1", "q2"], answers=[["a"]])


def test_with_our_own_retrievers(tmp_path: Path) -> None:
    """Members that can rank without texts give the same hits as members that cannot."""
    passages = [Passage(f"p{i}", f"word{i % 3} common word{i % 5}", f"title {i}") for i in range(30)]
    BM25Retriever.build(passages, tmp_path / "x")
    BM25Retriever.build(passages, tmp_path / "y", k1=2.0, fields="text")
    x, y = BM25Retriever.open(tmp_path / "x"), BM25Retriever.open(tmp_path / "y")

    class Plain:
        def __init__(self, inner: BM25Retriever) -> None:
            self.inner = inner

        def retrieve(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
            return self.inner.retrieve(queries, k)

    fast, slow = HybridRetriever({"x": x, "y": y}), HybridRetriever({"x": Plain(x), "y": Plain(y)})
    queries = ["common word1", "word4 title 7", "nothing"]
    assert fast.retrieve(queries, 7) == slow.retrieve(queries, 7)
    check_retriever(fast, queries)
    assert fast.passage("p3") == passages[3] and fast.passage("none") is None
    fast.close()
    with pytest.raises(RetrieverError, match="closed"):
        x.retrieve(["word1"], 1)
