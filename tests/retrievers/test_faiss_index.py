"""faiss indexes: exactness or recall against brute force, seeds, padding, settings put back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from retrievers.errors import IndexMismatchError, RetrieverError
from retrievers.faiss_index import FaissSearch, build_faiss, checked_parameters, lists_for, tuned_faiss

faiss = pytest.importorskip("faiss")


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    rows = np.random.default_rng(0).standard_normal((2000, 16)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def built(path: Path, kind: str, vectors: np.ndarray, **given: int) -> FaissSearch:
    def shards() -> Iterator[np.ndarray]:
        return iter(np.array_split(vectors, 3))

    parameters = checked_parameters(kind, given)
    build_faiss(path, kind, shards, rows=len(vectors), dim=vectors.shape[1], parameters=parameters)
    return FaissSearch(path, kind, rows=len(vectors), dim=vectors.shape[1], parameters=parameters)


def recall(search: FaissSearch, vectors: np.ndarray, k: int = 10) -> float:
    queries = np.random.default_rng(1).standard_normal((50, vectors.shape[1])).astype(np.float32)
    truth = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :k]
    found = search.search(queries, k)
    return float(
        np.mean([len(set(rows.tolist()) & set(t.tolist())) / k for (_, rows), t in zip(found, truth, strict=True)])
    )


def test_flat_is_exact(tmp_path: Path, vectors: np.ndarray) -> None:
    assert recall(built(tmp_path / "f", "flat", vectors), vectors) == 1.0


def test_hnsw_and_ivf_find_nearly_all(tmp_path: Path, vectors: np.ndarray) -> None:
    assert recall(built(tmp_path / "h", "hnsw", vectors), vectors) > 0.95
    few = recall(built(tmp_path / "few", "ivf", vectors, lists=40, probes=2), vectors)
    most = recall(built(tmp_path / "most", "ivf", vectors, lists=40, probes=20), vectors)
    every = recall(built(tmp_path / "every", "ivf", vectors, lists=40, probes=40), vectors)
    assert few < most <= every == 1.0
    assert most > 0.9


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_the_same_seed_gives_the_same_file(tmp_path: Path, kind: str, vectors: np.ndarray) -> None:
    built(tmp_path / "one", kind, vectors)
    built(tmp_path / "two", kind, vectors)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_padding_is_cut_off(tmp_path: Path, vectors: np.ndarray) -> None:
    search = built(tmp_path / "i", "ivf", vectors, lists=40, probes=1)
    [(scores, rows)] = search.search(vectors[:1], 2000)
    assert 0 < len(rows) == len(scores) < 2000
    assert rows.min() >= 0


def test_hnsw_gives_k_even_beyond_ef_search(tmp_path: Path, vectors: np.ndarray) -> None:
    [(_, rows)] = built(tmp_path / "h", "hnsw", vectors, ef_search=8).search(vectors[:1], 50)
    assert len(rows) == 50


def test_settings_are_put_back(tmp_path: Path, vectors: np.ndarray) -> None:
    def settings() -> tuple[int, int, int]:
        cvar = faiss.cvar
        return cvar.distance_compute_blas_threshold, cvar.distance_compute_blas_database_bs, faiss.omp_get_max_threads()

    before = settings()
    with pytest.raises(KeyError), tuned_faiss():
        assert settings()[:2] == (1, 8192)
        raise KeyError
    built(tmp_path / "h", "hnsw", vectors[:50]).search(vectors[:1], 3)
    assert settings() == before


def test_files_that_do_not_fit_are_refused(tmp_path: Path, vectors: np.ndarray) -> None:
    built(tmp_path / "f", "flat", vectors)
    with pytest.raises(IndexMismatchError, match="expected 1999 of 16"):
        FaissSearch(tmp_path / "f", "flat", rows=1999, dim=16, parameters={})
    (tmp_path / "f").write_bytes(b"not an index at all")
    with pytest.raises(IndexMismatchError, match="no faiss index"):
        FaissSearch(tmp_path / "f", "flat", rows=2000, dim=16, parameters={})


def test_parameters_are_checked() -> None:
    assert checked_parameters("ivf", {"probes": 5})["probes"] == 5
    for kind, given in (("lsh", {}), ("flat", {"probes": 1}), ("ivf", {"probes": 0}), ("hnsw", {"neighbours": True})):
        with pytest.raises(RetrieverError):
            checked_parameters(kind, given)


def test_lists_for_a_corpus() -> None:
    assert lists_for(10) == 1
    assert lists_for(10_000) == 10_000 // 39
    assert lists_for(1_000_000) == 4000
