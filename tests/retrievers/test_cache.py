"""A cached answer is the fresh one; a kill loses one write; nothing is ever shared between indexes."""

import json
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retrievers.cache import CachedRetriever, cached
from retrievers.errors import RetrieverError
from retrievers.types import Hit


class Counting:
    """Finds the question itself, k times, and remembers what it was asked."""

    def __init__(self, mark: str | None = "one", meta: object = 1, score: float = 0.1) -> None:
        self.mark, self.meta, self.score = mark, meta, score
        self.asked: list[tuple[str, int]] = []
        self.closed = False

    def retrieve(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        self.asked += [(query, k) for query in queries]
        return [
            [Hit(f"{query}#{i}", self.score / (i + 1), query, "é", {"m": self.meta}) for i in range(k)]
            for query in queries
        ]

    def fingerprint(self) -> str | None:
        return self.mark

    def close(self) -> None:
        self.closed = True


class NoMark:
    def retrieve(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        return [[] for _ in queries]


def test_the_second_time_comes_from_the_cache(tmp_path: Path) -> None:
    inner = Counting()
    ours = CachedRetriever(inner, tmp_path)
    first = ours.retrieve(["a", "b", "a"], 2)
    assert inner.asked == [("a", 2), ("b", 2)]
    ours.close()
    assert inner.closed
    again = CachedRetriever(Counting(), tmp_path)
    assert again.retrieve(["b", "a", "c"], 2) == [first[1], first[0], Counting().retrieve(["c"], 2)[0]]
    assert again.retriever.asked == [("c", 2)]  # type: ignore[attr-defined]
    assert (again.counts.found, again.counts.asked) == (2, 1)
    assert again.fingerprint() == "one"


def test_another_k_or_fingerprint_is_another_question(tmp_path: Path) -> None:
    CachedRetriever(Counting(), tmp_path).retrieve(["a"], 2)
    for inner, k in ((Counting(), 1), (Counting(), 3), (Counting("two"), 2)):
        CachedRetriever(inner, tmp_path).retrieve(["a"], k)
        assert inner.asked == [("a", k)]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(query=st.text(st.characters()), score=st.floats(allow_nan=False, allow_infinity=False, min_value=0))
def test_any_hit_comes_back_exactly(tmp_path: Path, query: str, score: float) -> None:
    fresh = Counting(score=score).retrieve([query], 3)
    for _ in range(2):
        assert CachedRetriever(Counting(mark=f"{score!r}", score=score), tmp_path).retrieve([query], 3) == fresh


@pytest.mark.parametrize("meta", [(1, 2), object(), float("nan"), {1: 2}])
def test_what_json_would_change_is_not_kept_but_counted(tmp_path: Path, meta: object) -> None:
    inner = Counting(meta=meta)
    ours = CachedRetriever(inner, tmp_path)
    for times in (1, 2):
        assert ours.retrieve(["a"], 1)[0][0].meta["m"] is meta
        assert len(inner.asked) == times == ours.counts.not_kept


def test_without_a_fingerprint_there_is_no_cache(tmp_path: Path) -> None:
    for inner in (NoMark(), Counting(mark=None)):
        assert cached(inner, tmp_path) is inner
        with pytest.raises(RetrieverError, match=rf"{type(inner).__name__} has no fingerprint"):
            CachedRetriever(inner, tmp_path)
    assert isinstance(cached(Counting(), tmp_path), CachedRetriever)


def test_a_broken_retriever_is_named_and_nothing_of_it_is_kept(tmp_path: Path) -> None:
    with pytest.raises(RetrieverError, match=r"Counting: query 0 .*score is nan"):
        CachedRetriever(Counting(score=float("nan")), tmp_path).retrieve(["a"], 1)
    inner = Counting()
    CachedRetriever(inner, tmp_path).retrieve(["a"], 1)
    assert inner.asked == [("a", 1)]


def test_a_damaged_row_is_fetched_anew_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    ours = CachedRetriever(Counting(), tmp_path)
    fresh = ours.retrieve(["a"], 2)
    ours.close()
    with sqlite3.connect(tmp_path / "retrieval.sqlite") as database:
        database.execute("UPDATE results SET payload = replace(payload, 'a#0', 'x#0')")
    database.close()
    inner = Counting()
    ours = CachedRetriever(inner, tmp_path)
    assert ours.retrieve(["a"], 2) == fresh == ours.retrieve(["a"], 2)
    assert inner.asked == [("a", 2)]
    ours.close()
    for path in tmp_path.iterdir():
        path.write_bytes(b"no database at all" * 100)
    with pytest.raises(RetrieverError, match=r"retrieval\.sqlite cannot be used .*delete the file"):
        CachedRetriever(Counting(), tmp_path).retrieve(["a"], 2)


def test_threads_share_one(tmp_path: Path) -> None:
    ours = CachedRetriever(Counting(), tmp_path)
    wrong: list[str] = []

    def ask(start: int) -> None:
        for i in range(start, start + 40):
            query = str(i % 50)
            if ours.retrieve([query], 2) != Counting().retrieve([query], 2):
                wrong.append(query)

    threads = [threading.Thread(target=ask, args=(start,)) for start in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_kill_9_in_the_middle_of_writing_loses_nothing_that_was_told(tmp_path: Path) -> None:
    code = (
        "import sys; from tests.retrievers.test_cache import *\n"
        "ours = CachedRetriever(Counting(), sys.argv[1])\n"
        "for i in range(int(sys.argv[2]), 10**9):\n"
        "    ours.retrieve([str(i)], 3); print(i, flush=True)\n"
    )
    told = 0
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), str(told)], stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            for _, line in zip(range(40), child.stdout, strict=False):
                told = int(line) + 1
            child.send_signal(signal.SIGKILL)
    inner = Counting()
    queries = [str(i) for i in range(told)]
    assert CachedRetriever(inner, tmp_path).retrieve(queries, 3) == Counting().retrieve(queries, 3)
    assert told >= 120 and inner.asked == []


def test_the_payload_is_json_and_not_pickle(tmp_path: Path) -> None:
    CachedRetriever(Counting(), tmp_path).retrieve(["a"], 1)
    database = sqlite3.connect(tmp_path / "retrieval.sqlite")
    (payload,) = database.execute("SELECT payload FROM results").fetchone()
    database.close()
    assert json.loads(payload) == [["a#0", 0.1, "a", "é", {"m": 1}]]
