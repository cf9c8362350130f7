"""Writing passages to disk: streamed, committed shard by shard, taken up again after a kill. The layout is told in
`passages`."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

import numpy as np

from retrievers.errors import CorpusError
from retrievers.files import SCRATCH, FolderBuild, clear_write_errors, write_bytes
from retrievers.manifest import Manifest
from retrievers.passages import (
    ID_PREFIX,
    KIND,
    LINES,
    OFFSETS,
    ORDER,
    RANK,
    PassageStore,
    id_key,
    parsed_passage,
    passage_line,
)
from retrievers.types import Passage

SHARD_ROWS = 50_000
_OFFSETS_RAW = f"{SCRATCH}/passages.offsets.raw"


class PassageWriter:
    """Appends passages to a folder; memory does not grow with them, but for the sorting of ids in `finish`.

    Args:
        folder: where the files go.
        rows: 0 for a new store; a number committed before to continue there (what lies beyond is cut off).
    """

    def __init__(self, folder: Path, *, rows: int = 0) -> None:
        self.folder = folder
        self.rows = rows
        with clear_write_errors(folder):
            (folder / SCRATCH).mkdir(exist_ok=True)
            for name in (LINES, _OFFSETS_RAW):
                (folder / name).touch()
            os.truncate(folder / _OFFSETS_RAW, 8 * rows)
            ends = np.fromfile(folder / _OFFSETS_RAW, dtype="<i8", offset=max(0, 8 * (rows - 1)))
            self.bytes = int(ends[-1]) if rows else 0
            os.truncate(folder / LINES, self.bytes)
            self._lines = (folder / LINES).open("ab")
            self._ends = (folder / _OFFSETS_RAW).open("ab")

    def add(self, passages: Iterable[Passage]) -> None:
        """Append passages.

        Raises:
            CorpusError: a passage that cannot be stored.
            RetrieverError: the disk is full or the folder not writable.
        """
        lines = [passage_line(passage) for passage in passages]
        ends = self.bytes + np.cumsum([len(line) for line in lines], dtype="<i8")
        with clear_write_errors(self.folder):
            self._lines.writelines(lines)
            self._ends.write(ends.tobytes())
        self.rows += len(lines)
        self.bytes = int(ends[-1]) if lines else self.bytes

    def sync(self) -> int:
        """Put everything added so far on disk; the number of rows that are safe."""
        with clear_write_errors(self.folder):
            for stream in (self._lines, self._ends):
                stream.flush()
                os.fsync(stream.fileno())
        return self.rows

    def finish(self) -> None:
        """Write offsets, id order and rank, which makes the store readable.

        Memory: N x (longest id in bytes + 24) for the sorting of the ids.

        Raises:
            CorpusError: no passage at all, or a passage id that occurs twice.
        """
        self.sync()
        self.close()
        if self.rows == 0:
            raise CorpusError("the corpus is empty: not one passage was read; check the path and the format")
        offsets = np.zeros(self.rows + 1, dtype="<i8")
        offsets[1:] = np.fromfile(self.folder / _OFFSETS_RAW, dtype="<i8")
        order = self._id_order()
        rank = np.empty_like(order)
        rank[order] = np.arange(self.rows)
        with clear_write_errors(self.folder):
            for name, array in ((OFFSETS, offsets), (ORDER, order), (RANK, rank)):
                np.save(self.folder / name, array, allow_pickle=False)

    def _id_order(self) -> np.ndarray:
        with (self.folder / LINES).open("rb") as lines:
            width = max(len(_line_key(line)) for line in lines)
        keys = np.empty(self.rows, dtype=f"S{width}")
        with (self.folder / LINES).open("rb") as lines:
            for row, line in enumerate(lines):
                keys[row] = _line_key(line)
        order = np.argsort(keys, kind="stable").astype("<i8")
        for start in range(0, self.rows - 1, SHARD_ROWS):
            piece = keys[order[start : start + SHARD_ROWS + 1]]
            same = np.flatnonzero(piece[1:] == piece[:-1])
            if len(same):
                first, second = (int(order[start + same[0] + i]) for i in (0, 1))
                twice = bytes(keys[first]).decode("utf-8", "replace")
                raise CorpusError(
                    f"passage id {twice!r} occurs twice, as passages {first + 1} and {second + 1}; ids must be unique"
                )
        return order

    def close(self) -> None:
        """Close the files without finishing."""
        self._lines.close()
        self._ends.close()


def _line_key(line: bytes) -> bytes:
    """The id's bytes, out of a canonical line (or out of its beginning, where that holds the whole id)."""
    end = line.index(b'"', len(ID_PREFIX))
    raw = line[len(ID_PREFIX) : end]
    return raw if b"\\" not in raw else id_key(parsed_passage(line).id)


