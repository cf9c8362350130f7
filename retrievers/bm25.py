"""BM25 over passages on disk, on bm25s with its numba backend (2407.03618); rank_bm25 as the named reference.

Our choices: k1 0.9 and b 0.4 with Lucene's formula and analysis, as in the published DPR, BEIR and Anserini
baselines; title and text are indexed together. The index is eager: every score is computed when the index is built,
so k1 and b belong to it.

Building is streamed and resumable. Passages are analysed shard by shard; token ids go to disk as int32. After a kill
the committed shards are kept (see `passages.store_in_shards`), while the last step, bm25s' own index over all shards,
starts again. The folder gets its name only when its manifest has been written, so a partial build never opens.
"""

from __future__ import annotations

import json
import shutil
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from retrievers.analysis import Analyzer, TermIds, check_queries
from retrievers.bm25_scoring import Bm25sScorer, RankBm25Scorer, Ranked, TokenShards
from retrievers.errors import CorpusError, IndexMismatchError, RetrieverError
from retrievers.files import FolderBuild, clear_write_errors, read_json, write_bytes, write_json
from retrievers.manifest import Manifest
from retrievers.passages import SHARD_ROWS, PassageStore, save_array, store_in_shards
from retrievers.types import Hit, Passage

KIND = "bm25"
METHODS = {
    "bm25s": ("lucene", "atire", "robertson", "bm25+", "bm25l"),
    "rank_bm25": ("okapi", "bm25+", "bm25l"),
}
_IDF_METHODS = METHODS["bm25s"]
_SAMPLE = 1_000
_INDEX = "index"
_TOKENS = "tokens"
# From here on bm25s' linear-time compiled sort is worth its two seconds of compiling; it also needs half the memory.
_COMPILED_SORT_POSTINGS = 2_000_000

Log = Callable[[str], None]
Progress = Callable[[str, int, int | None], None]


