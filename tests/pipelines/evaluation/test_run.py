"""A whole evaluation of a toy pipeline: every figure by hand, every file, and going on after a stop."""

import json
import math
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.answer import Answer
from pipelines.errors import ConfigError, FrozenLMError, ShapeError
from pipelines.evaluation.questions import Question
from pipelines.evaluation.run import evaluate
from retrievers.runs import PrecomputedRetriever, read_dpr_json, read_trec_run
from tests.patience import PATIENCE
from tests.pipelines.evaluation.toy_pipeline import PASSAGES, ToyPipeline, questions

ROOT = Path(__file__).resolve().parents[3]


def run(pipeline: ToyPipeline, out: Path, asked: list[Question] | None = None, **settings) -> dict:
    return evaluate(pipeline, asked or questions(), out, progress=False, **({"chunk": 8} | settings))


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def without_times(out: Path) -> list[dict]:
    return [row | {"timings": None} for row in rows(out)]


def test_figures_by_hand(tmp_path: Path) -> None:
    metrics = run(ToyPipeline(), tmp_path, recall_at=[1, 3])
    # Retrieval finds thing i first; 8 of 40 questions have an answer that stands nowhere; the others are read right.
    assert (metrics["n"], metrics["em"], metrics["f1"], metrics["subspan_em"]) == (40, 0.8, 0.8, 0.8)
    assert metrics["recall_at"] == {"1": 0.8, "3": 0.8}
    assert metrics["recall_at_context"] == 0.8
    assert (metrics["em_given_context"], metrics["em_where_in_context"]) == (1.0, 1.0)
    assert (metrics["mrr"], metrics["ndcg@10"], metrics["gold_recall_at"]) == (1.0, 1.0, {"1": 1.0, "3": 1.0})
    # "question : who made thing 3 ? answer :" is 9 tokens, "title : Thing 3 text : " and 8 words are 14. Of a
    # window of 48, 8 are the answer's: 31 are left for passages.
    assert metrics["passages_in_context"] == 2.0
    assert metrics["tokens_in_context"] == 9 + 2 * 14
    assert metrics["dropped_share"] == 1.0
    assert metrics["dropped"] == {"window": 120, "duplicate": 0, "title_cap": 0, "max_passages": 0}
    assert metrics["truncated"] == 0
    assert metrics["seconds"] == {"retrieve": 10.0, "read": 20.0}
    assert metrics["questions_per_second"] == {"retrieve": 4.0, "read": 2.0}
    low, high = metrics["ci95"]["em"]
    assert 0.64 < low < 0.8 < high < 0.91
    assert metrics["ci95"]["em_given_context"] == [1.0, 1.0]
    assert metrics["ci95"]["recall_at"]["1"] == [low, high]
    assert (metrics["matcher"], metrics["oracle"], metrics["seed"], metrics["lm_weights_changed"]) == (
        "dpr",
        False,
        0,
        None,
    )
    assert len(metrics["questions_sha256"]) == 64 and metrics["pipeline"] == "toy"
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics


def test_rows_and_retrieval_files(tmp_path: Path) -> None:
    run(ToyPipeline(), tmp_path, chunk=7)
    first, fifth = rows(tmp_path)[0], rows(tmp_path)[4]
    assert first["id"] == "q0" and first["prediction"] == "Maker0" and first["em"] is True
    assert first["context"][-1] == "p00" and first["answer_in_context"] is True  # best last
    assert (first["answer_rank"], first["passages"], first["score"]) == (1, 5, -1.5)
    assert (fifth["em"], fifth["answer_in_context"], fifth["answer_rank"], fifth["gold_ranks"]) == (
        False,
        False,
        None,
        [1],
    )
    trec = read_trec_run(tmp_path / "retrieval.trec")
    assert list(trec) == [f"q{i}" for i in range(40)]
    assert trec["q3"][0].passage_id == "p03"
    dpr = read_dpr_json(tmp_path / "retrieval.json")
    assert len(dpr) == 40 and dpr[3].hits[0].passage_id == "p03"
    raw = json.loads((tmp_path / "retrieval.json").read_text())
    assert raw[3]["ctxs"][0]["has_answer"] is True and raw[4]["ctxs"][0]["has_answer"] is False
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checksums.json", "metrics.json", "predictions.jsonl", "retrieval.json", "retrieval.trec", "run.json",
    ]  # fmt: skip


