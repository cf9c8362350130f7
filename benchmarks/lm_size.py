"""What the size of the frozen model does to each method: an encoder of 2, 4 and 6 blocks.

    python benchmarks/lm_size.py run --out runs/lm_size [--blocks 2 4 6] [--seeds 3] [--methods lora bitfit full_copy]
    python benchmarks/lm_size.py table --out runs/lm_size

The Delta Tuning survey (arXiv 2203.06904, section 5) finds that the larger the model, the nearer all methods come to
full fine-tuning and to each other. Here the sizes are the first 2, 4 and all 6 blocks of all-MiniLM-L6-v2, the same
weights cut short (our choice: no family of models of several sizes is at hand), with the settings of
configs/method_comparison_encoder.yaml on TREC, SST-2 and AG News of data/tasks below FROZENLM_SHARED. Runs that are
there are not made again (`frozenlm compare-methods` does them).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from frozenlm.deltas.attach import blocks
from pipelines.comparison.figures import figures
from pipelines.comparison.runs import compare_methods, read_results
from pipelines.config import MethodComparison
from pipelines.loader import load_config
from retrievers.compute import resolve_model

TASKS = ("trec", "sst2", "ag_news")


def cut_short(name: str, count: int, folder: Path) -> str:
    """The folder of an encoder that has only the first `count` blocks of another."""
    from transformers import AutoModel, AutoTokenizer

    if not folder.exists():
        source = resolve_model(name)
        model = AutoModel.from_pretrained(source, num_hidden_layers=count)
        if len(list(blocks(model))) != count:
            raise SystemExit(f"{name} has fewer than {count} blocks")
        fresh = folder.with_name(folder.name + ".part")
        model.save_pretrained(fresh)
        AutoTokenizer.from_pretrained(source).save_pretrained(fresh)
        fresh.rename(folder)
    return str(folder)


def comparison(given: argparse.Namespace, count: int) -> MethodComparison:
    """The encoder's comparison of the methods asked for, on three tasks, with an encoder of `count` blocks."""
    base = load_config("method_comparison_encoder.yaml").model_dump(mode="json", by_alias=True, exclude_unset=True)
    folder = cut_short(base["encoder"]["model"], count, given.out / "models" / f"{count}-blocks")
    kept = [method for method in base["methods"] if given.methods is None or _name(method) in given.methods]
    config: MethodComparison = load_config(
        base
        | {
            "encoder": base["encoder"] | {"model": folder},
            "methods": kept,
            "reference": None,
            "tasks": [task for task in base["tasks"] if task["name"] in TASKS],
            "pairs": {},
            "seeds": given.seeds,
        }
    )
    return config


def table(out: Path) -> None:
    """For each size and method: the mean of the tasks, its spread over seeds, and the share of full fine-tuning."""
    for folder in sorted(out.glob("*-blocks"), key=lambda path: int(path.name.split("-")[0])):
        results = read_results(folder)
        print(f"{folder.name}: {results[0]['lm_parameters']:,} parameters")
        for one in figures(results, "full_copy"):
            if one.mean is not None:
                spread = "" if one.spread is None else f" ± {100 * one.spread:.1f}"
                share = "" if one.of_reference is None else f", {100 * one.of_reference:.1f}% of full fine-tuning"
                tasks = "  ".join(f"{task} {100 * sum(s) / len(s):.1f}" for task, s in one.tasks.items())
                print(f"  {one.method:16} {100 * one.mean:.1f}{spread}{share} with {100 * one.share:.2f}% | {tasks}")


def _name(method: dict[str, Any]) -> str:
    return method["head"] if "head" in method else str(method["delta"]["name"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "table"])
    parser.add_argument("--out", type=Path, default=Path("runs/lm_size"))
    parser.add_argument("--blocks", type=int, nargs="+", default=[2, 4, 6])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", help="names in the config; all of them without")
    given = parser.parse_args()
    if given.action == "run":
        for count in given.blocks:
            compare_methods(comparison(given, count), given.out / f"{count}-blocks", log=print)
    table(given.out)
