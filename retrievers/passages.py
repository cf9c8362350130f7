"""Passages on disk: millions of them in flat memory, each one read in constant time by its row.

Layout (our choice): `passages.jsonl`, one canonical JSON object a line; `passages.offsets.npy`, int64 [N + 1], where
each line begins; `passages.order.npy`, int64 [N], the rows sorted by passage id, for look-ups by id;
`passages.rank.npy`, int64 [N], the place of each row in that order, so that ties can be broken by id without reading
a single id.

The corpus fingerprint is the SHA-256 of `passages.jsonl`: the same passages in the same order give the same
fingerprint, whatever file format they came from.

A store's reads are safe from several threads (`os.pread`, no shared file position). It holds an open file, so it is not
picklable; open the folder again in another process.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from retrievers.errors import CorpusError, IndexMismatchError, RetrieverError
from retrievers.files import SCRATCH, FolderBuild, clear_write_errors, write_bytes
from retrievers.types import Hit, Passage

LINES = "passages.jsonl"
OFFSETS = "passages.offsets.npy"
ORDER = "passages.order.npy"
RANK = "passages.rank.npy"
_OFFSETS_RAW = f"{SCRATCH}/passages.offsets.raw"
_ID_PREFIX = '{"id":"'
_ID_PIECE = 160

SHARD_ROWS = 50_000


def passage_line(passage: Passage) -> bytes:
    """The canonical line of a passage: compact JSON, id first, `meta` only where there is one, UTF-8, newline.

    Raises:
        CorpusError: a field is not a string, the id is empty, or `meta` is not JSON.
    """
    if not (isinstance(passage.id, str) and isinstance(passage.text, str) and isinstance(passage.title, str)):
        raise CorpusError(f"passage {passage.id!r}: id, text and title must be strings")
    if not passage.id:
        raise CorpusError(f"a passage with the text {passage.text[:60]!r} has an empty id; give every passage an id")
    fields: dict[str, Any] = {"id": passage.id, "title": passage.title, "text": passage.text}
    if passage.meta:
        fields["meta"] = dict(passage.meta)
    try:
        text = json.dumps(fields, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CorpusError(f"passage {passage.id!r}: meta cannot be written as JSON ({error})") from error
    return text.encode("utf-8", "surrogatepass") + b"\n"


def corpus_fingerprint(passages: Iterable[Passage]) -> str:
    """SHA-256 in hex over the canonical lines; equal to the fingerprint of a store built from the same passages."""
    digest = hashlib.sha256()
    for passage in passages:
        digest.update(passage_line(passage))
    return digest.hexdigest()


class PassageStore(Sequence[Passage]):
    """Read access to passages on disk.

    `store[row]` is a Passage, `store.get(passage_id)` finds one by id in about log2(N) reads, iteration is in corpus
    order.

    Raises:
        IndexMismatchError: a file is missing or does not fit the others.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        try:
            self._offsets, self._order, self.rank = (
                np.asarray(np.load(self.folder / name, mmap_mode="r", allow_pickle=False))
                for name in (OFFSETS, ORDER, RANK)
            )
            self._lines = (self.folder / LINES).open("rb", buffering=0)
        except (OSError, ValueError, EOFError) as error:
            raise IndexMismatchError(
                f"the passages in {self.folder} cannot be opened ({error}); build again"
            ) from error
        size = os.fstat(self._lines.fileno()).st_size
        if self._offsets.ndim != 1 or len(self.rank) != len(self._offsets) - 1 or int(self._offsets[-1]) != size:
            self.close()
            raise IndexMismatchError(f"{self.folder / LINES} does not fit {OFFSETS}; build the index again")

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        return _passage(self._read(self._checked(row)))

    def __iter__(self) -> Iterator[Passage]:
        with (self.folder / LINES).open("rb") as lines:
            for line in lines:
                yield _passage(line)

    def id(self, row: int) -> str:
        """The id of one row, without reading its text."""
        return self.ids_of(np.array([row]))[0]

    def ids_of(self, rows: np.ndarray) -> list[str]:
        """The ids of some rows, without reading their texts."""
        file = self._open_file()
        found = []
        starts, lengths = self._spans(rows)
        for row, start, length in zip(rows.tolist(), starts.tolist(), lengths.tolist(), strict=True):
            piece = os.pread(file, min(length, _ID_PIECE), start)
            end = piece.find(b'"', len(_ID_PREFIX))
            raw = piece[len(_ID_PREFIX) : end]
            found.append(self[row].id if end < 0 or b"\\" in raw else raw.decode("utf-8", "surrogatepass"))
        return found

    def ids(self) -> Iterator[str]:
        """All ids in corpus order, streamed."""
        return (passage.id for passage in self)

    def row(self, passage_id: str) -> int | None:
        """The row of a passage id, or None."""
        wanted = _id_key(passage_id)
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            if _id_key(self.id(int(self._order[middle]))) < wanted:
                low = middle + 1
            else:
                high = middle
        if low < len(self) and self.id(int(self._order[low])) == passage_id:
            return int(self._order[low])
        return None

    def get(self, passage_id: str) -> Passage | None:
        """The passage with this id, or None."""
        row = self.row(passage_id)
        return None if row is None else self[row]

    def hits(self, rows: np.ndarray | Sequence[int], scores: Sequence[float]) -> list[Hit]:
        """Hits with texts for parallel `rows` and `scores`, in the order given.

        Raises:
            IndexError: a row that is not there; -1 is not the last one, it is faiss' word for nothing found.
        """
        file = self._open_file()
        found = []
        starts, lengths = self._spans(rows)
        for start, length, score in zip(starts.tolist(), lengths.tolist(), scores, strict=True):
            fields = json.loads(os.pread(file, length, start).decode("utf-8", "surrogatepass"))
            found.append(Hit(fields["id"], score, fields["text"], fields["title"], fields.get("meta") or {}))
        return found

    def close(self) -> None:
        """Close the file. The store cannot be read afterwards."""
        self._lines.close()

    def __enter__(self) -> PassageStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError(f"a PassageStore is not picklable; open {self.folder} again in the other process")

    def _checked(self, row: int) -> int:
        count = len(self)
        if not -count <= row < count:
            raise IndexError(f"row {row} of {count} passages")
        return row % count

    def _spans(self, rows: np.ndarray | Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        wanted = np.asarray(rows, dtype=np.int64)
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"rows between {wanted.min()} and {wanted.max()} of {len(self)} passages")
        starts = self._offsets[wanted]
        return starts, self._offsets[wanted + 1] - starts

    def _open_file(self) -> int:
        if self._lines.closed:
            raise RetrieverError(f"the passages in {self.folder} have been closed; open the index again")
        return self._lines.fileno()

    def _read(self, row: int) -> bytes:
        start, end = int(self._offsets[row]), int(self._offsets[row + 1])
        return os.pread(self._open_file(), end - start, start)


def _passage(line: bytes) -> Passage:
    fields = json.loads(line.decode("utf-8", "surrogatepass"))
    return Passage(fields["id"], fields["text"], fields["title"], fields.get("meta") or {})


def _id_key(passage_id: str) -> bytes:
    """Ids are ordered by their UTF-8 bytes, which is the order of Python's strings too."""
    return passage_id.encode("utf-8", "surrogatepass")


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
    end = line.index(b'"', len(_ID_PREFIX))
    raw = line[len(_ID_PREFIX) : end]
    return raw if b"\\" not in raw else _id_key(_passage(line).id)


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
