"""Retrieval results kept on disk: evaluation runs ask the same questions of the same index again and again.

A result is kept under the SHA-256 of question, k and the retriever's own fingerprint, so another index, parameter or
k never meets it. Storage is SQLite in WAL mode: a kill in the middle of a write loses that write and nothing else,
and several processes may share one cache. Every row carries a checksum; a damaged row is fetched anew.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from retrievers.check import check_hits, fingerprint_of, name_of
from retrievers.errors import RetrieverError
from retrievers.types import Hit, Retriever

_FILE = "retrieval.sqlite"
_SCHEMA = "CREATE TABLE IF NOT EXISTS results (key TEXT PRIMARY KEY, payload TEXT NOT NULL, checksum TEXT NOT NULL)"
_BUSY_SECONDS = 60.0


@dataclass
class CacheCounts:
    """Questions since opening: answered from the cache, asked of the retriever, and asked but not kept (hits whose
    `meta` JSON does not give back as it was)."""

    found: int = 0
    asked: int = 0
    not_kept: int = 0


class CachedRetriever:
    """A retriever whose results are kept in `folder`. A cached answer equals the fresh one exactly.

    Args:
        retriever: must have a `fingerprint()`.
        folder: made if absent; may hold the results of many retrievers.

    Raises:
        RetrieverError: the retriever has no fingerprint, or the cache cannot be opened.
    """

    def __init__(self, retriever: Retriever, folder: Path | str) -> None:
        if fingerprint_of(retriever) is None:
            raise RetrieverError(
                f"{name_of(retriever)} has no fingerprint(): results cannot be cached; add it or turn caching off"
            )
        self.retriever = retriever
        self.counts = CacheCounts()
        self._path = Path(folder) / _FILE
        self._lock = threading.Lock()
        with self._clear_errors():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self._path, timeout=_BUSY_SECONDS, check_same_thread=False)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.execute(_SCHEMA)
            self._database.commit()

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise RetrieverError(
                f"the retrieval cache {self._path} cannot be used ({error}); "
                "check the folder, or delete the file: it can be made again"
            ) from error

    def retrieve(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """As the retriever's own `retrieve`; it is asked once for what is not there, without repetitions.

        Raises:
            RetrieverError: from the retriever, for a broken contract (it is named), or for a cache that cannot be used.
        """
        mark = fingerprint_of(self.retriever)
        keys = [_key(query, k, str(mark)) for query in queries]
        known = self._load(set(keys))
        missing = {key: query for key, query in zip(keys, queries, strict=True) if key not in known}
        self.counts.found += sum(key in known for key in keys)
        self.counts.asked += len(missing)
        if missing:
            asked = list(missing.values())
            fresh = self.retriever.retrieve(asked, k)
            check_hits(name_of(self.retriever), asked, fresh, k)
            results = {key: list(hits) for key, hits in zip(missing, fresh, strict=True)}
            self._store(results)
            known.update(results)
        return [list(known[key]) for key in keys]

    def fingerprint(self) -> str | None:
        """The retriever's own: caching changes no result."""
        return fingerprint_of(self.retriever)

    def close(self) -> None:
        """Close the cache and the retriever."""
        self._database.close()
        close = getattr(self.retriever, "close", None)
        if close is not None:
            close()

    def _load(self, keys: set[str]) -> dict[str, list[Hit]]:
        found = {}
        with self._lock, self._clear_errors():
            for key in keys:
                row = self._database.execute("SELECT payload, checksum FROM results WHERE key = ?", (key,)).fetchone()
                if row is not None and _checksum(key, row[0]) == row[1]:
                    found[key] = _decoded(row[0])
        return found

    def _store(self, results: dict[str, list[Hit]]) -> None:
        rows = []
        for key, hits in results.items():
            payload = _encoded(hits)
            if payload is None or _decoded(payload) != hits:
                self.counts.not_kept += 1
            else:
                rows.append((key, payload, _checksum(key, payload)))
        with self._lock, self._clear_errors(), self._database:
            self._database.executemany("INSERT OR REPLACE INTO results VALUES (?, ?, ?)", rows)


def cached(retriever: Retriever, folder: Path | str) -> Retriever:
    """The retriever with a cache if it has a fingerprint, else the retriever itself."""
    return retriever if fingerprint_of(retriever) is None else CachedRetriever(retriever, folder)


def _key(query: str, k: int, fingerprint: str) -> str:
    return sha256(json.dumps([query, k, fingerprint]).encode()).hexdigest()


def _checksum(key: str, payload: str) -> str:
    return sha256(f"{key}{payload}".encode("utf-8", "surrogatepass")).hexdigest()


def _encoded(hits: Sequence[Hit]) -> str | None:
    """JSON in ASCII, so that any text survives; None where `meta` is not JSON."""
    try:
        rows = [[hit.passage_id, hit.score, hit.text, hit.title, dict(hit.meta)] for hit in hits]
        return json.dumps(rows, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError):
        return None


def _decoded(payload: str) -> list[Hit]:
    return [Hit(*row) for row in json.loads(payload)]
