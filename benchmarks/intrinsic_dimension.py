"""How many dimensions a task needs: d90 of two tasks, beside full fine-tuning of a copy.

    python benchmarks/intrinsic_dimension.py run --out runs/intrinsic [--tasks trec subj] [--forms said plain]
    python benchmarks/intrinsic_dimension.py run --out runs/intrinsic --host encoder --of gain
    python benchmarks/intrinsic_dimension.py table --out runs/intrinsic

d90 (arXiv 1804.08838, section 2; 2012.13255, section 4) is the smallest d at which a random subspace of d dimensions of
all weights reaches 90% of full fine-tuning's score; `plain` is theta0 + P theta, `said` has a scale a layer among the
d. Hosts: wiki-opt-22m, which answers through a verbalizer, so that nothing but the d numbers is trained, and MiniLM as
an encoder with a trained linear head. Such a head alone, and an LM without training, already have a score: `--of gain`
asks for 90% of what full fine-tuning adds to it (our choice). Scores are means over seeds on the test rows of
data/tasks below FROZENLM_SHARED; a dev split chooses step and learning rate, the rate with the first seed. Rates are
given as how far a first step of AdamW moves all weights together, which is rate x sqrt(d), since the projection's
columns have length 1: one rate for all d would be far too small for a small d. Every training is one run of `frozenlm
compare-methods`, and those that are there are not made again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from frozenlm.deltas.intrinsic_search import d90_search, powers
from pipelines.comparison.runs import ZERO_SHOT, Result, compare_methods, read_results
from pipelines.config import MethodComparison
from pipelines.loader import load_config

CONFIGS = {"lm": "method_comparison.yaml", "encoder": "method_comparison_encoder.yaml"}
FORMS = {"said": "layer", "plain": None}
TASKS = ("trec", "subj")
HEAD = {"head": "head_alone", "learning_rates": [0.01, 0.05]}
FULL = {"kind": "full_copy", "name": "full_copy"}


class Trainings:
    """What is measured on one host and one task: a method's mean score over seeds, trained where it is not there."""

    def __init__(self, given: argparse.Namespace, task: str) -> None:
        self.given, self.task, self.out = given, task, given.out / given.host
        self.base = load_config(CONFIGS[given.host]).model_dump(mode="json", by_alias=True, exclude_unset=True)
        tasks = load_config("ten_tasks.yaml").model_dump(mode="json", by_alias=True, exclude_unset=True)["tasks"]
        self.block = next(block for block in tasks if block["name"] == task)
        if given.host == "encoder":
            self.block = self.block | {"template": "{text}"}

    def score(self, method: dict[str, Any]) -> float:
        """Mean test score of a method over the seeds."""
        results = compare_methods(self._config(method), self.out, log=print)
        name = next(iter(method.values()))
        wanted = name if isinstance(name, str) else name["name"]
        return _mean(results, wanted, self.task, self.given.seeds)

    def start(self) -> float:
        """What there is without the d numbers: the head alone, or the LM as it is (measured with any method)."""
        if self.given.host == "encoder":
            return self.score(HEAD)
        return _mean(read_results(self.out), ZERO_SHOT, self.task, 1)

    def _config(self, method: dict[str, Any]) -> MethodComparison:
        given, base = self.given, self.base
        training = base["training"] | {
            "steps": given.steps,
            "warmup_steps": given.steps // 10,
            "eval_every": given.steps // 2,
            "save_every": given.steps,
        }
        changes: dict[str, Any] = {
            "methods": [method],
            "reference": None,
            "tasks": [self.block],
            "seeds": given.seeds,
            "training": training,
            "evaluation": {"limit": given.rows},
        }
        if given.host == "lm":
            changes["input"] = {"max_tokens": 64, "keep_end": 20, "answer_tokens": 8}
        else:
            changes |= {"pairs": {}, "encoder": base["encoder"] | {"max_length": 64}}
        config: MethodComparison = load_config(base | changes)
        return config


