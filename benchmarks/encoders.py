"""Encoders: bf16 weights and length sorting against the plain loop; MiniLM's SciFact figure beside the published one.

    python benchmarks/encoders.py --quick      # 96 passages, 3 repeats
    python benchmarks/encoders.py --scifact    # encodes 5,183 abstracts (about a minute or two), nDCG@10 on 300 claims

Speed claim: sentence-transformers' own `encode` in fp32, batch by batch in arrival order and all at once (it then sorts
by length itself), against ours in fp32 and in bf16; interleaved in one process, vectors checked to agree.
Published: nDCG@10 0.645 for all-MiniLM-L6-v2 on SciFact (MTEB; also arXiv 2510.14880, table 16).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from retrievers.compute import MINILM, cpu_has_bfloat16, resolve_model  # noqa: E402
from retrievers.dense import DenseRetriever  # noqa: E402
from retrievers.encoders import SentenceTransformerEncoder  # noqa: E402
from retrievers.types import Passage  # noqa: E402

PUBLISHED_SCIFACT = 0.645


def texts(count: int) -> list[str]:
    """Texts of 10 to 200 words, in no order of length, the same every time."""
    generator = np.random.default_rng(0)
    vocabulary = "the cell protein shows that in patients with high risk of a study we found no effect on"
    words = np.array(re.findall(r"\w+", vocabulary))
    return [" ".join(generator.choice(words, size=int(generator.integers(10, 200)))) for _ in range(count)]


def interleaved(sides: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each side, run in turn, after one warm-up each."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for run in range(repeats + 1):
        for name, side in sides.items():
            begin = time.perf_counter()
            side()
            if run:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def speed(count: int, repeats: int) -> dict[str, Any]:
    """Passages per second of each way to encode, and how far the vectors are apart."""
    from sentence_transformers import SentenceTransformer

    passages = [Passage(str(row), text) for row, text in enumerate(texts(count))]
    rival = SentenceTransformer(resolve_model(MINILM), device="cpu")
    full = SentenceTransformerEncoder(MINILM, device="cpu", dtype="float32")
    half = SentenceTransformerEncoder(MINILM, device="cpu", dtype="bfloat16")
    unsorted = [[p.text for p in passages[i : i + 32]] for i in range(0, count, 32)]
    sides: dict[str, Callable[[], Any]] = {
        "arrival order fp32 (32 a batch)": lambda: np.concatenate([rival.encode(b) for b in unsorted]),
        "sentence-transformers fp32 (sorts itself)": lambda: rival.encode([p.text for p in passages]),
        "ours fp32": lambda: full.encode_passages(passages),
        "ours bf16": lambda: half.encode_passages(passages),
    }
    reference = rival.encode([p.text for p in passages])
    worst = {
        "fp32": float(np.abs(full.encode_passages(passages) - reference).max()),
        "bf16_cosine": float((half.encode_passages(passages) * reference).sum(axis=1).min()),
    }
    if worst["fp32"] > 1e-4 or worst["bf16_cosine"] < 0.99:
        raise SystemExit(f"vectors disagree: {worst}")
    rates = {name: [count / s for s in seconds] for name, seconds in interleaved(sides, repeats).items()}
    return {
        "passages": count,
        "repeats": repeats,
        "agreement": worst,
        "passages_per_second": {
            name: {"median": statistics.median(r), "min": min(r), "max": max(r)} for name, r in rates.items()
        },
    }


def scifact(folder: Path) -> dict[str, Any]:
    """nDCG@10 of MiniLM with exact search over the SciFact corpus, through the whole dense index."""
    import ir_measures

    def lines(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (folder / name).read_text().splitlines()]

    passages = [Passage(str(row["_id"]), row["text"], row["title"]) for row in lines("corpus.jsonl")]
    questions = {str(row["_id"]): row["text"] for row in lines("queries.jsonl")}
    judged = [line.split("\t") for line in (folder / "qrels" / "test.tsv").read_text().splitlines()[1:]]
    qrels = [ir_measures.Qrel(query, passage, int(grade)) for query, passage, grade in judged]
    asked = sorted({qrel.query_id for qrel in qrels})
    encoder = SentenceTransformerEncoder(MINILM)
    with tempfile.TemporaryDirectory() as temporary:
        report = DenseRetriever.build(
            passages, Path(temporary) / "index", encoder, log=lambda m: print(m, file=sys.stderr)
        )
        retriever = DenseRetriever.open(Path(temporary) / "index", encoder)
        begin = time.perf_counter()
        found = retriever.retrieve([questions[query] for query in asked], 100)
        seconds = time.perf_counter() - begin
        retriever.close()
    run = [
        ir_measures.ScoredDoc(query, hit.passage_id, hit.score)
        for query, hits in zip(asked, found, strict=True)
        for hit in hits
    ]
    ndcg = ir_measures.nDCG @ 10
    return {
        "ndcg_at_10": float(ir_measures.calc_aggregate([ndcg], qrels, run)[ndcg]),
        "published": PUBLISHED_SCIFACT,
        "precision": encoder.precision,
        "passages": report.passages,
        "truncated": report.truncated,
        "passages_per_second": report.passages / report.seconds,
        "questions": len(asked),
        "questions_per_second": len(asked) / seconds,
    }


def main() -> None:
    """Run what was asked for and write one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="96 passages, 3 repeats")
    parser.add_argument("--scifact", action="store_true", help="nDCG@10 instead of speed")
    shared = Path(os.environ.get("FROZENLM_SHARED", ROOT.parent / "shared"))
    parser.add_argument("--data", type=Path, default=shared / "data" / "scifact", help="SciFact in BEIR form")
    arguments = parser.parse_args()
    if arguments.scifact and not arguments.data.is_dir():
        raise SystemExit(f"{arguments.data} is not there; give a BEIR folder of SciFact with --data")
    import sentence_transformers
    import torch

    result = scifact(arguments.data) if arguments.scifact else speed(*((96, 3) if arguments.quick else (2048, 7)))
    result["versions"] = {"torch": torch.__version__, "sentence_transformers": sentence_transformers.__version__}
    result["machine"] = {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "native_bf16": cpu_has_bfloat16(),
    }
    print(json.dumps({"benchmark": "encoders", **result}))


if __name__ == "__main__":
    main()