def write_passages(passages: Iterable[Passage], folder: Path) -> PassageStore:
    """Write a whole store at once (small corpora, tests).

    Raises:
        CorpusError: empty corpus, duplicate id, or a passage that cannot be stored.
    """
    folder.mkdir(parents=True, exist_ok=True)
    writer = PassageWriter(folder)
    stream = iter(passages)
    try:
        while shard := list(islice(stream, SHARD_ROWS)):
            writer.add(shard)
        writer.finish()
        (folder / _OFFSETS_RAW).unlink()
        (folder / SCRATCH).rmdir()
    finally:
        writer.close()
    return PassageStore(folder)


def build_passages(
    passages: Iterable[Passage], folder: Path, *, overwrite: bool = False, shard_rows: int = SHARD_ROWS
) -> None:
    """Build a folder of passages alone, for `PassageStore.open`. A killed build is taken up again; `folder` appears
    only once it is whole.

    Raises:
        CorpusError: empty corpus, duplicate id, or a passage that cannot be stored.
        RetrieverError: `folder` is there already (and not `overwrite`), or cannot be written.
    """
    with FolderBuild(folder, spec={"kind": KIND, "shard_rows": shard_rows}, overwrite=overwrite) as build:
        for _ in store_in_shards(build, passages, shard_rows=shard_rows):
            pass  # nothing is derived from the passages
        Manifest.write(build.folder, kind=KIND, spec={}, counts={"passages": int(build.progress["rows"])})
        build.finish()


def store_in_shards(
    build: FolderBuild, passages: Iterable[Passage], *, shard_rows: int = SHARD_ROWS
) -> Iterator[tuple[int, list[Passage]]]:
    """Write the passages into `build.folder` shard by shard and hand each new shard on, for whatever is derived from
    it.

    A shard is committed when the next one is asked for: what the caller derives from shard n (token ids, vectors)
    must be on disk, named by n, before it goes on. After a kill the passages committed before are read again from the
    corpus and compared with the stored ones, not derived again; from the first one that differs on, everything is
    built anew. So an index never mixes two corpora, and nothing is lost when the corpus is unchanged. After the last
    shard the store is readable.

    Yields:
        (shard number, its passages); shards that were committed before are not handed out again.

    Raises:
        CorpusError: empty corpus, duplicate id, or a passage that cannot be stored.
    """
    folder = build.folder
    rows, stream = _take_up(folder, int(build.progress.get("rows", 0)), passages, shard_rows)
    writer = PassageWriter(folder, rows=rows)
    try:
        shard = rows // shard_rows
        while batch := list(islice(stream, shard_rows)):
            writer.add(batch)
            yield shard, batch
            build.commit({"rows": writer.sync()})
            shard += 1
        build.commit({"rows": writer.sync()})
        writer.finish()
    finally:
        writer.close()


def _take_up(
    folder: Path, committed: int, passages: Iterable[Passage], shard_rows: int
) -> tuple[int, Iterator[Passage]]:
    """How many stored rows still hold, in whole shards, and the passages from there on."""
    stream = iter(passages)
    stored, ends = folder / LINES, folder / _OFFSETS_RAW
    if (folder / OFFSETS).is_file() and not ends.is_file():
        # Killed after the store was finished (while an index over it was built): the ends are in the finished array.
        np.load(folder / OFFSETS, allow_pickle=False)[1:].tofile(ends)
    if not committed or not stored.is_file() or not ends.is_file() or ends.stat().st_size < 8 * committed:
        return 0, stream
    pending: list[Passage] = []
    rest: list[Passage] = []
    same = 0
    with stored.open("rb") as lines:
        for line in islice(lines, committed):
            if same % shard_rows == 0:
                pending.clear()
            rest = list(islice(stream, 1))
            if not rest or passage_line(rest[0]) != line:
                break
            pending += rest
            rest = []
            same += 1
    beyond = same % shard_rows
    return same - beyond, chain(pending if beyond else [], rest, stream)


def save_array(path: Path, array: np.ndarray) -> None:
    """Write one array whole or not at all, for a shard's derived data.

    Raises:
        RetrieverError: the file cannot be written.
    """
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    write_bytes(path, stream.getvalue())
