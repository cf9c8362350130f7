"""What a training step of each prompt method costs beside plain prompt tuning: seconds and peak memory.

    python benchmarks/prompt_methods.py [--quick] [--position prefix]

Embedded tasks, wiki-opt-22m, MiniLM as the frozen encoder, batches of 16 rows; all methods take turns in one process
for the time, and each has a process of its own for the memory (peak of the process over what it held before its first
step).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from frozenlm.lm_tasks import Example, prompt_loss
from frozenlm.prompts.attempt import Attempt
from frozenlm.prompts.soft_prompt import SoftPrompt
from pipelines import build_tasks
from pipelines.build import frozen_lm
from pipelines.loader import load_config
from pipelines.tasks.mixture import mixture

METHODS: dict[str, dict[str, Any]] = {
    "soft_prompt": {"kind": "soft_prompt"},
    "task_prompts": {"kind": "task_prompts"},
    "idpg": {"kind": "idpg"},
    "attempt": {"kind": "attempt", "sources": ["a", "b", "c", "d"]},
    "input_dependent": {"kind": "input_dependent"},
    "input_dependent, no encoder prompt": {"kind": "input_dependent", "encoder_prompt": 0},
}
ROWS = 16


def prepared(names: list[str], position: str) -> tuple[Any, dict[str, Any], list[list[Example]]]:
    """The LM, modules with their optimizers by name, and batches."""
    config = load_config("id_pt.yaml", overrides=["prompt=null"])
    lm = frozen_lm(config.lm)
    found = {}
    for name in names:
        block = {
            "name": "x",
            "length": 10,
            "position": position,
            "init": {"kind": "text", "text": "answer :"},
        } | METHODS[name]
        one = load_config(config.model_dump(mode="json", by_alias=True) | {"prompt": block})
        if block["kind"] == "attempt":
            sources = [SoftPrompt.create(lm, 10, position=position, seed=n) for n in range(4)]  # type: ignore[arg-type]
            module: Any = Attempt.create(lm, sources, tasks=[t.name for t in config.tasks], position=position)  # type: ignore[arg-type]
        else:
            module = build_tasks.new_prompt(one, one.prompt, lm, build_tasks.encoder(one))
        found[name] = (module, torch.optim.AdamW(module.parameters(), lr=1e-3))
    drawn = mixture(build_tasks.tasks(config, "train"), draws=ROWS * 8, temperature=2)
    coder = build_tasks.row_encoder(config, lm)
    examples = [coder.example(row) for row in drawn]
    return lm, found, [examples[i : i + ROWS] for i in range(0, len(examples), ROWS)]


def step(lm: Any, module: Any, optimizer: torch.optim.Optimizer, batch: list[Example]) -> float:
    start = time.perf_counter()
    loss, units = prompt_loss(lm, module, batch, unit="example")
    optimizer.zero_grad()
    (loss / units).backward()
    optimizer.step()
    return time.perf_counter() - start


def status_mib(field: str) -> float:
    """A line of this process's status (Linux): VmRSS held now, VmHWM the most held since the last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def memory(name: str, position: str) -> None:
    """Run by a process of its own: prints MiB."""
    lm, found, batches = prepared([name], position)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM; loading held more than a step does
    before = status_mib("VmRSS")
    for batch in batches[:4]:
        step(lm, *found[name], batch)
    print(status_mib("VmHWM") - before)


def main(repeats: int, position: str) -> None:
    lm, found, batches = prepared(list(METHODS), position)
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    for turn in range(repeats + 1):
        for name, (module, optimizer) in found.items():
            taken = step(lm, module, optimizer, batches[turn % len(batches)])
            if turn:
                seconds[name].append(taken)
    plain = statistics.median(seconds["soft_prompt"])
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {position}, {ROWS} rows a step, "
        f"{repeats} repeats"
    )
    for name, (module, _) in found.items():
        mine = seconds[name]
        command = [sys.executable, __file__, "--memory", name, "--position", position]
        mib = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
        record = {
            "method": name,
            "position": position,
            "trained_parameters": sum(p.numel() for p in module.parameters()),
            "seconds": round(statistics.median(mine), 4),
            "spread": [round(min(mine), 4), round(max(mine), 4)],
            "of_plain": round(statistics.median(mine) / plain, 2),
            "peak_mib": round(mib, 1),
        }
        print(json.dumps(record))
    print(lm.verify())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--position", choices=["prefix", "suffix"], default="suffix")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    given = parser.parse_args()
    memory(given.memory, given.position) if given.memory else main(3 if given.quick else 9, given.position)
