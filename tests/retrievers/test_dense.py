"""The dense index: right answers, resumed builds equal bit for bit, nothing opened that does not fit."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from retrievers.dense import DenseRetriever
from retrievers.errors import CorpusError, IndexMismatchError, RetrieverError
from retrievers.files import sha256_file
from retrievers.types import Passage
from tests.retrievers.toys import LetterEncoder, RandomEncoder

ROOT = Path(__file__).resolve().parents[2]
LETTER_PASSAGES = [Passage("p1", "aaa"), Passage("p2", "ab"), Passage("p3", "bbcc", title="T"), Passage("p0", "ab")]


def many(count: int) -> list[Passage]:
    return [Passage(f"p{i:04d}", f"passage number {i}") for i in range(count)]


def digests(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): sha256_file(p) for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("index", ["exact", "flat"])
def test_best_passages_first_and_ties_by_id(tmp_path: Path, index: str, dtype: str) -> None:
    DenseRetriever.build(LETTER_PASSAGES, tmp_path / "i", LetterEncoder(), index=index, dtype=dtype, shard_size=2)
    retriever = DenseRetriever.open(tmp_path / "i", LetterEncoder())
    [first, second] = retriever.retrieve(["a", "bc"], 3)
    assert [(h.passage_id, h.score) for h in first] == [("p1", 3), ("p0", 1), ("p2", 1)]
    assert [(h.passage_id, h.score) for h in second] == [("p3", 4), ("p0", 1), ("p2", 1)]
    assert second[0].text == "bbcc" and second[0].title == "T"


@pytest.mark.parametrize("index", ["exact", "flat", "hnsw", "ivf"])
def test_k_is_clamped_and_padding_never_becomes_a_passage(tmp_path: Path, index: str) -> None:
    DenseRetriever.build(many(5), tmp_path / "i", RandomEncoder(), index=index)
    [hits] = DenseRetriever.open(tmp_path / "i", RandomEncoder()).retrieve(["passage number 3"], 1000)
    assert hits[0].passage_id == "p0003"
    assert hits[0].score == pytest.approx(1, abs=1e-6)
    assert len(hits) == len({h.passage_id for h in hits}) == 5


def test_empty_query_has_no_hits_and_its_neighbours_keep_theirs(tmp_path: Path) -> None:
    DenseRetriever.build(LETTER_PASSAGES, tmp_path / "i", LetterEncoder())
    retriever = DenseRetriever.open(tmp_path / "i", LetterEncoder())
    empty, full = retriever.retrieve(["  \n", "c"], 1)
    assert empty == []
    assert [h.passage_id for h in full] == ["p3"]
    assert retriever.retrieve([], 1) == []
    with pytest.raises(RetrieverError, match="k is 0"):
        retriever.retrieve(["a"], 0)


@pytest.mark.parametrize("index", ["exact", "flat", "hnsw", "ivf"])
@pytest.mark.parametrize("killed_after", [0, 1, 3])
def test_killed_build_resumes_and_gives_the_same_bits(tmp_path: Path, index: str, killed_after: int) -> None:
    class Killed(RandomEncoder):
        calls = 0

        def encode_passages(self, passages: list[Passage]) -> np.ndarray:  # type: ignore[override]
            self.calls += 1
            if self.calls > killed_after:
                raise KeyboardInterrupt
            return super().encode_passages(passages)

    DenseRetriever.build(many(95), tmp_path / "whole", RandomEncoder(), index=index, shard_size=20)
    with pytest.raises(KeyboardInterrupt):
        DenseRetriever.build(many(95), tmp_path / "i", Killed(), index=index, shard_size=20)
    assert not (tmp_path / "i").exists()
    report = DenseRetriever.build(iter(many(95)), tmp_path / "i", RandomEncoder(), index=index, shard_size=20)
    assert (report.shards, report.resumed_shards) == (5, killed_after)
    assert digests(tmp_path / "i") == digests(tmp_path / "whole")


def test_build_killed_after_encoding_does_not_encode_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("retrievers.dense_build.build_faiss", killed)
        DenseRetriever.build(many(50), tmp_path / "i", RandomEncoder(), index="flat", shard_size=20)
    report = DenseRetriever.build(many(50), tmp_path / "i", RandomEncoder(), index="flat", shard_size=20)
    # Only the last shard, which is not whole, is encoded again.
    assert (report.shards, report.resumed_shards) == (3, 2)


def test_resumed_build_never_mixes_two_corpora(tmp_path: Path) -> None:
    class Killed(RandomEncoder):
        def encode_passages(self, passages: list[Passage]) -> np.ndarray:  # type: ignore[override]
            if passages[0].id == "p0060":
                raise KeyboardInterrupt
            return super().encode_passages(passages)

    with pytest.raises(KeyboardInterrupt):
        DenseRetriever.build(many(95), tmp_path / "i", Killed(), shard_size=20)
    changed = many(30)
    changed[25] = Passage("p0025", "something else")
    DenseRetriever.build(changed, tmp_path / "i", RandomEncoder(), shard_size=20)
    DenseRetriever.build(changed, tmp_path / "whole", RandomEncoder(), shard_size=20)
    assert digests(tmp_path / "i") == digests(tmp_path / "whole")


def test_another_encoder_is_refused_and_both_are_named(tmp_path: Path) -> None:
    DenseRetriever.build(LETTER_PASSAGES, tmp_path / "i", LetterEncoder(scale=1.0))
    with pytest.raises(IndexMismatchError, match=r"letters:1\.0.*letters:2\.0"):
        DenseRetriever.open(tmp_path / "i", LetterEncoder(scale=2.0))


@pytest.mark.parametrize("name", ["vectors/00000.npy", "vectors/00000.json", "index.faiss", "passages.jsonl"])
def test_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    DenseRetriever.build(LETTER_PASSAGES, tmp_path / "i", LetterEncoder(), index="flat")
    path = tmp_path / "i" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(IndexMismatchError, match=path.name):
        DenseRetriever.open(tmp_path / "i", LetterEncoder())


def test_estimate_comes_first_and_the_report_counts_what_was_cut(tmp_path: Path) -> None:
    events: list[str] = []
    passages = [*LETTER_PASSAGES, Passage("long", "a" * 9)]
    report = DenseRetriever.build(
        passages, tmp_path / "i", LetterEncoder(), log=events.append, progress=lambda n: events.append(f"done {n}")
    )
    assert events[0].startswith("5 passages x 4 numbers")
    assert events[1:] == ["done 5"]
    assert (report.passages, report.truncated) == (5, 1)
    retriever = DenseRetriever.open(tmp_path / "i", LetterEncoder())
    assert retriever.counts["truncated"] == 1
    assert len(retriever) == 5


def test_fingerprint_follows_passages_and_settings(tmp_path: Path) -> None:
    def fingerprint(name: str, passages: list[Passage], **settings: object) -> str:
        DenseRetriever.build(passages, tmp_path / name, LetterEncoder(), **settings)  # type: ignore[arg-type]
        return DenseRetriever.open(tmp_path / name, LetterEncoder()).fingerprint()

    base = fingerprint("a", LETTER_PASSAGES)
    assert base == fingerprint("b", LETTER_PASSAGES)
    assert base != fingerprint("c", LETTER_PASSAGES[:3])
    assert base != fingerprint("d", LETTER_PASSAGES, dtype="bfloat16")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"index": "annoy"}, "annoy"),
        ({"dtype": "float16"}, "float16"),
        ({"shard_size": 0}, "shard_size"),
        ({"index": "exact", "parameters": {"probes": 3}}, "no parameters"),
        ({"index": "ivf", "parameters": {"prob": 3}}, "prob"),
        ({"index": "hnsw", "parameters": {"ef_search": 0}}, "ef_search"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(
    tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(RetrieverError, match=message):
        DenseRetriever.build(LETTER_PASSAGES, tmp_path / "i", LetterEncoder(), **settings)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_empty_corpus_and_duplicate_ids_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError):
        DenseRetriever.build([], tmp_path / "i", LetterEncoder())
    with pytest.raises(CorpusError, match="p1"):
        DenseRetriever.build([LETTER_PASSAGES[0]] * 2, tmp_path / "j", LetterEncoder())


def test_broken_encoder_is_refused(tmp_path: Path) -> None:
    class NaNs(LetterEncoder):
        def encode_queries(self, queries: list[str]) -> np.ndarray:  # type: ignore[override]
            return np.full((len(queries), 4), np.nan, dtype=np.float32)

    with pytest.raises(RetrieverError, match="NaN"):
        DenseRetriever.build(LETTER_PASSAGES, tmp_path / "i", NaNs())


def test_search_parameters_can_change_on_opening_but_not_the_build_s(tmp_path: Path) -> None:
    DenseRetriever.build(many(60), tmp_path / "i", RandomEncoder(), index="hnsw")
    DenseRetriever.open(tmp_path / "i", RandomEncoder(), parameters={"ef_search": 16})
    with pytest.raises(RetrieverError, match="neighbours"):
        DenseRetriever.open(tmp_path / "i", RandomEncoder(), parameters={"neighbours": 8})


KILLED_BUILD = """
import signal, sys
from retrievers.dense import DenseRetriever
from tests.retrievers.test_dense import many
from tests.retrievers.toys import RandomEncoder

