"""Dense retrieval: passages as vectors on disk, questions matched by inner product.

An index is a folder: the passages, their vectors in shards (`vectors/00000.npy`, ...), for the kinds that need one a
faiss file, and a manifest with the hash of every file and the encoder's fingerprint. How it is built is in
`retrievers.dense_build`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from retrievers.compute import require, spec_sha256
from retrievers.dense_build import (
    FAISS_FILE,
    KIND,
    SHARD_SIZE,
    DenseBuildReport,
    build_dense,
    checked_vectors,
    mapped,
    sidecar_path,
)
from retrievers.encoders import Encoder
from retrievers.errors import IndexMismatchError, RetrieverError
from retrievers.faiss_index import SEARCH_ONLY, FaissSearch, checked_parameters
from retrievers.files import read_json
from retrievers.manifest import Manifest
from retrievers.passages import PassageStore
from retrievers.types import Hit, Passage


class Search(Protocol):
    """Vectors to rows: `ExactSearch` or `FaissSearch`."""

    def search(
        self, queries: npt.NDArray[np.float32], k: int
    ) -> Sequence[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]]:
        """One (scores, rows) a query, at most k, best first."""
        ...


class DenseRetriever:
    """Questions to passages by the inner product of their vectors. Made by `open`, after `build`."""

    def __init__(
        self,
        encoder: Encoder,
        manifest: Manifest,
        store: PassageStore,
        search: Search,
        parameters: Mapping[str, int],
    ) -> None:
        """Use `open`."""
        self._encoder = encoder
        self._manifest = manifest
        self._store = store
        self._search = search
        self._parameters = parameters

    @classmethod
    def build(
        cls,
        passages: Iterable[Passage],
        folder: str | Path,
        encoder: Encoder,
        *,
        index: str = "exact",
        dtype: str = "float32",
        shard_size: int = SHARD_SIZE,
        parameters: Mapping[str, int] | None = None,
        expected: int | None = None,
        overwrite: bool = False,
        log: Callable[[str], None] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> DenseBuildReport:
        """Encode the passages and write the index folder, whole or not at all.

        Args:
            passages: streamed once, ids unique.
            folder: the index's; must not exist unless `overwrite`. An interrupted build of the same passages, encoder
                and settings is continued.
            encoder: its `fingerprint` is kept and asked for on opening.
            index: `exact` (every passage compared, by matrix multiplication), or faiss's `flat`, `ivf`, `hnsw`.
            dtype: of the stored vectors; `bfloat16` halves disk and rounds scores at the third digit.
            shard_size: passages a shard; also what an interrupted build may lose.
            parameters: of a faiss index, see `retrievers.faiss_index.checked_parameters`.
            expected: number of passages, for the estimate, where `passages` has no len().
            log: gets the estimate of disk and memory before the work starts, and what was continued.
            progress: gets the number of passages done, after each piece.

        Raises:
            RetrieverError: bad settings, an existing folder, a full disk, vectors of the wrong shape or not finite.
            CorpusError: no passages, or a passage id that occurs twice.
            MissingExtraError: torch or faiss is needed and not installed.
        """
        return build_dense(
            passages,
            folder,
            encoder,
            index=index,
            dtype=dtype,
            shard_size=shard_size,
            parameters=parameters or {},
            expected=expected,
            overwrite=overwrite,
            log=log,
            progress=progress,
        )

    @classmethod
    def open(
        cls,
        folder: str | Path,
        encoder: Encoder,
        *,
        precision: str = "auto",
        device: str = "auto",
        parameters: Mapping[str, int] | None = None,
    ) -> DenseRetriever:
        """Open an index with the encoder that built it.

        Args:
            precision: of an `exact` index's matmul: `float32`, `bfloat16` or `auto`; the results are the same, see
                `retrievers.search`.
            device: of an `exact` index's matmul: `auto`, `cpu`, `cuda[:n]`.
            parameters: search-time parameters of a faiss index (`probes`, `ef_search`) other than the build's.

        Raises:
            IndexMismatchError: another encoder, an incomplete or damaged folder.
            RetrieverError: a parameter that only a new build can change.
        """
        folder = Path(folder)
        manifest = Manifest.open(folder, kind=KIND)
        if manifest.spec["encoder"] != encoder.fingerprint() or manifest.spec["dim"] != encoder.dim:
            raise IndexMismatchError(
                f"{folder} was built by encoder {manifest.spec['encoder']!r} ({manifest.spec['dim']} numbers), "
                f"but it is opened with {encoder.fingerprint()!r} ({encoder.dim}); open it with the encoder that built "
                "it, or build the index again with this one."
            )
        asked = _search_parameters(manifest.spec, parameters or {})
        store = PassageStore(folder)
        try:
            search = _open_search(folder, manifest, store, asked, precision=precision, device=device)
        except BaseException:
            store.close()
            raise
        return cls(encoder, manifest, store, search, asked)

    def __len__(self) -> int:
        return len(self._store)

    @property
    def counts(self) -> Mapping[str, int]:
        """`passages`, `shards` and `truncated` (passages that the encoder cut)."""
        return self._manifest.counts

    def retrieve(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """The k best passages of each query (all where there are fewer), ties by passage id.

        An empty query (nothing but white space) has no hits: its vector would be that of nothing in particular. An
        approximate index (`ivf`, `hnsw`) may give fewer than k.

        Raises:
            RetrieverError: k below 1, vectors that are not finite, or a closed retriever.
        """
        if k < 1:
            raise RetrieverError(f"k is {k}; expected at least 1.")
        asked = [row for row, query in enumerate(queries) if query.strip()]
        results: list[list[Hit]] = [[] for _ in queries]
        if not asked:
            return results
        vectors = checked_vectors(
            self._encoder.encode_queries([queries[row] for row in asked]), len(asked), self._encoder.dim
        )
        for row, (scores, rows) in zip(asked, self._search.search(vectors, min(k, len(self._store))), strict=True):
            order = np.lexsort((self._store.rank[rows], -scores))
            results[row] = self._store.hits(rows[order].tolist(), scores[order].tolist())
        return results

    def fingerprint(self) -> str:
        """Changes with the index's files, the encoder and its precision; equal ones give equal hits."""
        precision = getattr(self._encoder, "precision", "")
        spec = {"index": self._manifest.fingerprint, "precision": precision, "parameters": dict(self._parameters)}
        return f"dense:{spec_sha256(spec)}"

    def close(self) -> None:
        """Close the index's files; the encoder is the caller's."""
        self._store.close()