def test_a_reranked_list_keeps_its_order_in_every_file(tmp_path: Path) -> None:
    metrics = run(ToyPipeline(reverse=True), tmp_path, recall_at=[1, 5])
    assert metrics["recall_at"]["1"] < metrics["retriever_recall_at"]["1"] == 0.8
    assert metrics["mrr"] == pytest.approx(1 / 5)
    assert metrics["ndcg@10"] == pytest.approx(1 / math.log2(6))
    order = [entry.passage_id for entry in read_trec_run(tmp_path / "retrieval.trec")["q0"]]
    assert order[-1] == "p00"
    served = PrecomputedRetriever.from_dpr_json(tmp_path / "retrieval.json").retrieve(["who made thing 0 ?"], 5)
    assert [hit.passage_id for hit in served[0]] == order


def test_scores_that_do_not_fall_are_written_as_ranks(tmp_path: Path) -> None:
    class Unsorted(ToyPipeline):
        def answer(self, texts, hits=None):
            return [replace(a, passages=a.passages[::-1]) for a in super().answer(texts, hits)]

    run(Unsorted(), tmp_path)
    entries = read_trec_run(tmp_path / "retrieval.trec")["q0"]
    assert [entry.score for entry in entries] == [-1.0, -2.0, -3.0, -4.0, -5.0]


def test_em_given_context_counts_lucky_answers_and_the_conditional_share_does_not(tmp_path: Path) -> None:
    class Lucky(ToyPipeline):
        def answer(self, texts, hits=None):
            return [replace(a, text="Nobody") for a in super().answer(texts, hits)]

    metrics = run(Lucky(), tmp_path)
    assert (metrics["em"], metrics["recall_at_context"]) == (0.2, 0.8)
    assert (metrics["em_given_context"], metrics["em_where_in_context"]) == (0.25, 0.0)


def test_oracle_reads_gold_passages(tmp_path: Path) -> None:
    metrics = run(ToyPipeline(retrieves=False), tmp_path, oracle=True)
    assert metrics["oracle"] is True
    assert metrics["passages_in_context"] == 1.0
    assert metrics["dropped_share"] == 0.0
    assert metrics["em"] == 0.8


def test_closed_book_has_no_retrieval_figures(tmp_path: Path) -> None:
    metrics = run(ToyPipeline(retrieves=False), tmp_path)
    assert metrics["recall_at"] == {"1": None, "5": None, "20": None, "100": None}
    assert metrics["recall_at_context"] is metrics["em_given_context"] is metrics["ci95"]["em_given_context"] is None
    assert (metrics["em"], metrics["passages_in_context"]) == (0.0, 0.0)
    assert not (tmp_path / "retrieval.json").exists()


def test_a_pipeline_that_only_retrieves(tmp_path: Path) -> None:
    asked = [Question(q.id, q.text, (), q.gold_passages) for q in questions()]
    metrics = run(ToyPipeline(reads=False), tmp_path, asked)
    assert metrics["em"] is metrics["recall_at"]["1"] is metrics["recall_at_context"] is None
    assert metrics["gold_recall_at"]["1"] == metrics["mrr"] == 1.0
    assert rows(tmp_path)[0]["prediction"] is None


def test_substring_matcher_looks_at_titles_too(tmp_path: Path) -> None:
    asked = [Question("a", "who made thing 3 ?", ("Thing 3 thing 3 was",), ("p03",))]
    assert run(ToyPipeline(), tmp_path / "dpr", asked)["recall_at_context"] == 0.0
    metrics = run(ToyPipeline(), tmp_path / "substring", asked, matcher="substring")
    assert (metrics["recall_at_context"], metrics["matcher"]) == (1.0, "substring")


def test_graded_judgements_reach_ndcg(tmp_path: Path) -> None:
    asked = [Question("a", "who made thing 3 ?", ("Maker3",), ("p49", "p03"), (3, 1))]
    ideal = 3 + 1 / math.log2(3)
    assert run(ToyPipeline(), tmp_path, asked)["ndcg@10"] == pytest.approx(1 / ideal)


class Stopped(Exception):
    pass