class Stopping(RandomEncoder):
    calls = 0

    def encode_passages(self, passages):
        self.calls += 1
        if self.calls == 4:
            print("three shards are encoded", flush=True)
            signal.pause()
        return super().encode_passages(passages)

DenseRetriever.build(many(95), sys.argv[1], Stopping(), shard_size=10)
"""


def test_build_killed_by_the_system_resumes_to_the_same_bits(tmp_path: Path) -> None:
    DenseRetriever.build(many(95), tmp_path / "whole", RandomEncoder(), shard_size=10)
    command = [sys.executable, "-c", KILLED_BUILD, str(tmp_path / "i")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"three shards are encoded\n"
        process.kill()
    assert not (tmp_path / "i").exists()
    report = DenseRetriever.build(many(95), tmp_path / "i", RandomEncoder(), shard_size=10)
    assert report.resumed_shards >= 3
    assert digests(tmp_path / "i") == digests(tmp_path / "whole")


def test_memory_of_a_build_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    class Flat:
        dim = 256

        def encode_queries(self, queries: list[str]) -> np.ndarray:
            return np.ones((len(queries), 256), dtype=np.float32)

        def encode_passages(self, passages: list[Passage]) -> np.ndarray:
            return np.ones((len(passages), 256), dtype=np.float32)

        def fingerprint(self) -> str:
            return "flat"

    def peak(count: int) -> int:
        stream = (Passage(str(row), "text") for row in range(count))
        tracemalloc.start()
        DenseRetriever.build(stream, tmp_path / str(count), Flat(), shard_size=1000)
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    peak(1000)
    # 18,000 more passages are 18 MB more of vectors; what may grow is the sorting of ids, some 64 bytes a passage.
    assert peak(20_000) < peak(2000) + 18_000 * 64
