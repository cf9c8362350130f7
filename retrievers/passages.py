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
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retrievers.errors import CorpusError, IndexMismatchError, RetrieverError
from retrievers.manifest import Manifest
from retrievers.types import Hit, Passage

LINES = "passages.jsonl"
OFFSETS = "passages.offsets.npy"
ORDER = "passages.order.npy"
RANK = "passages.rank.npy"
KIND = "passages"
ID_PREFIX = '{"id":"'
_ID_PIECE = 160


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

    @classmethod
    def open(cls, folder: Path | str) -> PassageStore:
        """The store in a folder of its own, checked against its manifest (see `passage_writer.build_passages`).

        Raises:
            IndexMismatchError: incomplete or damaged; the file is named.
        """
        Manifest.open(Path(folder), kind=KIND)
        return cls(folder)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        return parsed_passage(self._read(self._checked(row)))

    def __iter__(self) -> Iterator[Passage]:
        with (self.folder / LINES).open("rb") as lines:
            for line in lines:
                yield parsed_passage(line)

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
            end = piece.find(b'"', len(ID_PREFIX))
            raw = piece[len(ID_PREFIX) : end]
            found.append(self[row].id if end < 0 or b"\\" in raw else raw.decode("utf-8", "surrogatepass"))
        return found

    def ids(self) -> Iterator[str]:
        """All ids in corpus order, streamed."""
        return (passage.id for passage in self)

    def row(self, passage_id: str) -> int | None:
        """The row of a passage id, or None."""
        wanted = id_key(passage_id)
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            if id_key(self.id(int(self._order[middle]))) < wanted:
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


def parsed_passage(line: bytes) -> Passage:
    """The passage of a canonical line."""
    fields = json.loads(line.decode("utf-8", "surrogatepass"))
    return Passage(fields["id"], fields["text"], fields["title"], fields.get("meta") or {})


def id_key(passage_id: str) -> bytes:
    """Ids are ordered by their UTF-8 bytes, which is the order of Python's strings too."""
    return passage_id.encode("utf-8", "surrogatepass")
