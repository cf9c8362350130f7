"""A config's corpus: its passages as a stream, and a hash that changes when its file does."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from pipelines import config as c
from pipelines.errors import retrieval_errors
from retrievers.corpus import read_corpus
from retrievers.types import Passage

WHOLE_BYTES = 200_000_000
EDGE_BYTES = 1_000_000


def passages(block: c.Corpus) -> Iterator[Passage]:
    """The passages of a corpus block, streamed.

    Raises:
        CorpusError: the file is missing, empty or malformed.
    """
    with retrieval_errors():
        yield from read_corpus(block.path, format=block.format, limit=block.limit)


def corpus_sha256(path: Path) -> str:
    """A hash of the corpus's bytes. Above `WHOLE_BYTES` (our choice) only the size and both ends of a file are
    hashed, so that opening an
    index over 13 GB of text does not read all of it.

    Raises:
        CorpusError: nothing is there.
    """
    with retrieval_errors():
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        if not path.exists():
            next(iter(read_corpus(path)))  # raises the reader's own error
        parts = [_file_sha256(file, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()


@lru_cache(maxsize=64)
def _file_sha256(file: Path, size: int, modified: int) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        if size <= WHOLE_BYTES:
            while piece := stream.read(1 << 20):
                digest.update(piece)
        else:
            digest.update(f"{size}:".encode() + stream.read(EDGE_BYTES))
            stream.seek(-EDGE_BYTES, 2)
            digest.update(stream.read())
    return digest.hexdigest()