class StopsAfter(ToyPipeline):
    """Fails in the nth call, like a machine that goes down."""

    calls_left: int = 3

    def answer(self, texts, hits=None):
        if self.calls_left == 0:
            raise Stopped
        self.calls_left -= 1
        return super().answer(texts, hits)


def test_goes_on_where_it_stopped(tmp_path: Path) -> None:
    whole = run(ToyPipeline(), tmp_path / "whole")
    with pytest.raises(Stopped):
        run(StopsAfter(), tmp_path / "part")
    assert not (tmp_path / "part" / "metrics.json").exists()
    assert len(rows(tmp_path / "part")) == 24
    second, said = ToyPipeline(), []
    assert run(second, tmp_path / "part", log=said.append) == whole
    assert said == [f"24 of 40 questions are answered in {tmp_path / 'part'} already"]
    assert second.asked == [q.text for q in questions()[24:]]
    assert rows(tmp_path / "part") == rows(tmp_path / "whole")
    for name in ("retrieval.trec", "retrieval.json"):
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_oracle_goes_on_with_the_right_passages(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run(StopsAfter(retrieves=False), tmp_path, oracle=True)
    assert run(ToyPipeline(retrieves=False), tmp_path, oracle=True)["em"] == 0.8


def test_files_torn_anywhere_are_mended(tmp_path: Path) -> None:
    asked = questions(12)
    run(ToyPipeline(), tmp_path / "whole", asked, chunk=4)
    expected = (tmp_path / "whole" / "predictions.jsonl").read_bytes()
    rng = random.Random(0)
    out = tmp_path / "torn"
    for attempt in range(25):
        stops = StopsAfter()
        stops.calls_left = 1 + attempt % 2
        with pytest.raises(Stopped):
            run(stops, out, asked, chunk=4, restart=True)
        for name in ("predictions.jsonl", "retrieval.partial.jsonl"):
            if rng.random() < 0.6 and (path := out / name).exists():
                os.truncate(path, rng.randrange(path.stat().st_size + 1))
        run(ToyPipeline(), out, asked, chunk=4)
        assert (out / "predictions.jsonl").read_bytes() == expected
        assert len(read_dpr_json(out / "retrieval.json")) == 12


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    metrics = run(ToyPipeline(), tmp_path)
    idle = ToyPipeline()
    assert run(idle, tmp_path) == metrics
    other_depths = run(idle, tmp_path, recall_at=[2])
    assert other_depths["recall_at"] == {"2": 0.8}
    assert idle.asked == []
    assert (tmp_path / "retrieval.json").exists()


def test_restart_begins_anew(tmp_path: Path) -> None:
    run(ToyPipeline(name="one"), tmp_path)
    again = ToyPipeline(name="two")
    with pytest.raises(ConfigError, match=r"differs in pipeline; .*another folder, or restart"):
        run(again, tmp_path)
    assert run(again, tmp_path, restart=True)["pipeline"] == "two"
    assert len(again.asked) == len(rows(tmp_path)) == 40


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"asked": questions(39)}, "questions_sha256"),
        ({"matcher": "substring"}, "matcher"),
        ({"oracle": True}, "oracle"),
    ],
)
def test_rows_of_two_evaluations_are_never_mixed(tmp_path: Path, change: dict, named: str) -> None:
    with pytest.raises(Stopped):
        run(StopsAfter(), tmp_path)
    before = (tmp_path / "predictions.jsonl").read_bytes()
    with pytest.raises(ConfigError, match=f"differs in {named}"):
        run(ToyPipeline(), tmp_path, **change)
    assert (tmp_path / "predictions.jsonl").read_bytes() == before


