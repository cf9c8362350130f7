"""Exact search: equal to fp32 brute force in both precisions, ties included, however the rows are sharded."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from retrievers.errors import RetrieverError
from retrievers.search import ExactSearch, bfloat16_bits, largest, measure


def brute_force(vectors: np.ndarray, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    scores = np.einsum("nd,d->n", vectors, query)
    order = np.lexsort((np.arange(len(scores)), -scores))[:k]
    return scores[order], order


def clustered(rows: int, dim: int, seed: int) -> np.ndarray:
    """Vectors close together: their scores differ by less than bf16 can tell apart."""
    generator = np.random.default_rng(seed)
    return (1 + 0.001 * generator.standard_normal((rows, dim))).astype(np.float32)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("cuts", [[], [1, 400, 401]])
def test_equals_brute_force(precision: str, batch: int, cuts: list[int]) -> None:
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((1000, 32)).astype(np.float32)
    queries = generator.standard_normal((batch, 32)).astype(np.float32)
    search = ExactSearch(np.split(vectors, cuts), precision=precision, device="cpu")
    for query, found in zip(queries, search.search(queries, 20), strict=True):
        scores, rows = brute_force(vectors, query, 20)
        assert found.rows.tolist() == rows.tolist()
        np.testing.assert_array_equal(found.scores, scores)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_recall_is_one_where_bf16_cannot_tell_the_rows_apart(precision: str) -> None:
    vectors, queries = clustered(3000, 64, seed=1), clustered(5, 64, seed=2)
    search = ExactSearch([vectors[:1700], vectors[1700:]], precision=precision, device="cpu")
    for query, found in zip(queries, search.search(queries, 10), strict=True):
        assert found.rows.tolist() == brute_force(vectors, query, 10)[1].tolist()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_ties_at_the_cut_go_by_tie_rank(precision: str) -> None:
    vectors = np.ones((500, 8), dtype=np.float32)
    vectors[123] = 2
    backwards = np.arange(500)[::-1].copy()
    query = np.ones((1, 8), dtype=np.float32)
    [found] = ExactSearch([vectors[:200], vectors[200:]], precision=precision, device="cpu", tie_rank=backwards).search(
        query, 4
    )
    assert found.rows.tolist() == [123, 499, 498, 497]
    assert found.scores.tolist() == [16, 8, 8, 8]


def test_bf16_storage_is_exact_over_the_stored_vectors() -> None:
    generator = np.random.default_rng(3)
    vectors = generator.standard_normal((600, 16)).astype(np.float32)
    stored = bfloat16_bits(vectors)
    kept = torch.from_numpy(stored.copy()).view(torch.bfloat16).float().numpy()
    queries = generator.standard_normal((3, 16)).astype(np.float32)
    for precision in ("float32", "bfloat16"):
        search = ExactSearch([stored[:100], stored[100:]], precision=precision, device="cpu")
        for query, found in zip(queries, search.search(queries, 15), strict=True):
            assert found.rows.tolist() == brute_force(kept, query, 15)[1].tolist()


def test_the_result_of_a_query_does_not_depend_on_its_batch() -> None:
    vectors, queries = clustered(2000, 48, seed=4), clustered(9, 48, seed=5)
    search = ExactSearch([vectors], precision="bfloat16", device="cpu", query_batch=4)
    together = search.search(queries, 5)
    for query, found in zip(queries, together, strict=True):
        [alone] = search.search(query[None], 5)
        assert alone.rows.tolist() == found.rows.tolist()
        assert alone.scores.tolist() == found.scores.tolist()


def test_k_is_clamped_to_the_rows() -> None:
    vectors = np.eye(3, dtype=np.float32)
    [found] = ExactSearch([vectors], device="cpu").search(np.array([[3.0, 1.0, 2.0]], dtype=np.float32), 10**9)
    assert found.rows.tolist() == [0, 2, 1]


def test_zero_query_ties_every_row() -> None:
    vectors = np.eye(40, dtype=np.float32)
    [found] = ExactSearch([vectors], device="cpu").search(np.zeros((1, 40), dtype=np.float32), 3)
    assert found.rows.tolist() == [0, 1, 2]


def test_spread_is_the_largest_norm_and_rounding_residual() -> None:
    # 257 needs nine significant bits, bf16 has eight: it becomes 256.
    spread = measure(np.array([[3.0, 4.0], [257.0, 0.0]], dtype=np.float32))
    assert spread.norm == pytest.approx(257, rel=1e-4)
    assert spread.residual == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize(
    ("shards", "queries", "k", "message"),
    [
        ([np.zeros((0, 2), np.float32)], np.zeros((1, 2)), 1, "no vectors"),
        ([np.zeros((2, 2), np.float64)], np.zeros((1, 2)), 1, "float64"),
        ([np.zeros((2, 2), np.float32)], np.zeros((1, 3)), 1, r"expected \[B, 2\]"),
        ([np.zeros((2, 2), np.float32)], np.zeros((1, 2)), 0, "k is 0"),
        ([np.zeros((2, 2), np.float32)], np.array([[np.nan, 0]]), 1, "NaN"),
    ],
)
def test_bad_input_is_refused(shards: list[np.ndarray], queries: np.ndarray, k: int, message: str) -> None:
    with pytest.raises(RetrieverError, match=message):
        ExactSearch(shards, device="cpu").search(queries, k)


@pytest.mark.parametrize("width", [5, 160, 1000, 1003])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_largest_equals_topk(width: int, dtype: torch.dtype) -> None:
    scores = torch.randn(3, width, generator=torch.Generator().manual_seed(0)).to(dtype)
    values, columns = largest(scores, 5)
    assert torch.equal(values, scores.topk(5, dim=1).values)
    assert torch.equal(values, scores.gather(1, columns))
    assert all(len(set(row.tolist())) == 5 for row in columns)
