"""Result files: what is written is read back in the same order; a re-ranked list stays re-ranked."""

import json
from pathlib import Path

import pytest

from retrievers.check import check_retriever
from retrievers.errors import CorpusError, RetrieverError
from retrievers.passage_writer import write_passages
from retrievers.runs import (
    PrecomputedRetriever,
    read_dpr_json,
    read_qrels,
    read_trec_run,
    write_dpr_json,
    write_trec_run,
)
from retrievers.types import Hit, Passage

# The retriever liked a best, the re-ranker b.
RERANKED = [Hit("b", 1.0, "text b", "B").with_rerank_score(7.5), Hit("a", 2.0, "text a").with_rerank_score(-0.1)]
PLAIN = [Hit("z", 1 / 3, "the year 1973", "Z"), Hit("a", 1 / 3, "text a")]


def test_a_trec_run_comes_back_in_its_order(tmp_path: Path) -> None:
    path = tmp_path / "run.trec"
    write_trec_run(path, {"q2": PLAIN, "q1": RERANKED, "q0": []}, tag="mine")
    assert path.read_text().splitlines()[0] == "q2 Q0 z 1 0.3333333333333333 mine"
    run = read_trec_run(path)
    assert {q: [(e.passage_id, e.rank, e.score) for e in found] for q, found in run.items()} == {
        "q2": [("z", 1, 1 / 3), ("a", 2, 1 / 3)],
        "q1": [("b", 1, 7.5), ("a", 2, -0.1)],
    }


def test_ranks_win_over_scores_and_the_order_of_lines(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("q Q0 low 2 9.0 t\nq Q0 high 1 3.0 t\n")
    assert [entry.passage_id for entry in read_trec_run(tmp_path / "run")["q"]] == ["high", "low"]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("q Q0 a 1 0.5", r"run:2: 'q Q0 a 1 0.5'"),
        ("q Q0 a one 0.5 t", "expected: question Q0"),
        ("q Q0 a 1 nan t", "score is nan"),
        ("q Q0 first 2 0.1 t", r"run:2: passage 'first' occurs twice"),
    ],
)
def test_malformed_runs(tmp_path: Path, line: str, told: str) -> None:
    (tmp_path / "run").write_text(f"q Q0 first 1 1.0 t\n{line}\n")
    with pytest.raises(CorpusError, match=told):
        read_trec_run(tmp_path / "run")
    with pytest.raises(CorpusError, match="there is no file"):
        read_trec_run(tmp_path / "gone")


def test_ids_that_a_run_cannot_hold(tmp_path: Path) -> None:
    for run, tag in (({"a b": PLAIN}, "t"), ({"": PLAIN}, "t"), ({"q": [Hit("p 1", 1.0, "")]}, "t"), ({}, "a b")):
        with pytest.raises(RetrieverError, match="white space"):
            write_trec_run(tmp_path / "run", run, tag=tag)
    assert list(tmp_path.iterdir()) == []


def test_qrels_of_trec_and_beir(tmp_path: Path) -> None:
    (tmp_path / "trec").write_text("q1 0 a 1\nq1 0 b 0\nq2 0 a 2\n")
    (tmp_path / "beir.tsv").write_text("query-id\tcorpus-id\tscore\nq1\ta\t1\nq1\tb\t0\nq2\ta\t2\n")
    assert (
        read_qrels(tmp_path / "trec") == read_qrels(tmp_path / "beir.tsv") == {"q1": {"a": 1, "b": 0}, "q2": {"a": 2}}
    )
    for bad, told in (("q1 a\n", "columns|expected"), ("q1 0 a yes\n", "expected"), ("q 0 a b 1\n", "5 columns")):
        (tmp_path / "bad").write_text(bad)
        with pytest.raises(CorpusError, match=told):
            read_qrels(tmp_path / "bad")