class BM25Retriever:
    """Questions to passages by BM25. Made by `BM25Retriever.build(...)` once, then `BM25Retriever.open(folder)`.

    A question without any indexed term (empty, stopwords only, unknown words) finds nothing: its list of hits is empty.
    k beyond the corpus is clamped, passages with score zero are never returned, equal scores are ordered by passage id.
    A term that a question repeats counts as often as it stands there. `retrieve` may be called from several threads.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, *, threads: int | None = None, max_query_characters: int = 20_000
    ) -> None:
        spec = manifest.spec
        self.folder = folder
        self.manifest = manifest
        self.analyzer = Analyzer.from_spec(spec["analyzer"])
        self.passages = PassageStore(folder)
        self.max_query_characters = max_query_characters
        self._scorer: Bm25sScorer | RankBm25Scorer
        if spec["backend"] == "bm25s":
            if threads is None:
                import numba

                threads = numba.get_num_threads()
            self._scorer = Bm25sScorer(folder / _INDEX, self.passages.rank, threads=threads)
            vocabulary = self._scorer.vocabulary
        else:
            parameters = {name: spec[name] for name in ("method", "k1", "b", "delta")}
            self._scorer = RankBm25Scorer(TokenShards(folder / _TOKENS), self.passages.rank, **parameters)
            vocabulary = {term: number for number, term in enumerate(read_json(folder / "vocabulary.json"))}
        self._term_ids = TermIds(self.analyzer, vocabulary, grow=False, memo=200_000)

    @staticmethod
    def build(
        passages: Iterable[Passage],
        folder: Path | str,
        *,
        analyzer: Analyzer | None = None,
        fields: Literal["title_text", "text"] = "title_text",
        k1: float = 0.9,
        b: float = 0.4,
        method: str | None = None,
        idf_method: str | None = None,
        delta: float | None = None,
        backend: Literal["bm25s", "rank_bm25"] = "bm25s",
        dtype: Literal["float32", "float64"] = "float32",
        expected_passages: int | None = None,
        overwrite: bool = False,
        shard_rows: int = SHARD_ROWS,
        log: Log | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Build an index folder from a stream of passages.

        Args:
            passages: gone through once. To continue an interrupted build, pass the same corpus from its beginning.
            folder: must not exist unless `overwrite`.
            analyzer: text to terms; None is `Analyzer()`.
            fields: index title and text, or the text alone.
            k1, b: of the formula, k1 >= 0 and 0 <= b <= 1.
            method: bm25s: lucene (default), atire, robertson, bm25+, bm25l; rank_bm25: okapi (default), bm25+, bm25l.
            idf_method: bm25s only: take the idf of another method. `atire` with idf `robertson` is rank_bm25's Okapi
                for
                terms in at most half of the passages.
            delta: of bm25+ (default 1.0) and bm25l (default 0.5).
            backend: `rank_bm25` is the slow reference, for small corpora.
            dtype: of the stored scores.
            expected_passages: for the memory estimate and the progress; `corpus.estimate_passages` tells it for a file.
            overwrite: replace an index that is there, once the new one is complete.
            shard_rows: passages a shard, that is, between two commits.
            log: called with sentences, the memory estimate before the work starts among them.
            progress: called with (stage, passages done, passages expected).

        Raises:
            CorpusError: empty corpus, duplicate ids, or not one term in all passages.
            RetrieverError: a parameter out of range, folder exists or cannot be written.
        """
        analyzer = analyzer or Analyzer()
        spec = _checked_spec(analyzer, fields, k1, b, method, idf_method, delta, backend, dtype)
        with FolderBuild(folder, spec={**spec, "shard_rows": shard_rows}, overwrite=overwrite) as build:
            if log and build.resumed:
                log(f"continuing an interrupted build at passage {build.progress['rows']:,}")
            stream = iter(passages)
            sample = list(islice(stream, _SAMPLE))
            if expected_passages is None and isinstance(passages, Sized):
                expected_passages = len(passages)
            if log:
                log(memory_estimate(sample, expected_passages, analyzer, fields=fields, backend=backend, dtype=dtype))
            terms = _analyse(build, chain(sample, stream), analyzer, fields, shard_rows, expected_passages, progress)
            tokens = TokenShards(build.scratch / _TOKENS)
            if progress:
                progress("index", 0, len(tokens))
            if not terms:
                raise CorpusError("not one term in all passages: nothing to index; check the texts and the analyzer")
            with clear_write_errors(build.folder):
                if backend == "bm25s":
                    _index_with_bm25s(tokens, terms, spec, build.folder / _INDEX)
                else:
                    write_json(build.folder / "vocabulary.json", list(terms))
                    (build.folder / _TOKENS).mkdir(exist_ok=True)
                    for path in tokens.files:
                        shutil.copyfile(path, build.folder / _TOKENS / path.name)
            if progress:
                progress("index", len(tokens), len(tokens))
            Manifest.write(build.folder, kind=KIND, spec=spec, counts={"passages": len(tokens), "terms": len(terms)})
            build.finish()

    @classmethod
    def open(
        cls,
        folder: Path | str,
        *,
        analyzer: Analyzer | None = None,
        expected_spec: Mapping[str, Any] | None = None,
        threads: int | None = None,
        max_query_characters: int = 20_000,
        full_check: bool | None = None,
    ) -> BM25Retriever:
        """Open an index folder, memory-mapped.

        Args:
            analyzer: if given, the index must have been built with an equal one.
            expected_spec: further fields of the manifest's spec that must be as given, such as {"k1": 0.9}.
            threads: for a batch of questions; None takes numba's own number. Results do not depend on it.
            max_query_characters: a longer question is refused.
            full_check: hash every file now; None does so for small folders only (see `manifest`).

        Raises:
            IndexMismatchError: incomplete, damaged, or built otherwise; the file or field is named.
        """
        expected = {**(expected_spec or {}), **({"analyzer": analyzer.spec} if analyzer else {})}
        manifest = Manifest.open(Path(folder), kind=KIND, expected_spec=expected, full=full_check)
        return cls(Path(folder), manifest, threads=threads, max_query_characters=max_query_characters)

    def search(self, queries: Sequence[str], k: int) -> list[Ranked]:
        """Rows of `self.passages` and their scores, as arrays, without reading any text: the fast path.

        Returns:
            one pair (rows: int64 [n], scores: [n]) a query, n at most k, best first.

        Raises:
            RetrieverError: bad queries or k, or the index is closed.
        """
        asked = check_queries(queries, k, max_characters=self.max_query_characters)
        return list(self._scorer.top([self._term_ids(query) for query in asked], k)) if asked else []

    def rank(self, queries: Sequence[str], k: int) -> list[list[tuple[str, float]]]:
        """Like `retrieve`, but ids and scores only, without texts."""
        name = self.passages.ids_of
        return [list(zip(name(rows), scores.tolist(), strict=True)) for rows, scores in self.search(queries, k)]

    def retrieve(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """At most k hits a query, best first, with texts.

        Raises:
            RetrieverError: a query that is not a string or is over-long, k below 1, or the index is closed.
        """
        hits = self.passages.hits
        return [hits(rows, scores.tolist()) for rows, scores in self.search(queries, k)]

    def passage(self, passage_id: str) -> Passage | None:
        """The passage with this id, or None."""
        return self.passages.get(passage_id)

    def fingerprint(self) -> str:
        """SHA-256 over the manifest: corpus, analyzer, parameters and every file."""
        return self.manifest.fingerprint

    def __len__(self) -> int:
        return len(self.passages)

    def close(self) -> None:
        """Release the files; the retriever cannot be used afterwards."""
        self.passages.close()


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


def _checked_spec(
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


def _analyse(
    build: FolderBuild,
    passages: Iterable[Passage],
    analyzer: Analyzer,
    fields: str,
    shard_rows: int,
    expected: int | None,
    progress: Progress | None,
) -> dict[str, int]:
    """Store the passages and write their token ids, shard by shard; the vocabulary, term -> number."""
    folder = build.scratch / _TOKENS
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


def _index_with_bm25s(tokens: TokenShards, terms: dict[str, int], spec: Mapping[str, Any], folder: Path) -> None:
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


__all__ = ["BM25Retriever", "IndexMismatchError", "memory_estimate"]
