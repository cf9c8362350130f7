"""The tables of docs/results.md from the result folders of benchmarks/wiki_mix_reader.sh.

python benchmarks/wiki_mix_table.py runs/wiki_mix/evaluation
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

SETS = ("squad_dev", "nq_oracle_dev")
RETRIEVERS = ("bm25", "dense", "hybrid", "suffix-rerank")
READERS = (
    ("closed", "closed book"),
    ("zero", "zero-shot reader"),
    ("zero-rerank", "zero-shot reader, re-ranked"),
    ("suffix", "prompt-tuned reader, suffix"),
    ("suffix-rerank", "prompt-tuned reader, suffix, re-ranked"),
    ("prefix", "prompt-tuned reader, prefix"),
    ("prefix-rerank", "prompt-tuned reader, prefix, re-ranked"),
    ("zero-oracle", "zero-shot reader, oracle passages"),
    ("suffix-oracle", "prompt-tuned reader, suffix, oracle passages"),
    ("prefix-oracle", "prompt-tuned reader, prefix, oracle passages"),
)


def percent(value: float | None, interval: list[float] | None = None) -> str:
    """A share as a percentage, with its 95% interval where there is one."""
    if value is None:
        return "-"
    spread = f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else ""
    return f"{100 * value:.1f}{spread}"


def metrics(folder: Path, name: str, questions: str) -> dict[str, Any] | None:
    """metrics.json of one evaluation, or None where it has not been run."""
    path = folder / f"{name}-{questions}" / "metrics.json"
    return json.loads(path.read_text()) if path.is_file() else None


def main(folder: Path) -> None:
    """Print the tables in Markdown."""
    for questions in SETS:
        print(f"\n### Retrieval, {questions}\n\n| | recall@1 | @5 | @20 | @100 | nDCG@10 |\n|---|---|---|---|---|---|")
        for name in RETRIEVERS:
            if found := metrics(folder, name, questions):
                at = found["recall_at"]
                cells = [percent(at.get(k)) for k in ("1", "5", "20", "100")]
                print(f"| {name} | {' | '.join(cells)} | {found.get('ndcg@10') or 0:.3f} |")
        print(f"\n### Reader, {questions}\n")
        print("| | n | EM | F1 | recall@context | EM / recall | passages in context |\n|---|---|---|---|---|---|---|")
        for name, title in READERS:
            if found := metrics(folder, name, questions):
                ci = found["ci95"]
                ratio = found.get("em_given_context")
                print(
                    f"| {title} | {found['n']} | {percent(found['em'], ci.get('em'))} | {percent(found['f1'])} | "
                    f"{percent(found.get('recall_at_context'))} | {'-' if ratio is None else f'{ratio:.3f}'} | "
                    f"{found['passages_in_context']:.1f} |"
                )
        rows = [found for name, _ in READERS if (found := metrics(folder, name, questions))]
        changed = sum(row["lm_weights_changed"] for row in rows)
        print(f"\nLM weights changed over all these runs: {changed} of {rows[0]['lm_weights'] if rows else 0}.")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
