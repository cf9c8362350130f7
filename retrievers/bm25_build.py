"""The steps of building a BM25 index: parameters checked, passages analysed shard by shard, bm25s' own index over all
of them.

Token ids go to disk as int32 and are read back passage by passage, so that no list of words ever stands in memory.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from retrievers.analysis import Analyzer, TermIds
from retrievers.bm25_scoring import TokenShards
from retrievers.errors import RetrieverError
from retrievers.files import FolderBuild, clear_write_errors, write_bytes
from retrievers.passage_writer import save_array, store_in_shards
from retrievers.types import Passage

Progress = Callable[[str, int, int | None], None]
TOKENS = "tokens"
METHODS = {
    "bm25s": ("lucene", "atire", "robertson", "bm25+", "bm25l"),
    "rank_bm25": ("okapi", "bm25+", "bm25l"),
}
_IDF_METHODS = METHODS["bm25s"]
# From here on bm25s' linear-time compiled sort is worth its two seconds of compiling; it also needs half the memory.
_COMPILED_SORT_POSTINGS = 2_000_000


def memory_estimate(
    sample: Sequence[Passage],
    expected_passages: int | None,
    analyzer: Analyzer,
    *,
    fields: str = "title_text",
    backend: str = "bm25s",
    dtype: str = "float32",
) -> str:
    """A sentence on the peak memory and the disk space that building needs, judged by a sample of the passages."""
    if not sample:
        return "the corpus seems to be empty"
    count = expected_passages or 1_000_000
    terms = [analyzer.terms(_indexed_text(passage, fields)) for passage in sample]
    postings = sum(len(set(passage)) for passage in terms) / len(sample) * count
    tokens = sum(map(len, terms)) / len(sample) * count
    text = sum(len(passage.text) + len(passage.title) + 40 for passage in sample) / len(sample) * count
    width = 4 if dtype == "float32" else 8
    if backend == "bm25s":
        # scores, rows and columns as built, scores and rows once more as sorted, and what numpy copies on the way
        memory = postings * (2 * width + 18) + count * 60 + 400e6
    else:
        memory = tokens * 8 + postings * 150 + 400e6
    disk = text + 4 * tokens + postings * (width + 4) + count * 24
    about = f"{expected_passages:,} passages" if expected_passages else "each million passages (number unknown)"
    return f"building takes about {memory / 1e9:.1f} GB of memory and {disk / 1e9:.1f} GB of disk for {about}"


def checked_spec(
    analyzer: Analyzer,
    fields: str,
    k1: float,
    b: float,
    method: str | None,
    idf_method: str | None,
    delta: float | None,
    backend: str,
    dtype: str,
) -> dict[str, Any]:
    if backend not in METHODS:
        raise RetrieverError(f"BM25 backend is {backend!r}, expected one of {', '.join(METHODS)}")
    method = method or METHODS[backend][0]
    if method not in METHODS[backend]:
        raise RetrieverError(f"method is {method!r}; {backend} has {', '.join(METHODS[backend])}")
    if idf_method is not None and (backend != "bm25s" or idf_method not in _IDF_METHODS):
        raise RetrieverError(f"idf_method is {idf_method!r}; bm25s has {', '.join(_IDF_METHODS)}, rank_bm25 none")
    if fields not in ("title_text", "text"):
        raise RetrieverError(f"fields is {fields!r}, expected 'title_text' or 'text'")
    if dtype not in ("float32", "float64"):
        raise RetrieverError(f"dtype is {dtype!r}, expected 'float32' or 'float64'")
    if not (0 <= k1 < float("inf") and 0 <= b <= 1):
        raise RetrieverError(f"k1 is {k1} and b is {b}; expected k1 >= 0 and 0 <= b <= 1")
    if method in ("bm25+", "bm25l"):
        delta = (1.0 if method == "bm25+" else 0.5) if delta is None else float(delta)
        if not 0 <= delta < float("inf"):
            raise RetrieverError(f"delta is {delta}, expected at least 0")
    elif delta is not None:
        raise RetrieverError(f"delta is {delta}, but method {method} has no delta; leave it out")
    return {
        "analyzer": analyzer.spec,
        "fields": fields,
        "k1": float(k1),
        "b": float(b),
        "method": method,
        "idf_method": idf_method,
        "delta": delta,
        "backend": backend,
        "dtype": dtype,
    }


def _indexed_text(passage: Passage, fields: str) -> str:
    return f"{passage.title} {passage.text}" if fields == "title_text" and passage.title else passage.text


def analyse(
    build: FolderBuild,
    passages: Iterable[Passage],
    analyzer: Analyzer,
    fields: str,
    shard_rows: int,
    expected: int | None,
    progress: Progress | None,
) -> dict[str, int]:
    """Store the passages and write their token ids, shard by shard; the vocabulary, term -> number."""
    folder = build.scratch / TOKENS
    with clear_write_errors(folder):
        folder.mkdir(exist_ok=True)
    terms: dict[str, int] = {}
    to_ids = TermIds(analyzer, terms, grow=True)
    kept = 0
    for shard, batch in store_in_shards(build, passages, shard_rows=shard_rows):
        _add_stored_terms(terms, folder, range(kept, shard))
        known = len(terms)
        flat, lengths = array("i"), array("i")
        for passage in batch:
            ids = to_ids(_indexed_text(passage, fields))
            flat.extend(ids)
            lengths.append(len(ids))
        save_array(folder / f"tokens-{shard:06}.npy", np.frombuffer(flat, np.int32) if flat else np.zeros(0, np.int32))
        save_array(folder / f"lengths-{shard:06}.npy", np.frombuffer(lengths, np.int32))
        fresh = json.dumps(list(islice(terms, known, None)), ensure_ascii=False)
        write_bytes(folder / f"terms-{shard:06}.json", fresh.encode("utf-8", "surrogatepass"))
        kept = shard + 1
        if progress:
            progress("analyse", shard * shard_rows + len(batch), expected)
    shards = -(-int(build.progress["rows"]) // shard_rows)
    _add_stored_terms(terms, folder, range(kept, shards))
    with clear_write_errors(folder):
        # What an interrupted build of a longer corpus has left behind.
        for path in folder.iterdir():
            if path.name.startswith(".") or int(path.stem.partition("-")[2]) >= shards:
                path.unlink()
    return terms


def _add_stored_terms(terms: dict[str, int], folder: Path, shards: Iterable[int]) -> None:
    for shard in shards:
        for term in json.loads((folder / f"terms-{shard:06}.json").read_bytes().decode("utf-8", "surrogatepass")):
            terms.setdefault(term, len(terms))


def index_with_bm25s(tokens: TokenShards, terms: dict[str, int], spec: Mapping[str, Any], folder: Path) -> None:
    import bm25s

    index = bm25s.BM25(
        k1=spec["k1"],
        b=spec["b"],
        delta=0.0 if spec["delta"] is None else spec["delta"],
        method=spec["method"],
        idf_method=spec["idf_method"],
        dtype=spec["dtype"],
        backend="numba",
    )
    if len(tokens) * 50 > _COMPILED_SORT_POSTINGS:
        index.activate_numba_csc()
    index.scores = index.build_index_from_ids(terms.values(), tokens, show_progress=False)
    index.vocab_dict = terms
    index.save(folder, show_progress=False)
