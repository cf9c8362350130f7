"""BM25: scores equal to rank_bm25, ties by id, one analyzer for both sides, and an index that is whole or not there."""

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import rank_bm25

from retrievers.analysis import Analyzer
from retrievers.bm25 import BM25Retriever
from retrievers.check import check_retriever
from retrievers.corpus import read_corpus
from retrievers.errors import CorpusError, IndexMismatchError, RetrieverError
from retrievers.manifest import Manifest
from retrievers.metrics import ranking, recall_at_k
from retrievers.runs import read_qrels
from retrievers.types import Passage

PLAIN = Analyzer(stemmer=None, stopwords="none")
TOY = [
    Passage("p3", "the cat sat on the mat", "Cats"),
    Passage("p1", "a dog chased the cat", "Dogs"),
    Passage("p2", "birds fly over the river", "Birds"),
    Passage("p0", "a river runs through the town", "Rivers"),
]


def built(folder: Path, passages: list[Passage] = TOY, **options: Any) -> BM25Retriever:
    BM25Retriever.build(passages, folder, **options)
    return BM25Retriever.open(folder)


def random_passages(count: int, *, words: int = 40, length: int = 30, seed: int = 0) -> list[Passage]:
    rng = np.random.default_rng(seed)
    drawn = np.minimum(rng.zipf(1.3, (count, length)), words)
    # Ids whose order is neither that of the rows nor that of numbers.
    return [Passage(f"{(i * 7919) % 10007}", " ".join(f"w{n}" for n in row)) for i, row in enumerate(drawn)]


class TestAnalyzer:
    def test_the_defaults_are_lucenes_english(self) -> None:
        assert Analyzer().terms("The runner's ponies weren't RUNNING in 3.5 cafés") == [
            "runner", "poni", "weren't", "run", "3.5", "café",
        ]  # fmt: skip

    def test_choices(self) -> None:
        text = "The Generously given"
        assert Analyzer(stemmer="porter").terms(text) == ["gener", "given"]
        assert Analyzer(stemmer="english").terms(text) == ["generous", "given"]
        assert Analyzer(stemmer=None, lowercase=False, stopwords="none").terms(text) == ["The", "Generously", "given"]
        assert Analyzer(stemmer=None, stopwords=("given",)).terms(text) == ["the", "generously"]
        assert Analyzer(stemmer=None, pattern=r"g\w").terms(text) == ["ge", "gi"]

    def test_the_spec_gives_the_same_analyzer_back(self) -> None:
        for analyzer in (Analyzer(), Analyzer(stemmer=None, stopwords=("a", "b")), PLAIN):
            again = Analyzer.from_spec(analyzer.spec)
            assert again.spec == analyzer.spec
            assert again.terms("The cats of a b's") == analyzer.terms("The cats of a b's")
        with pytest.raises(IndexMismatchError):
            Analyzer.from_spec({**PLAIN.spec, "soundex": True})

    def test_bad_choices(self) -> None:
        for options, told in (
            ({"stemmer": "porker"}, "stemmer is 'porker'"),
            ({"stopwords": "english"}, "stopwords is 'english'"),
            ({"pattern": "("}, "no regular expression"),
            ({"pattern": r"(\w)+"}, "captures a group"),
        ):
            with pytest.raises(RetrieverError, match=told):
                Analyzer(**options)  # type: ignore[arg-type]