def search(given: argparse.Namespace, task: str, form: str) -> dict[str, Any]:
    """d90 of one task in one form: a line of d90.jsonl."""
    trainings = Trainings(given, task)
    full = trainings.score({"delta": FULL, "learning_rates": given.full_rates})
    start = trainings.start()
    target = 0.9 * full if given.of == "score" else start + 0.9 * (full - start)

    def evaluate(dimension: int) -> float:
        name = f"{form}_{given.targets}_{dimension}"
        block = {"kind": "intrinsic_dimension", "name": name, "dimension": dimension, "targets": given.targets}
        rates = [float(f"{move / dimension**0.5:.3g}") for move in given.moves]
        return trainings.score({"delta": block | {"scales": FORMS[form]}, "learning_rates": rates})

    grid = powers(given.smallest, given.largest)[:: given.every]
    found = d90_search(evaluate, grid, full, share=target / full)
    return {
        "host": given.host,
        "task": task,
        "form": form,
        "of": given.of,
        "targets": given.targets,
        "seeds": given.seeds,
        "d90": found.dimension,
        "grid": grid,
        "full": full,
        "start": start,
        "target": found.target,
        "scores": found.scores,
    }


def _mean(results: list[Result], method: str, task: str, seeds: int) -> float:
    scores = {r["seed"]: r["score"] for r in results if r["method"] == method and r["task"] == task}
    return statistics.mean(scores[seed] for seed in range(seeds))


def run(given: argparse.Namespace) -> None:
    """Searches, each with its line when it is done; what an earlier start has trained is only looked up."""
    given.out.mkdir(parents=True, exist_ok=True)
    for task in given.tasks:
        for form in given.forms:
            with (given.out / "d90.jsonl").open("a") as stream:
                stream.write(json.dumps(search(given, task, form)) + "\n")


def table(out: Path) -> None:
    """Every search that is done (percent), then every training so far."""
    path = out / "d90.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    last = {tuple(line[key] for key in ("host", "task", "form", "of", "targets", "seeds")): line for line in lines}
    for (host, task, form, of, targets, seeds), line in last.items():
        found = line["d90"] if line["d90"] is not None else f"more than {line['grid'][-1]}"
        bars = ", ".join(f"{name} {100 * line[name]:.1f}" for name in ("target", "full", "start"))
        scores = "  ".join(f"{d}: {100 * score:.1f}" for d, score in line["scores"].items())
        print(f"{host} {task} {form} over the {targets} n={seeds}: d90 {found} (of {of}: {bars}) | {scores}")
    for host in CONFIGS:
        for one in read_results(out / host):
            low, high = (100 * end for end in one["ci95"])
            line = f"{host} {one['name']}: {100 * one['score']:.1f} [{low:.1f}, {high:.1f}]"
            if "steps" in one:
                line += f", {one['trained_parameters']:,} parameters, rate {one['learning_rate']:g} of "
                line += f"{one['dev_by_learning_rate']}, {one['seconds_per_step']:.2f} s a step"
            print(line)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "table"])
    parser.add_argument("--out", type=Path, default=Path("runs/intrinsic"))
    parser.add_argument("--host", choices=list(CONFIGS), default="lm")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--forms", nargs="+", choices=list(FORMS), default=list(FORMS))
    parser.add_argument("--of", choices=["score", "gain"], default="score", help="what 90%% is of")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--smallest", type=int, default=16, help="d of the grid; above the number of scales")
    parser.add_argument("--largest", type=int, default=2**18)
    parser.add_argument("--every", type=int, default=2, help="2 takes every other power of two")
    parser.add_argument("--moves", type=float, nargs="+", default=[3, 10], help="rate x sqrt(d), each is tried")
    parser.add_argument("--targets", choices=["model", "blocks"], default="model", help="the weights that move")
    parser.add_argument("--full-rates", type=float, nargs="+", default=[1e-4, 3e-4], help="of full fine-tuning")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rows", type=int, default=500, help="test rows")
    given = parser.parse_args()
    run(given) if given.action == "run" else table(given.out)
