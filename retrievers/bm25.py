"""BM25 over passages on disk, on bm25s with its numba backend (2407.03618); rank_bm25 as the named reference.

Our choices: k1 0.9 and b 0.4 with Lucene's formula and analysis, as in the published DPR, BEIR and Anserini
baselines; title and text are indexed together. The index is eager: every score is computed when the index is built,
so k1 and b belong to it.

Building is streamed and resumable. Passages are analysed shard by shard; token ids go to disk as int32. After a kill
the committed shards are kept (see `passages.store_in_shards`), while the last step, bm25s' own index over all shards,
starts again. The folder gets its name only when its manifest has been written, so a partial build never opens.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from retrievers.analysis import Analyzer, TermIds, check_queries
from retrievers.bm25_build import TOKENS, Progress, analyse, checked_spec, index_with_bm25s, memory_estimate
from retrievers.bm25_scoring import Bm25sScorer, RankBm25Scorer, Ranked, TokenShards
from retrievers.errors import CorpusError
from retrievers.files import FolderBuild, clear_write_errors, read_json, write_json
from retrievers.manifest import Manifest
from retrievers.passage_writer import SHARD_ROWS
from retrievers.passages import PassageStore
from retrievers.types import Hit, Passage

KIND = "bm25"
_SAMPLE = 1_000
_INDEX = "index"
Log = Callable[[str], None]


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

                # Not numba's getter, which starts its pool from this thread: see bm25_scoring.py.
                threads = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
            self._scorer = Bm25sScorer(folder / _INDEX, self.passages.rank, threads=threads)
            vocabulary = self._scorer.vocabulary
        else:
            parameters = {name: spec[name] for name in ("method", "k1", "b", "delta")}
            self._scorer = RankBm25Scorer(TokenShards(folder / TOKENS), self.passages.rank, **parameters)
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
        spec = checked_spec(analyzer, fields, k1, b, method, idf_method, delta, backend, dtype)
        with FolderBuild(folder, spec={**spec, "shard_rows": shard_rows}, overwrite=overwrite) as build:
            if log and build.resumed:
                log(f"continuing an interrupted build at passage {build.progress['rows']:,}")
            stream = iter(passages)
            sample = list(islice(stream, _SAMPLE))
            if expected_passages is None and isinstance(passages, Sized):
                expected_passages = len(passages)
            if log:
                log(memory_estimate(sample, expected_passages, analyzer, fields=fields, backend=backend, dtype=dtype))
            terms = analyse(build, chain(sample, stream), analyzer, fields, shard_rows, expected_passages, progress)
            tokens = TokenShards(build.scratch / TOKENS)
            if progress:
                progress("index", 0, len(tokens))
            if not terms:
                raise CorpusError("not one term in all passages: nothing to index; check the texts and the analyzer")
            with clear_write_errors(build.folder):
                if backend == "bm25s":
                    index_with_bm25s(tokens, terms, spec, build.folder / _INDEX)
                else:
                    write_json(build.folder / "vocabulary.json", list(terms))
                    (build.folder / TOKENS).mkdir(exist_ok=True)
                    for path in tokens.files:
                        shutil.copyfile(path, build.folder / TOKENS / path.name)
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
