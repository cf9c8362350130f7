"""Passages on disk: what goes in comes out, whatever it holds; an interrupted build never mixes two corpora."""

import pickle
import threading
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retrievers.errors import CorpusError, IndexMismatchError, RetrieverError
from retrievers.files import FolderBuild, sha256_file
from retrievers.manifest import Manifest
from retrievers.passage_writer import build_passages, store_in_shards, write_passages
from retrievers.passages import PassageStore, corpus_fingerprint, passage_line
from retrievers.types import Hit, Passage

PASSAGES = [Passage(str(i), f"text {i}", f"title {i}", {"page": i} if i % 3 else {}) for i in range(25)]

texts = st.text(st.characters(), max_size=20)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ids=st.lists(st.text(st.characters(), min_size=1, max_size=90), min_size=1, max_size=12, unique=True), body=texts
)
def test_any_text_comes_back_and_is_found_by_id(tmp_path: Path, ids: list[str], body: str) -> None:
    passages = [Passage(name, body + name, body, {"deep": [1, body]}) for name in ids]
    with write_passages(passages, tmp_path) as store:
        assert list(store) == passages == store[:]
        assert [store.get(name) for name in ids] == passages
        assert store.ids_of(np.arange(len(ids))) == ids == list(store.ids())
        assert [ids[row] for row in np.argsort(store.rank)] == sorted(ids)
        assert store.get("not there" * 20) is None


def test_rows_and_hits(tmp_path: Path) -> None:
    with write_passages(PASSAGES, tmp_path) as store:
        assert len(store) == 25 and store[-1] == PASSAGES[-1] and store[3:5] == PASSAGES[3:5]
        assert store.hits([2, 0], [1.5, 0.5]) == [
            Hit("2", 1.5, "text 2", "title 2", {"page": 2}),
            Hit("0", 0.5, "text 0", "title 0"),
        ]
        with pytest.raises(IndexError):
            store[25]
        with pytest.raises(IndexError):
            store.hits([-1], [0.0])
    with pytest.raises(RetrieverError, match="closed"):
        store[0]


def test_the_corpus_fingerprint_is_the_files_hash(tmp_path: Path) -> None:
    write_passages(PASSAGES, tmp_path)
    assert corpus_fingerprint(iter(PASSAGES)) == sha256_file(tmp_path / "passages.jsonl")
    assert corpus_fingerprint(PASSAGES[::-1]) != corpus_fingerprint(PASSAGES)


def test_threads_read_without_disturbing_each_other(tmp_path: Path) -> None:
    store = write_passages(PASSAGES, tmp_path)
    wrong: list[int] = []

    def read(start: int) -> None:
        wrong.extend(i for i in range(start, 3000) if store[i % 25] != PASSAGES[i % 25])

    threads = [threading.Thread(target=read, args=(start,)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    with pytest.raises(TypeError, match="not picklable"):
        pickle.dumps(store)


def test_what_cannot_be_stored_is_refused() -> None:
    for bad, told in (
        (Passage("", "text"), "empty id"),
        (Passage(3, "text"), "must be strings"),  # type: ignore[arg-type]
        (Passage("a", None), "must be strings"),  # type: ignore[arg-type]
        (Passage("a", "text", "", {"x": float("nan")}), "meta"),
        (Passage("a", "text", "", {"x": object()}), "meta"),
    ):
        with pytest.raises(CorpusError, match=told):
            passage_line(bad)


def test_empty_and_duplicate(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="empty"):
        write_passages([], tmp_path / "empty")
    with pytest.raises(CorpusError, match=r"'7' occurs twice, as passages 8 and 26"):
        write_passages([*PASSAGES, Passage("7", "other")], tmp_path / "twice")


def test_a_store_that_does_not_fit_together_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IndexMismatchError, match="cannot be opened"):
        PassageStore(tmp_path)
    write_passages(PASSAGES, tmp_path).close()
    with (tmp_path / "passages.jsonl").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(IndexMismatchError, match="does not fit"):
        PassageStore(tmp_path)


def build(folder: Path, passages: Iterable[Passage], *, stop: int | None = None) -> list[int]:
    """Build with shards of four; stop in the middle of shard `stop`; the shards that were handed out."""
    handed = []
    with FolderBuild(folder, spec={}) as building:
        for shard, batch in store_in_shards(building, passages, shard_rows=4):
            handed.append(shard)
            if shard == stop:
                return handed
            (building.folder / f"derived-{shard}").write_text(",".join(p.text for p in batch))
        Manifest.write(building.folder, kind="toy", spec={}, counts={})
        building.finish()
    return handed


@pytest.mark.parametrize("stop", [0, 1, 3, 6])
def test_a_resumed_build_is_the_uninterrupted_one(tmp_path: Path, stop: int) -> None:
    assert build(tmp_path / "whole", PASSAGES) == list(range(7))
    assert build(tmp_path / "parts", iter(PASSAGES), stop=stop) == list(range(stop + 1))
    with pytest.raises(IndexMismatchError):
        Manifest.open(tmp_path / "parts", kind="toy")
    assert build(tmp_path / "parts", iter(PASSAGES)) == list(range(stop, 7))
    assert Manifest.verify(tmp_path / "parts").fingerprint == Manifest.verify(tmp_path / "whole").fingerprint


@pytest.mark.parametrize("changed", [0, 5, 11, 12, 24])
def test_a_changed_corpus_is_built_anew_from_the_change_on(tmp_path: Path, changed: int) -> None:
    build(tmp_path / "index", iter(PASSAGES), stop=4)
    other = [*PASSAGES[:changed], Passage("new", "new text"), *PASSAGES[changed + 1 :]]
    assert build(tmp_path / "index", iter(other)) == list(range(min(changed // 4, 4), 7))
    assert list(PassageStore(tmp_path / "index")) == other
    derived = [(tmp_path / "index" / f"derived-{shard}").read_text() for shard in range(7)]
    assert ",".join(derived) == ",".join(p.text for p in other)


def test_a_shortened_corpus(tmp_path: Path) -> None:
    build(tmp_path / "index", iter(PASSAGES), stop=5)
    assert build(tmp_path / "index", islice(PASSAGES, 10)) == [2]
    assert list(PassageStore(tmp_path / "index")) == PASSAGES[:10]


def test_a_folder_of_passages_is_whole_or_not_there(tmp_path: Path) -> None:
    folder = tmp_path / "passages"

    def killed() -> Iterator[Passage]:
        yield from PASSAGES[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_passages(killed(), folder, shard_rows=1)
    assert not folder.exists()
    build_passages(iter(PASSAGES), folder, shard_rows=1)
    with PassageStore.open(folder) as store:
        assert list(store) == PASSAGES
    assert not folder.with_name("passages.building").exists()
    (folder / "passages.rank.npy").write_bytes(bytes(8))
    with pytest.raises(IndexMismatchError, match=r"passages\.rank\.npy is damaged"):
        PassageStore.open(folder)
    with pytest.raises(RetrieverError, match="exists already"):
        build_passages(iter(PASSAGES), folder)
    build_passages(iter(PASSAGES[:1]), folder, overwrite=True)
    with PassageStore.open(folder) as store:
        assert list(store) == PASSAGES[:1]