def test_a_damaged_row_is_named(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run(StopsAfter(), tmp_path)
    path = tmp_path / "predictions.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"{broken\n", *lines[3:]]))
    with pytest.raises(ConfigError, match=r"predictions\.jsonl:3: damaged row"):
        run(ToyPipeline(), tmp_path)
    path.write_bytes(b"".join([lines[0], *lines[2:]]))
    with pytest.raises(ConfigError, match=r"predictions\.jsonl:2: 'q2' is not the question asked"):
        run(ToyPipeline(), tmp_path)


def test_a_folder_with_someone_elses_predictions(tmp_path: Path) -> None:
    (tmp_path / "predictions.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match=r"has predictions\.jsonl but no run\.json"):
        run(ToyPipeline(), tmp_path)


def test_two_evaluations_at_once_into_one_folder(tmp_path: Path) -> None:
    class Nested(ToyPipeline):
        def answer(self, texts, hits=None):
            run(ToyPipeline(), tmp_path)
            return super().answer(texts, hits)

    with pytest.raises(ConfigError, match="another evaluation is writing"):
        run(Nested(), tmp_path)


@pytest.mark.parametrize(
    ("asked", "settings", "message"),
    [
        ([], {}, "no question"),
        ([Question("a", "q", ("x",)), Question("a", "r", ("x",))], {}, "id 'a' is there twice"),
        ([Question("a", "who made thing 1 ?")], {}, "question 'a' has no answers"),
        ([Question("a", "who made thing 1 ?", (" ",))], {}, "."),
        ([Question("a", "q", ("x",))], {"chunk": 0}, "chunk is 0"),
        ([Question("a", "q", ("x",))], {"recall_at": [0]}, "recall_at"),
        ([Question("a", "q", ("x",))], {"matcher": "exact"}, "matcher is 'exact'"),
    ],
)
def test_what_cannot_be_measured(tmp_path: Path, asked: list[Question], settings: dict, message: str) -> None:
    with pytest.raises(FrozenLMError, match=message):
        evaluate(ToyPipeline(), asked, tmp_path / "out", progress=False, **settings)


def test_retrieval_without_answers_or_gold(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no answers or gold passages"):
        run(ToyPipeline(reads=False), tmp_path, [Question("a", "who made thing 1 ?")])


def test_a_pipeline_that_loses_an_answer_or_gives_a_bad_score(tmp_path: Path) -> None:
    class Short(ToyPipeline):
        def answer(self, texts, hits=None):
            return super().answer(texts, hits)[1:]

    class NotFinite(ToyPipeline):
        def answer(self, texts, hits=None):
            return [replace(a, score=math.nan) for a in super().answer(texts, hits)]

    with pytest.raises(ShapeError, match="7 answers to 8 questions"):
        run(Short(), tmp_path / "a")
    with pytest.raises(ShapeError, match="scored question 'q0' with nan"):
        run(NotFinite(), tmp_path / "b")


def test_odd_texts_survive_the_files(tmp_path: Path) -> None:
    class Odd(ToyPipeline):
        def answer(self, texts, hits=None):
            return [Answer(t, 'a\u2028b\ud800\n"', passages=PASSAGES[:1], timings={}) for t in texts]

    run(Odd(), tmp_path, questions(3))
    assert [row["prediction"] for row in rows_by_bytes(tmp_path)] == ['a\u2028b\ud800\n"'] * 3


def rows_by_bytes(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_bytes().split(b"\n") if line]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FrozenLMError, match="cannot write"):
        run(ToyPipeline(), tmp_path / "file" / "out")


def test_killed_at_random_and_at_every_write(tmp_path: Path) -> None:
    """Killed while answering, while writing, between the files: the rows end as if nothing had happened (R3)."""
    script = ROOT / "tests/pipelines/evaluation/killed_evaluations.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["random_kills"] >= 5 and said["kills_at_writes"] >= 10
    expected = without_times(tmp_path / "whole")
    assert len(expected) == 40
    for name in ("random", "writes"):
        assert without_times(tmp_path / name) == expected
        for file in ("retrieval.trec", "retrieval.json"):
            assert (tmp_path / name / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
        assert json.loads((tmp_path / name / "metrics.json").read_text())["em"] == 0.8
        assert not list((tmp_path / name).glob("*partial*"))


@pytest.mark.parametrize("deleted", ["metrics.json", "checksums.json"])
def test_figures_are_made_again_from_complete_rows(tmp_path: Path, deleted: str) -> None:
    whole = run(ToyPipeline(), tmp_path)
    (tmp_path / "metrics.json").unlink()
    (tmp_path / deleted).unlink(missing_ok=True)
    idle = ToyPipeline()
    assert run(idle, tmp_path) == whole
    assert idle.asked == []
    assert (tmp_path / "checksums.json").exists()