def test_dpr_json_comes_back_in_its_order(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    write_dpr_json(path, ["when’s that", "q2"], [["1973"], ["b"]], [PLAIN, RERANKED])
    raw = json.loads(path.read_text())
    assert [context["has_answer"] for context in raw[0]["ctxs"]] == [True, False]
    assert raw[1]["ctxs"][0] == {
        "id": "b", "title": "B", "text": "text b", "score": 1.0, "has_answer": True, "rerank_score": 7.5,
    }  # fmt: skip
    first, second = read_dpr_json(path)
    assert (first.question, first.answers, list(first.hits)) == ("when’s that", ("1973",), PLAIN)
    assert list(second.hits) == RERANKED


def test_dprs_own_files_have_scores_as_texts(tmp_path: Path) -> None:
    record = {
        "question": "q",
        "answers": ["x"],
        "ctxs": [{"id": "wiki:1", "title": None, "text": "t", "score": "82.5"}],
    }
    (tmp_path / "dpr.json").write_text(json.dumps([record]))
    assert read_dpr_json(tmp_path / "dpr.json")[0].hits == (Hit("wiki:1", 82.5, "t"),)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "not a DPR retrieval file"),
        ("{}", "JSON dict, expected a list"),
        ("[3]", "record 0"),
        ('[{"question": "q", "ctxs": []}, {"question": "q"}]', "record 1: KeyError"),
        ('[{"question": "q", "ctxs": [{"id": 1, "text": "t", "score": "x"}]}]', "record 0"),
        ('[{"question": "q", "ctxs": [{"id": 1, "text": "t", "score": NaN}]}]', "not finite"),
        ('[{"question": "q", "ctxs": [{"id": 1, "text": "t"}, {"id": 1, "text": "t"}]}]', "occurs twice"),
    ],
)
def test_malformed_dpr_files(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "dpr.json").write_text(content)
    with pytest.raises(CorpusError, match=told):
        read_dpr_json(tmp_path / "dpr.json")


def test_lists_of_different_lengths_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(RetrieverError, match="2 questions, 1 answer lists, 1 results"):
        write_dpr_json(tmp_path / "x", ["a", "b"], [["x"]], [PLAIN])


class TestPrecomputed:
    def test_results_of_a_dpr_file_take_our_retrievers_place(self, tmp_path: Path) -> None:
        path = tmp_path / "found.json"
        write_dpr_json(path, ["when’s that", "q2"], [["1973"], ["b"]], [PLAIN, RERANKED])
        ours = PrecomputedRetriever.from_dpr_json(path)
        check_retriever(ours, ["when’s that", "q2"])
        assert ours.retrieve(["q2", "when's that "], 1) == [RERANKED[:1], PLAIN[:1]]
        assert ours.retrieve(["q2"], 100) == [RERANKED]
        with pytest.raises(RetrieverError, match="no precomputed results for the question 'q3'"):
            ours.retrieve(["q3"], 1)
        assert ours.fingerprint() == PrecomputedRetriever.from_dpr_json(path).fingerprint()

    def test_an_order_that_scores_do_not_tell_is_kept(self) -> None:
        ours = PrecomputedRetriever({"q": [Hit("b", 1.0, "t"), Hit("a", 2.0, "t"), Hit("c", 1.5, "t")]})
        check_retriever(ours, ["q"])
        found = ours.retrieve(["q"], 3)[0]
        assert [(hit.passage_id, hit.score, hit.meta["file_score"]) for hit in found] == [
            ("b", -1.0, 1.0),
            ("a", -2.0, 2.0),
            ("c", -3.0, 1.5),
        ]
        assert ours.fingerprint() is None

    def test_a_trec_run_with_its_passages(self, tmp_path: Path) -> None:
        store = write_passages([Passage("a", "text a", "A"), Passage("b", "text b")], tmp_path / "store")
        (tmp_path / "run").write_text("1 Q0 b 1 3.5 t\n1 Q0 a 2 3.0 t\n")
        ours = PrecomputedRetriever.from_trec_run(tmp_path / "run", questions={"1": "who"}, passages=store)
        assert ours.retrieve(["who"], 5) == [[Hit("b", 3.5, "text b"), Hit("a", 3.0, "text a", "A")]]
        with pytest.raises(CorpusError, match="question '1', which is not among"):
            PrecomputedRetriever.from_trec_run(tmp_path / "run", questions={}, passages=store)
        (tmp_path / "run").write_text("1 Q0 x 1 3.5 t\n")
        with pytest.raises(CorpusError, match="passage 'x'"):
            PrecomputedRetriever.from_trec_run(tmp_path / "run", questions={"1": "who"}, passages=store)
