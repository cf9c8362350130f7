"""Ten tasks, one frozen LM: what a prompt written for each input is worth beside one prompt for all (docs/results.md).

    python benchmarks/ten_tasks.py run --out runs/ten_tasks [--part 0/2] [--seeds 3]
    python benchmarks/ten_tasks.py run --out runs/ten_tasks --seeds 1 --steps 600   # does more training change it?
    python benchmarks/ten_tasks.py table --out runs/ten_tasks

Every run trains through configs/ten_tasks_*.yaml and is measured on each task's test rows. The questions, in this
order: equal training examples on ten tasks; two and five tasks instead of ten, with as many rows in all; equal trained
parameters (those of one prompt a task); two and five tasks with as many rows a task as ten have; tasks that were left
out of the training. A run that is there is not run again, so the whole can be stopped and split over machines.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from frozenlm.prompts.budget import fit_to_budget
from frozenlm.prompts.idpg import IDPG
from frozenlm.prompts.input_dependent_sizes import Sizes
from pipelines.config import Multitask
from pipelines.loader import load_config

METHODS = ("one_prompt", "task_prompts", "idpg", "attempt", "id_pt")
SOURCES = ("sst2", "trec", "rte", "ag_news")
UNSEEN = ("ag_news", "mrpc")
STEPS_A_TASK = 20  # of the ten tasks' 200
HIDDEN = 384  # of wiki-opt-22m and of MiniLM
BUDGET = 10 * 10 * HIDDEN  # one prompt of ten vectors for each of ten tasks


@dataclass(frozen=True)
class Run:
    """One training: method, number of tasks, seed, and which question it answers."""

    method: str
    tasks: int
    seed: int
    equal: str = "examples"
    steps: int = 200

    @property
    def name(self) -> str:
        return f"{self.method}-{self.tasks}-{self.equal}-{self.seed}" + ("" if self.steps == 200 else f"-{self.steps}")


def runs(seeds: int, steps: int) -> Iterator[Run]:
    """All runs, the most telling first; another number of steps is tried on ten tasks only."""
    if steps != 200:
        for seed in range(seeds):
            yield from (
                Run(method, 10, seed, "examples", steps) for method in ("id_pt", "idpg", "task_prompts", "one_prompt")
            )
        return
    for seed in range(seeds):
        yield from (Run(method, 10, seed) for method in ("one_prompt", "id_pt", "task_prompts", "idpg", "attempt"))
    for seed in range(seeds):
        yield from (Run(method, tasks, seed) for tasks in (2, 5) for method in ("one_prompt", "id_pt"))
        yield from (Run(method, 10, seed, "parameters") for method in ("id_pt", "one_prompt", "idpg", "attempt"))
    for seed in range(seeds):
        for tasks in (2, 5):
            yield from (Run(m, tasks, seed, "rows", tasks * STEPS_A_TASK) for m in ("one_prompt", "id_pt"))
    for seed in range(seeds):
        yield from (Run(method, 10, seed, "unseen") for method in ("one_prompt", "id_pt"))


def equal_parameters(method: str) -> list[str]:
    """Settings that give a method as many trained parameters as fit into BUDGET."""
    if method == "one_prompt":
        return [f"prompt.length={fit_to_budget(lambda n: n * HIDDEN, BUDGET)}"]
    if method == "idpg":

        def idpg(bottleneck: int) -> int:
            return IDPG.parameter_count(encoder_size=HIDDEN, hidden_size=HIDDEN, length=10, bottleneck=bottleneck)

        return [f"prompt.bottleneck={fit_to_budget(idpg, BUDGET)}"]
    if method == "attempt":
        # A target prompt a task is the whole budget already, so one target serves all tasks.
        width = fit_to_budget(lambda r: 2 * HIDDEN * r + 2 * HIDDEN + 10 * HIDDEN, BUDGET)
        return ["prompt.per_task=false", f"prompt.width={width}"]

    def id_pt(width: int) -> int:
        sizes = {"length": 10, "encoder_prompt": 10, "depth": 1, "heads": 4, "self_attention": False}
        return Sizes(hidden_size=HIDDEN, encoder_size=HIDDEN, width=width, **sizes).parameters  # type: ignore[arg-type]

    width = fit_to_budget(id_pt, BUDGET, step=4)
    return [f"prompt.width={width}", "prompt.depth=1", "prompt.heads=4", "prompt.self_attention=false"]


def configured(run: Run, out: Path) -> Multitask:
    """The config of a run."""
    changes = equal_parameters(run.method) if run.equal == "parameters" else []
    config = load_config(
        f"ten_tasks_{run.method}.yaml",
        overrides=[
            f"workspace={json.dumps(str(out))}",
            f"seed={run.seed}",
            f"prompt.name={run.name}",
            f"training.steps={run.steps}",
            *changes,
        ],
    )
    tasks = config.tasks[: run.tasks]
    if run.equal == "unseen":
        tasks = [task.model_copy(update={"seen": task.name not in UNSEEN}) for task in tasks]
    return config.model_copy(update={"tasks": tasks})  # type: ignore[no-any-return]


def make_sources(out: Path) -> None:
    """The four source prompts of ATTEMPT: a soft prompt trained on one task each, 60 steps."""
    from pipelines.training import train

    for task in SOURCES:
        if not (out / "modules" / f"source_{task}" / "module.json").exists():
            config = load_config(
                "ten_tasks_one_prompt.yaml",
                overrides=[f"workspace={json.dumps(str(out))}", f"prompt.name=source_{task}", "training.steps=60"],
            )
            only = [block for block in config.tasks if block.name == task]
            train(config.model_copy(update={"tasks": only}), log=print)


def measure(config: Multitask, out: Path, about: dict[str, Any]) -> None:
    """One line of results: test scores and what the training cost."""
    from pipelines.evaluation.multitask import evaluate_multitask
    from pipelines.pipeline import Pipeline

    with Pipeline.from_config(config) as pipeline:
        metrics = evaluate_multitask(pipeline, out / "evaluation" / about["name"], log=print, progress=False)  # type: ignore[arg-type]
    record = about | {
        "mean": metrics["mean"]["score"],
        "ci95": metrics["mean"]["ci95"],
        "tasks_scores": {name: task["score"] for name, task in metrics["tasks"].items()},
        "majority": {name: task.get("majority_accuracy") for name, task in metrics["tasks"].items()},
        "mean_unseen": metrics.get("mean_unseen", {}).get("score"),
        "lm_weights_changed": metrics["lm_weights_changed"],
    }
    with (out / "results.jsonl").open("a") as stream:
        stream.write(json.dumps(record) + "\n")


def run_all(out: Path, seeds: int, part: str, steps: int) -> None:
    from pipelines.training import train

    out.mkdir(parents=True, exist_ok=True)
    index, of = (int(n) for n in part.split("/"))
    done = {record["name"] for record in read(out)}
    if index == 0:
        for tasks in (10, 5, 2):
            if f"zero_shot-{tasks}" not in done:
                config = load_config("ten_tasks.yaml", overrides=[f"workspace={json.dumps(str(out))}"])
                config = config.model_copy(update={"tasks": config.tasks[:tasks]})
                about = {"name": f"zero_shot-{tasks}", "method": "zero_shot", "tasks": tasks, "seed": 0}
                measure(config, out, about | {"equal": "examples", "trained_parameters": 0})
    for run in [run for place, run in enumerate(runs(seeds, steps)) if place % of == index]:
        if run.name in done:
            continue
        if run.method == "attempt":
            make_sources(out)
        config = configured(run, out)
        summary = train(config, log=print)
        about = {"name": run.name, "method": run.method, "tasks": run.tasks, "seed": run.seed, "equal": run.equal}
        about["steps"] = run.steps
        about |= {key: summary[key] for key in ("trained_parameters", "seconds_per_step", "best_step", "best_score")}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        measure(config, out, about | {"peak_gib_of_process_so_far": round(peak, 2)})


def read(out: Path) -> list[dict[str, Any]]:
    path = out / "results.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(out: Path) -> None:
    """Mean over seeds, and the spread of seeds; scores in percent."""
    groups: dict[tuple[str, int, int, str], list[dict[str, Any]]] = {}
    for record in read(out):
        key = (record["equal"], record.get("steps", 200), record["tasks"], record["method"])
        groups.setdefault(key, []).append(record)
    for (equal, steps, tasks, method), found in sorted(groups.items()):
        means = [100 * record["mean"] for record in found]
        spread = statistics.stdev(means) if len(means) > 1 else 0.0
        each = "  ".join(
            f"{name} {100 * statistics.mean(record['tasks_scores'][name] for record in found):.1f}"
            for name in found[0]["tasks_scores"]
        )
        parameters = found[0]["trained_parameters"]
        print(
            f"equal {equal:10} steps {steps} tasks {tasks:2} {method:13} n={len(found)} parameters {parameters:8,} "
            f"mean {statistics.mean(means):5.1f} sd {spread:3.1f}  | {each}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "table"])
    parser.add_argument("--out", type=Path, default=Path("runs/ten_tasks"))
    parser.add_argument("--part", default="0/1", help="which share of the runs this process takes, such as 0/2")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    given = parser.parse_args()
    run_all(given.out, given.seeds, given.part, given.steps) if given.action == "run" else table(given.out)
