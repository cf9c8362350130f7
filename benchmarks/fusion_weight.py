"""Chooses the lambda of Spider's rule (dense + lambda * BM25) on a config's dev questions, never on the reported ones.

python benchmarks/fusion_weight.py configs/reranker.yaml [--quick]
"""

from __future__ import annotations

import argparse
import json

from pipelines.build import retriever
from pipelines.config import Hybrid, RerankerJob
from pipelines.evaluation.questions import read_questions
from pipelines.loader import load_config
from retrievers.hybrid import tune_lambda

GRID = (0.0, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.3, 1.0)


def main() -> None:
    """Print recall@k for each lambda and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", nargs="?", default="reranker.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c")
    parser.add_argument("-k", type=int, default=2, help="recall at this depth is maximised")
    parser.add_argument("--quick", action="store_true", help="only the first 30 questions")
    arguments = parser.parse_args()
    config = load_config(arguments.config, overrides=arguments.set)
    if not isinstance(config, RerankerJob) or not isinstance(config.retriever, Hybrid) or config.training is None:
        parser.error("the config must be of kind reranker, with a hybrid retriever and a training block")
    questions = [q for source in config.training.dev for q in read_questions(source)]
    questions = questions[: 30 if arguments.quick else None]
    hybrid = retriever(config.model_copy(update={"cache_retrieval": False}))
    found = tune_lambda(
        {name: hybrid.members[name] for name in ("dense", "bm25")},  # type: ignore[attr-defined]
        [q.text for q in questions],
        answers=[q.answers for q in questions],
        grid=GRID,
        k=arguments.k,
        depth=config.retriever.depth,
    )
    for value, score in found.table:
        print(f"lambda {value:<6} {found.measure} {100 * score:.1f}")
    row = {"benchmark": "fusion_weight", "config": arguments.config, "questions": found.questions}
    print(json.dumps(row | {"measure": found.measure, "best": found.best, "table": found.table}))


if __name__ == "__main__":
    main()
