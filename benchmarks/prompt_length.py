"""P-tuning v2 against prompt tuning by prompt length: score, trained parameters, seconds a step.

    python benchmarks/prompt_length.py run --out runs/prompt_length [--seeds 3] [--lengths 1 5 20 50 100] [--part 0/2]
    python benchmarks/prompt_length.py speed --out runs/prompt_length
    python benchmarks/prompt_length.py table --out runs/prompt_length

P-tuning v2 (arXiv 2110.07602, sections 2.2 and 3.2) says that vectors at the input alone reach the prediction only
through all layers, keys and values at every layer at once. Here both stand in front of the text of the frozen
wiki-opt-22m, P vectors [P, H] or P keys and values a layer [L, 2, P, K, D], and learn TREC and AG News of
data/tasks below FROZENLM_SHARED through the settings of configs/method_comparison.yaml with shorter inputs. Each length
has the learning rate that a task's dev split likes best with the first seed. Runs that are there are not made again
(`frozenlm compare-methods` does them). `speed` lets all take turns on the same rows, and gives medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from frozenlm.deltas.attach import using
from frozenlm.lm_tasks import prompt_loss
from pipelines import build_tasks
from pipelines.build import frozen_lm
from pipelines.comparison.runs import compare_methods, part_of, read_results
from pipelines.config import MethodComparison
from pipelines.loader import load_config
from pipelines.tasks.mixture import mixture

LENGTHS = (1, 5, 20, 50, 100)
TASKS = ("trec", "ag_news")
METHODS = ("prompt_tuning", "p_tuning_v2")


def methods(lengths: list[int], rates: list[float]) -> Iterator[dict[str, Any]]:
    """Both methods with each length, as a comparison's config writes them."""
    for length in lengths:
        prompt = {"kind": "soft_prompt", "name": f"prompt_tuning_{length}", "length": length, "position": "prefix"}
        yield {"prompt": prompt, "learning_rates": rates}
        yield {
            "delta": {"kind": "p_tuning_v2", "name": f"p_tuning_v2_{length}", "length": length},
            "learning_rates": rates,
        }


def comparison(given: argparse.Namespace) -> MethodComparison:
    """configs/method_comparison.yaml with these methods, two tasks and inputs of 64 tokens."""
    base = load_config("method_comparison.yaml").model_dump(mode="json", by_alias=True, exclude_unset=True)
    base["training"] |= {
        "steps": given.steps,
        "warmup_steps": given.steps // 10,
        "eval_every": given.steps // 2,
        "save_every": given.steps,
    }
    config: MethodComparison = load_config(
        base
        | {
            "reference": None,
            "methods": list(methods(given.lengths, given.rates)),
            "tasks": [task for name in given.tasks for task in base["tasks"] if task["name"] == name],
            "seeds": given.seeds,
            "input": {"max_tokens": 64, "keep_end": 20, "answer_tokens": 8},
            "evaluation": {"limit": given.rows},
        }
    )
    return config


def speed(given: argparse.Namespace) -> None:
    """Seconds of a step of `training.batch_size` rows, 4 in configs/method_comparison.yaml, of the first task; all
    methods and lengths in turn, a line each in speed.jsonl."""
    config = comparison(given)
    lm = frozen_lm(config.lm)
    sides = {}
    for method in config.methods:
        one: Any = config.one(method, config.tasks[0], 0, given.rates[0])
        module: Any = build_tasks.new_module(one, one.trained, lm, None)
        sides[method.name] = (module, torch.optim.AdamW(module.parameters(), lr=given.rates[0]))
    size = config.training.batch_size
    drawn = mixture(build_tasks.tasks(one, "train"), draws=size * (given.repeats + 1), temperature=1)
    coder = build_tasks.row_encoder(one, lm)
    examples = [coder.example(row) for row in drawn]
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for turn in range(given.repeats + 1):
        batch = examples[turn * size : (turn + 1) * size]
        for name, (module, optimizer) in sides.items():
            began, busy = time.perf_counter(), time.process_time()
            with using(lm, module) as prompt:
                loss, units = prompt_loss(lm, prompt, batch, unit="example")
                optimizer.zero_grad()
                (loss / units).backward()
            optimizer.step()
            seconds[name].append((time.perf_counter() - began, time.process_time() - busy))
    given.out.mkdir(parents=True, exist_ok=True)
    with (given.out / "speed.jsonl").open("a") as stream:
        for name, (module, _) in sides.items():
            wall, processor = (statistics.median(column) for column in zip(*seconds[name][1:], strict=True))
            record = {
                "name": name,
                "task": config.tasks[0].name,
                "seconds": round(wall, 3),
                "processor_seconds": round(processor, 3),
                "trained_parameters": sum(p.numel() for p in module.parameters()),
                "tokens_a_row": round(statistics.mean(example.length for example in examples), 1),
                "threads": torch.get_num_threads(),
                "load": round(os.getloadavg()[0], 1),
            }
            stream.write(json.dumps(record) + "\n")
    print(lm.verify())


def table(out: Path) -> None:
    """Mean over seeds in percent, with the interval of a single seed; and the last seconds a step by `speed`."""
    path = out / "speed.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    steps = {line["name"]: line for line in lines}
    found: dict[tuple[int, str], dict[str, list[Any]]] = {}
    for result in read_results(out):
        method, _, length = result["method"].rpartition("_")
        if method in METHODS:
            found.setdefault((int(length), method), {}).setdefault(result["task"], []).append(result)
    for (length, method), by_task in sorted(found.items(), key=lambda item: (item[0][0], METHODS.index(item[0][1]))):
        cells = []
        for task, results in by_task.items():
            scores = [100 * result["score"] for result in results]
            spread = f" sd {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
            low, high = (100 * end for end in results[0]["ci95"])
            cells.append(f"{task} {statistics.mean(scores):.1f}{spread} [{low:.1f}, {high:.1f}] n={len(scores)}")
        one = next(iter(by_task.values()))[0]
        step = steps.get(f"{method}_{length}")
        cost = "" if step is None else f"  {step['seconds']} s a step ({step['processor_seconds']} of the processor)"
        about = f"P={length:3} {method:13} {one['trained_parameters']:8,} parameters, rate {one['learning_rate']:g}"
        print(f"{about}{cost}  | {'  '.join(cells)}")
    for result in read_results(out):
        if result["method"] == "zero_shot":
            print(f"zero-shot {result['task']} {100 * result['score']:.1f} (majority {100 * result['majority']:.1f})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "speed", "table"])
    parser.add_argument("--out", type=Path, default=Path("runs/prompt_length"))
    parser.add_argument("--part", default="0/1", help="which share of the methods this process takes, such as 0/2")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--rates", type=float, nargs="+", default=[0.01, 0.05], help="learning rates tried")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rows", type=int, default=500, help="test rows of a task")
    parser.add_argument("--repeats", type=int, default=5, help="of `speed`")
    given = parser.parse_args()
    if given.action == "run":
        compare_methods(comparison(given), given.out, part=part_of(given.part), log=print)
    elif given.action == "speed":
        speed(given)
    else:
        table(given.out)