def _search_parameters(spec: Mapping[str, Any], given: Mapping[str, int]) -> dict[str, int]:
    if spec["index"] == "exact":
        if given:
            raise RetrieverError(f"an exact index has no parameters, got {sorted(given)}; leave them out.")
        return {}
    fixed = sorted(set(given) - set(SEARCH_ONLY))
    if fixed:
        raise RetrieverError(f"parameters {fixed} belong to the build; only {list(SEARCH_ONLY)} can change on opening.")
    return checked_parameters(spec["index"], {**spec["parameters"], **given})


def _open_search(
    folder: Path,
    manifest: Manifest,
    store: PassageStore,
    parameters: Mapping[str, int],
    *,
    precision: str,
    device: str,
) -> Search:
    rows, dim, shards = len(store), int(manifest.spec["dim"]), int(manifest.counts["shards"])
    kind = manifest.spec["index"]
    if kind != "exact":
        return FaissSearch(folder / FAISS_FILE, kind, rows=rows, dim=dim, parameters=parameters)
    vectors = folder / "vectors"
    require("torch")
    from retrievers.search import ExactSearch, Spread

    sides = [read_json(sidecar_path(vectors, number)) for number in range(shards)]
    return ExactSearch(
        [mapped(vectors, number) for number in range(shards)],
        precision=precision,
        device=device,
        tie_rank=store.rank,
        spread=Spread.joined([Spread(side["norm"], side["residual"]) for side in sides]),
    )