class TestScores:
    PASSAGES = random_passages(60, length=12)
    TOKENS: ClassVar = [PLAIN.terms(passage.text) for passage in PASSAGES]
    QUERIES = ("w1 w2", "w5 w5 w9", "w13", "w7 w30 w31 w3")

    def test_bm25_plus_equals_rank_bm25(self, tmp_path: Path) -> None:
        ours = built(tmp_path / "i", self.PASSAGES, analyzer=PLAIN, method="bm25+", k1=1.5, b=0.75, dtype="float64")
        theirs = rank_bm25.BM25Plus(self.TOKENS, k1=1.5, b=0.75, delta=1)
        for query, (rows, scores) in zip(self.QUERIES, ours.search(self.QUERIES, 60), strict=True):
            expected = theirs.get_scores(PLAIN.terms(query))
            assert len(rows) == sum(any(term in tokens for term in query.split()) for tokens in self.TOKENS)
            np.testing.assert_allclose(scores, expected[rows], rtol=0, atol=1e-12)

    def test_okapi_equals_rank_bm25_for_terms_in_at_most_half_of_the_passages(self, tmp_path: Path) -> None:
        ours = built(
            tmp_path / "i", self.PASSAGES, analyzer=PLAIN, method="atire", idf_method="robertson",
            k1=1.2, b=0.6, dtype="float64",
        )  # fmt: skip
        theirs = rank_bm25.BM25Okapi(self.TOKENS, k1=1.2, b=0.6)
        counts = Counter(itertools.chain.from_iterable(map(set, self.TOKENS)))
        rare = [term for term, count in counts.items() if count * 2 <= len(self.TOKENS)]
        queries = [" ".join(pair) for pair in itertools.pairwise(sorted(rare))]
        assert len(queries) > 20
        for query, (rows, scores) in zip(queries, ours.search(queries, 60), strict=True):
            np.testing.assert_allclose(scores, theirs.get_scores(query.split())[rows], rtol=0, atol=1e-12)

    def test_lucenes_formula_by_hand(self, tmp_path: Path) -> None:
        passages = [Passage("a", "x y"), Passage("b", "x x z z")]
        ours = built(tmp_path / "i", passages, analyzer=PLAIN, k1=1.0, b=0.5, dtype="float64")
        # idf(x) = ln(1 + 0.5 / 2.5); b: tf 2, length 4 of mean 3 -> 2 / (2 + 0.5 + 0.5 * 4 / 3)
        idf = math.log(1 + 0.5 / 2.5)
        hits = ours.retrieve(["x"], 2)[0]
        assert [(hit.passage_id, hit.score) for hit in hits] == [
            ("b", pytest.approx(idf * 2 / (2.5 + 2 / 3))),
            ("a", pytest.approx(idf * 1 / (1.5 + 1 / 3))),
        ]
        assert type(hits[0].score) is float

    @pytest.mark.parametrize("method", ["lucene", "robertson", "atire", "bm25+", "bm25l"])
    def test_the_choice_of_the_best_k_is_exact(self, tmp_path: Path, method: str) -> None:
        """Against a full sort of all scores by (-score, id), with many ties, for every k."""
        passages = random_passages(700, words=8, length=3)
        ours = built(tmp_path / "i", passages, analyzer=PLAIN, method=method)
        for query in ("w1", "w2 w3", "w8 w4 w1", "w6"):
            rows, scores = ours.search([query], 700)[0]
            everything = sorted(zip(scores.tolist(), (passages[row].id for row in rows), strict=True), key=_by_rank)
            for k in (1, 2, 7, 10, 11, 12, 63, 64, 65, 300, 700):
                assert [(s, i) for i, s in ours.rank([query], k)[0]] == everything[:k]

    def test_threads_and_batches_change_nothing(self, tmp_path: Path) -> None:
        passages = random_passages(300, words=12, length=4)
        BM25Retriever.build(passages, tmp_path / "i", analyzer=PLAIN)
        queries = [f"w{i % 12 + 1} w{i % 5 + 1}" for i in range(50)]
        one = BM25Retriever.open(tmp_path / "i", threads=1)
        two = BM25Retriever.open(tmp_path / "i", threads=2)
        assert one.retrieve(queries, 20) == two.retrieve(queries, 20)
        assert one.retrieve(queries, 20) == [one.retrieve([query], 20)[0] for query in queries]

    def test_a_batch_leaves_torch_its_number_of_threads(self, tmp_path: Path) -> None:
        """In a process of its own, since numba starts its threads once."""
        pytest.importorskip("torch")
        BM25Retriever.build(TOY, tmp_path / "i")
        code = (
            "import sys, torch; torch.set_num_threads(3); before = torch.get_num_threads();"
            "from retrievers.bm25 import BM25Retriever;"
            "found = BM25Retriever.open(sys.argv[1]).search(['cat', 'river'], 2);"
            "print(len(found), before, torch.get_num_threads())"
        )
        environment = os.environ | {"NUMBA_NUM_THREADS": "2", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        command = [sys.executable, "-c", code, str(tmp_path / "i")]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        assert done.stdout.split() == ["2", "3", "3"]


def _by_rank(item: tuple[float, str]) -> tuple[float, str]:
    return -item[0], item[1]


class TestQuestions:
    @pytest.fixture(scope="class")
    def toy(self, tmp_path_factory: pytest.TempPathFactory) -> BM25Retriever:
        return built(tmp_path_factory.mktemp("toy") / "index")

    def test_hits_carry_text_and_title(self, toy: BM25Retriever) -> None:
        hit = toy.retrieve(["a chasing dog"], 1)[0][0]
        assert (hit.passage_id, hit.title, hit.text) == ("p1", "Dogs", "a dog chased the cat")

    def test_k_beyond_the_corpus_is_clamped_and_zero_scores_are_dropped(self, toy: BM25Retriever) -> None:
        found = toy.retrieve(["river", "cat"], 10**9)
        assert [{hit.passage_id for hit in hits} for hits in found] == [{"p0", "p2"}, {"p1", "p3"}]

    def test_nothing_to_search_for_finds_nothing(self, toy: BM25Retriever) -> None:
        assert toy.retrieve(["", "the of and", "xylophone", "?!", "cat"], 5)[:4] == [[], [], [], []]
        assert toy.retrieve([], 5) == []

    def test_a_huge_question_is_refused_at_once(self, toy: BM25Retriever) -> None:
        start = time.process_time()
        with pytest.raises(RetrieverError, match=r"question 1 has 1,000,000 characters, at most 20,000"):
            toy.retrieve(["cat", "x" * 10**6], 5)
        assert time.process_time() - start < 1
        assert toy.retrieve(["cat " * 5000], 1)[0][0].passage_id in ("p1", "p3")

    def test_bad_calls(self, toy: BM25Retriever) -> None:
        for queries, k, told in (
            ("cat", 5, "one string"),
            ([3], 5, "question 0 is a int"),
            (["cat"], 0, "k is 0"),
            (["cat"], 2.0, "k is 2.0"),
            (["cat"], True, "k is True"),
        ):
            with pytest.raises(RetrieverError, match=told):
                toy.retrieve(queries, k)  # type: ignore[arg-type]

    def test_it_keeps_the_public_contract(self, toy: BM25Retriever) -> None:
        check_retriever(toy, ["the cat by the river", "dog"])

    def test_closed(self, tmp_path: Path) -> None:
        toy = built(tmp_path / "i")
        toy.close()
        with pytest.raises(RetrieverError, match="closed"):
            toy.retrieve(["cat"], 1)

    def test_ties_are_broken_by_id(self, tmp_path: Path) -> None:
        passages = [Passage(name, "same words") for name in ("b", "10", "a", "2", "é", "B")]
        ours = built(tmp_path / "i", passages)
        assert [hit.passage_id for hit in ours.retrieve(["words"], 4)[0]] == ["10", "2", "B", "a"]

    def test_title_or_text_alone(self, tmp_path: Path) -> None:
        assert built(tmp_path / "both").retrieve(["birds fly", "cats"], 1)[1][0].passage_id in ("p1", "p3")
        text_only = built(tmp_path / "text", [Passage("x", "some text", "Heading"), TOY[0]], fields="text")
        assert text_only.retrieve(["heading"], 1) == [[]]


class TestRankBm25Backend:
    @pytest.mark.parametrize("method", ["okapi", "bm25+", "bm25l"])
    def test_it_is_the_reference_with_the_same_face(self, tmp_path: Path, method: str) -> None:
        passages = random_passages(40, length=8)
        tokens = [PLAIN.terms(passage.text) for passage in passages]
        ours = built(tmp_path / "i", passages, analyzer=PLAIN, backend="rank_bm25", method=method, k1=1.1, b=0.3)
        kind = {"okapi": rank_bm25.BM25Okapi, "bm25+": rank_bm25.BM25Plus, "bm25l": rank_bm25.BM25L}[method]
        theirs = kind(tokens, k1=1.1, b=0.3)
        for query in ("w9 w12", "w20"):
            scores = theirs.get_scores(query.split())
            expected = sorted(
                ((scores[row], passages[row].id) for row in range(40) if set(query.split()) & set(tokens[row])),
                key=_by_rank,
            )
            assert [(hit.score, hit.passage_id) for hit in ours.retrieve([query], 10)[0]] == expected[:10]
        check_retriever(ours, ["w9 w12", "w1"])

    def test_both_backends_give_one_ranking(self, tmp_path: Path) -> None:
        passages = random_passages(50, length=9)
        options: dict[str, Any] = {"analyzer": PLAIN, "method": "bm25+", "dtype": "float64"}
        one = built(tmp_path / "a", passages, **options)
        two = built(tmp_path / "b", passages, backend="rank_bm25", **options)
        for mine, theirs in zip(one.rank(["w9 w12 w3"], 50)[0], two.rank(["w9 w12 w3"], 50)[0], strict=True):
            assert mine[1] == pytest.approx(theirs[1], abs=1e-12)

    def test_methods_belong_to_backends(self, tmp_path: Path) -> None:
        with pytest.raises(RetrieverError, match="rank_bm25 has okapi"):
            built(tmp_path / "i", backend="rank_bm25", method="lucene")
        with pytest.raises(RetrieverError, match="backend is 'lucene'"):
            built(tmp_path / "i", backend="lucene")


class TestTheIndex:
    def test_another_analyzer_or_parameter_is_refused(self, tmp_path: Path) -> None:
        BM25Retriever.build(TOY, tmp_path / "i")
        BM25Retriever.open(tmp_path / "i", analyzer=Analyzer(), expected_spec={"k1": 0.9})
        with pytest.raises(IndexMismatchError, match=r"analyzer is .*porter.*expected .*english"):
            BM25Retriever.open(tmp_path / "i", analyzer=Analyzer(stemmer="english"))
        with pytest.raises(IndexMismatchError, match=r"k1 is 0\.9, expected 1\.2"):
            BM25Retriever.open(tmp_path / "i", expected_spec={"k1": 1.2})

    def test_the_index_brings_its_own_analyzer(self, tmp_path: Path) -> None:
        analyzer = Analyzer(lowercase=False, stemmer=None, stopwords="none")
        assert built(tmp_path / "i", analyzer=analyzer).retrieve(["Cats", "cats", "the"], 9)[1] == []

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ({"k1": -1}, "k1 is -1"),
            ({"k1": float("nan")}, "k1 is nan"),
            ({"b": 1.5}, "b is 1.5"),
            ({"method": "tfidf"}, "method is 'tfidf'"),
            ({"idf_method": "x"}, "idf_method is 'x'"),
            ({"delta": 1.0}, "lucene has no delta"),
            ({"method": "bm25l", "delta": -1}, "delta is -1"),
            ({"fields": "title"}, "fields is 'title'"),
            ({"dtype": "int8"}, "dtype is 'int8'"),
        ],
    )
    def test_bad_parameters(self, tmp_path: Path, options: dict[str, Any], told: str) -> None:
        with pytest.raises(RetrieverError, match=told):
            BM25Retriever.build(TOY, tmp_path / "i", **options)
        assert list(tmp_path.iterdir()) == []

    def test_bad_corpora(self, tmp_path: Path) -> None:
        for passages, told in (
            ([], "empty"),
            ([Passage("a", "the of"), Passage("b", "")], "not one term"),
            ([Passage("a", "one"), Passage("a", "two")], "'a' occurs twice"),
        ):
            with pytest.raises(CorpusError, match=told):
                BM25Retriever.build(passages, tmp_path / "i")
            assert not (tmp_path / "i").exists()

    def test_passages_without_a_term_do_no_harm(self, tmp_path: Path) -> None:
        ours = built(tmp_path / "i", [Passage("a", ""), *TOY, Passage("z", "the")])
        assert len(ours) == 6 and len(ours.retrieve(["cat"], 6)[0]) == 2

    def test_equal_builds_are_equal(self, tmp_path: Path) -> None:
        marks = [built(tmp_path / name, **options).fingerprint() for name, options in (
            ("a", {}), ("b", {"shard_rows": 3}), ("c", {"k1": 1.0}), ("d", {"passages": TOY[::-1]}),
        )]  # fmt: skip
        assert marks[0] == marks[1] and len(set(marks)) == 3

    def test_estimate_and_progress(self, tmp_path: Path) -> None:
        said: list[str] = []
        steps: list[tuple[str, int, int | None]] = []
        BM25Retriever.build(
            iter(TOY), tmp_path / "i", log=said.append, progress=lambda *step: steps.append(step), expected_passages=4
        )
        assert "GB of memory" in said[0] and "for 4 passages" in said[0]
        assert steps == [("analyse", 4, 4), ("index", 0, 4), ("index", 4, 4)]

    def test_every_flipped_file_is_found(self, tmp_path: Path) -> None:
        BM25Retriever.build(TOY, tmp_path / "i", method="bm25+")
        files = [path for path in (tmp_path / "i").rglob("*") if path.is_file()]
        assert len(files) == 11
        for path in files:
            whole = path.read_bytes()
            for damaged in (whole[:-1], whole[: len(whole) // 2], b"", whole[:-1] + bytes([whole[-1] ^ 1])):
                path.write_bytes(damaged)
                with pytest.raises(IndexMismatchError, match=path.name):
                    BM25Retriever.open(tmp_path / "i")
                with pytest.raises(IndexMismatchError, match=path.name):
                    Manifest.verify(tmp_path / "i")
            path.write_bytes(whole)
        BM25Retriever.open(tmp_path / "i")


class Stopped(Exception):
    pass


def stopping(passages: list[Passage], at: int) -> Iterator[Passage]:
    yield from passages[:at]
    raise Stopped


class TestInterruptedBuilds:
    PASSAGES = random_passages(1100, words=300, length=10)

    @pytest.mark.parametrize("backend", ["bm25s", "rank_bm25"])
    @pytest.mark.parametrize("at", [1000, 1050, 1100])
    def test_a_stopped_build_goes_on_to_the_same_index(self, tmp_path: Path, backend: Any, at: int) -> None:
        options = {"backend": backend, "shard_rows": 100}
        whole = built(tmp_path / "whole", self.PASSAGES, **options)
        with pytest.raises(Stopped):
            BM25Retriever.build(stopping(self.PASSAGES, at), tmp_path / "parts", **options)
        with pytest.raises(IndexMismatchError, match="unfinished"):
            BM25Retriever.open(tmp_path / "parts")
        said: list[str] = []
        BM25Retriever.build(iter(self.PASSAGES), tmp_path / "parts", log=said.append, **options)
        assert said[0] == f"continuing an interrupted build at passage {at // 100 * 100:,}"
        parts = BM25Retriever.open(tmp_path / "parts")
        assert parts.fingerprint() == whole.fingerprint()
        assert parts.retrieve(["w5 w17"], 20) == whole.retrieve(["w5 w17"], 20)

    def test_a_shorter_corpus_after_a_stop_leaves_nothing_behind(self, tmp_path: Path) -> None:
        with pytest.raises(Stopped):
            BM25Retriever.build(stopping(self.PASSAGES, 1050), tmp_path / "parts", shard_rows=100)
        short = self.PASSAGES[:250]
        BM25Retriever.build(short, tmp_path / "parts", shard_rows=100)
        expected = built(tmp_path / "whole", short, shard_rows=100)
        assert BM25Retriever.open(tmp_path / "parts").fingerprint() == expected.fingerprint()

    @pytest.mark.slow
    def test_kills_at_random_times(self, tmp_path: Path) -> None:
        """R2: whenever the build is killed, nothing opens; when it is run again, the index is the uninterrupted one."""
        # By the child's own processor time, which a busy machine does not change; SIGPROF ends it as SIGKILL does.
        code = (
            "import sys; from signal import ITIMER_PROF, setitimer\n"
            "from tests.retrievers.test_bm25 import random_passages; from retrievers.bm25 import *\n"
            "passages = random_passages(6000, words=500, length=40); setitimer(ITIMER_PROF, float(sys.argv[2]))\n"
            "BM25Retriever.build(iter(passages), sys.argv[1], shard_rows=200)\n"
        )
        whole = built(tmp_path / "whole", random_passages(6000, words=500, length=40), shard_rows=200)
        killed = 0
        for attempt in range(40):
            command = [sys.executable, "-c", code, str(tmp_path / "parts"), str(0.01 + 0.013 * attempt)]
            ended = subprocess.run(command, check=False).returncode
            assert ended in (0, -signal.SIGPROF)
            killed += ended != 0
            if not (tmp_path / "parts").exists():
                with pytest.raises(IndexMismatchError):
                    BM25Retriever.open(tmp_path / "parts")
            else:
                break
        assert killed
        if not (tmp_path / "parts").exists():
            BM25Retriever.build(iter(random_passages(6000, words=500, length=40)), tmp_path / "parts", shard_rows=200)
        assert BM25Retriever.open(tmp_path / "parts").fingerprint() == whole.fingerprint()


@pytest.mark.shared_data
class TestPublishedFigures:
    def test_scifact(self, shared_data: Path, tmp_path: Path) -> None:
        """nDCG@10 0.679 (Anserini, flat: title and text in one field, Porter, Lucene's stopwords, k1 0.9, b 0.4)."""

        folder = shared_data / "data" / "scifact"
        ours = built(tmp_path / "i", read_corpus(folder))  # type: ignore[arg-type]
        qrels = read_qrels(folder / "qrels" / "test.tsv")
        rows = [row for row in map(json.loads, (folder / "queries.jsonl").open()) if row["_id"] in qrels]
        assert len(rows) == 300
        found = ours.retrieve([row["text"] for row in rows], 100)
        run = {row["_id"]: hits for row, hits in zip(rows, found, strict=True)}
        assert ranking(qrels, run, ["nDCG@10"])["nDCG@10"] == pytest.approx(0.679, abs=0.01)

    @pytest.mark.parametrize(
        ("questions", "expected", "within"),
        [
            # The whole of SQuAD 1.1 dev, 10,570 questions; squad_dev below holds those of 8 of its 48 articles.
            ("squad-dev-v1.1", (76.9, 91.8, 96.7, 98.8), 0.2),
            ("new_wiki_train", (74.6, 89.9, 95.4, 98.2), 0.2),
            # The figures are of all NQ questions of the corpus, these are half of them.
            ("nq_oracle_dev", (69.6, 87.7, 94.5, 98.1), 0.3),
            # Our own, in docs/results.md.
            ("squad_dev", (78.0, 92.8, 97.2, 98.8), 0.1),
        ],
    )
    def test_wiki_mix(
        self, shared_data: Path, tmp_path_factory: pytest.TempPathFactory, questions: str, expected: Any, within: float
    ) -> None:
        """Answer in passage, percent, at 1, 5, 20, 100."""

        folder = shared_data / "data" / "wiki_mix"
        index = tmp_path_factory.getbasetemp() / "wiki_mix_bm25"
        if not index.exists():
            BM25Retriever.build(read_corpus(folder), index)
        if questions == "squad-dev-v1.1":
            rows = squad_questions(shared_data / "data" / "squad" / f"{questions}.json")
            assert len(rows) == 10_570
        else:
            rows = [json.loads(line) for line in (folder / "queries" / f"{questions}.jsonl").open()]
        found = BM25Retriever.open(index).retrieve([row["text"] for row in rows], 100)
        recall = recall_at_k(found, [row["answers"] for row in rows], [1, 5, 20, 100])
        assert [100 * value for value in recall.values()] == pytest.approx(expected, abs=within)


def squad_questions(path: Path) -> list[dict[str, Any]]:
    """The questions of a SQuAD 1.1 file with all their gold answers."""
    return [
        {"text": question["question"], "answers": [answer["text"] for answer in question["answers"]]}
        for article in json.loads(path.read_text(encoding="utf-8"))["data"]
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]
