"""Exact dense search: ours against faiss's IndexFlatIP at its defaults and at its best settings.

    python benchmarks/dense.py            # 100,000 x 384, batches of 1, 32, 256, seven repeats
    python benchmarks/dense.py --quick    # batches of 1 and 32, three repeats

One process, the same threads, the sides interleaved; every side's rows are compared with fp32 brute force in the same
run (recall@100). The bandwidth line is one pass over the fp32 vectors by a plain sum: what no search of one query that
reads them all in fp32 can beat. One JSON line on stdout.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from retrievers.compute import cpu_has_bfloat16
from retrievers.faiss_index import tuned_faiss

K = 100


def unit(rows: int, dim: int, seed: int) -> np.ndarray:
    """Random unit vectors [rows, dim]: the hardest case, every score close to every other."""
    vectors = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def timed(side: Callable[[], Any]) -> float:
    """Seconds of one call."""
    begin = time.perf_counter()
    side()
    return time.perf_counter() - begin


def main() -> None:
    """Run the comparison and write one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=384)
    arguments = parser.parse_args()
    import faiss
    import torch

    from retrievers.search import ExactSearch

    repeats, batches = (3, (1, 32)) if arguments.quick else (7, (1, 32, 256))
    vectors = unit(arguments.rows, arguments.dim, seed=0)
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(arguments.dim)
    index.add(vectors)
    shards = [vectors[: arguments.rows // 2], vectors[arguments.rows // 2 :]]
    ours = {p: ExactSearch(shards, precision=p, device="cpu") for p in ("float32", "bfloat16")}
    results = {}
    for batch in batches:
        queries = unit(batch, arguments.dim, seed=1)
        truth = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :K]

        def tuned(queries: np.ndarray = queries) -> np.ndarray:
            with tuned_faiss():
                return index.search(queries, K)[1]

        sides: dict[str, Callable[[], list[np.ndarray]]] = {
            "faiss default": lambda q=queries: list(index.search(q, K)[1]),
            "faiss tuned": lambda: list(tuned()),
            "ours float32": lambda q=queries: [found.rows for found in ours["float32"].search(q, K)],
            "ours bfloat16": lambda q=queries: [found.rows for found in ours["bfloat16"].search(q, K)],
        }
        recall = {
            name: float(np.mean([len(set(f) & set(t)) / K for f, t in zip(side(), truth, strict=True)]))
            for name, side in sides.items()
        }
        seconds: dict[str, list[float]] = {name: [] for name in [*sides, "one pass over fp32"]}
        for _ in range(repeats):
            for name, side in sides.items():
                seconds[name].append(timed(side))
            seconds["one pass over fp32"].append(timed(lambda: torch.from_numpy(vectors).sum()))
        results[str(batch)] = {
            name: {
                "queries_per_second": batch / statistics.median(times)
                if name in sides
                else 1 / statistics.median(times),
                "spread": [batch / max(times), batch / min(times)] if name in sides else None,
                "recall": recall.get(name),
            }
            for name, times in seconds.items()
        }
    print(
        json.dumps(
            {
                "benchmark": "dense",
                "rows": arguments.rows,
                "dim": arguments.dim,
                "k": K,
                "repeats": repeats,
                "batch": results,
                "versions": {"torch": torch.__version__, "faiss": faiss.__version__, "numpy": np.__version__},
                "machine": {
                    "processor": platform.processor() or platform.machine(),
                    "threads": torch.get_num_threads(),
                    "capability": torch.backends.cpu.get_cpu_capability(),
                    "native_bf16": cpu_has_bfloat16(),
                },
            }
        )
    )


if __name__ == "__main__":
    main()
