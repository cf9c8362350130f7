"""What a training step of neural recursion costs with the states of pass 1 on disk, and without, beside one pass.

    python benchmarks/pass_cache.py run --out runs/pass_cache --quick                  # few turns of few rows
    python benchmarks/pass_cache.py run --out runs/pass_cache                          # the embedded LM
    python benchmarks/pass_cache.py run --out runs/pass_cache --shape gpt2 --rows 4    # a random LM of GPT-2's shape
    python benchmarks/pass_cache.py table --out runs/pass_cache

Three sides take turns in one process, each with AdamW, on the same rows: the training windows of
configs/neural_recursion.yaml (embedded questions and passages). `one_pass` is plain prompt tuning, the prompt in front
of the text; `kept` and `anew` are two passes with the connector of that config and the same prompt in the last one,
pass 1 read from disk or run. Both begin alike and must have equal losses at every turn. Seconds are the medians of
turns, ratios the medians of the ratios within a turn; processor seconds tell less about what else the machine does. The
files have just been written, so they are read from the page cache. A measurement that is there is not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from frozenlm.lm import FrozenLM
from frozenlm.lm_tasks import Example, prompt_loss
from frozenlm.prompts.initializers import uniform
from frozenlm.prompts.soft_prompt import SoftPrompt
from frozenlm.recursion.connector import Connector
from frozenlm.recursion.loss import recursion_loss, rows_read
from frozenlm.recursion.neural import RecursiveLM
from frozenlm.recursion.pass_cache import FirstPassCache
from pipelines import build_recursion
from pipelines.loader import load_config
from pipelines.training.reader import first_example, prepare, training_parts
from pipelines.training.settings import training_questions

SIDES = ("one_pass", "kept", "anew")
TARGET = 1.2  # seconds of a step with the cache beside those of a step of one pass


class Side:
    """One way to train: what is trained, its optimizer, and the clock around a step."""

    def __init__(self, module: nn.Module, loss: Callable[[list[Example]], tuple[Tensor, int]]) -> None:
        self.loss, self.optimizer = loss, torch.optim.AdamW(module.parameters(), lr=1e-3)
        self.seconds: list[float] = []
        self.processor: list[float] = []

    def step(self, batch: list[Example]) -> float:
        """Forward, backward, update; the loss an answer token."""
        began, busy = time.perf_counter(), time.process_time()
        self.optimizer.zero_grad()
        total, units = self.loss(batch)
        (total / units).backward()
        self.optimizer.step()
        self.seconds.append(time.perf_counter() - began)
        self.processor.append(time.process_time() - busy)
        return float(total.detach()) / units


def embedded(count: int, length: int, dtype: str, log: Callable[[str], None]) -> tuple[Any, FrozenLM, list[Example]]:
    """The config, its LM and `count` training windows with room for a prompt."""
    threads = torch.get_num_threads()
    config = load_config("neural_recursion.yaml", overrides=[f"lm.dtype={dtype}"])
    parts = training_parts(config, length, log)
    questions, _ = training_questions(config.training)
    prepared = prepare(parts, config, questions[: 2 * count], log)
    torch.set_num_threads(threads)  # BM25's compiled loops share OpenMP with torch and set its number to theirs
    examples = [first_example(parts.lm, config, one) for one in prepared if one.answers][:count]
    if len(examples) < count:
        raise SystemExit(f"{len(examples)} training windows, but {count} are asked for; take fewer rows or repeats")
    return config, parts.lm, examples


def random_lm(like: FrozenLM, dtype: str) -> FrozenLM:
    """A random LM of GPT-2's shape, 12 layers and 768 channels, with the other LM's tokens (109M parameters)."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    ids = {"bos_token_id": like.tokenizer.bos_token_id, "eos_token_id": like.tokenizer.eos_token_id}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=like.vocab_size, **ids))
    return FrozenLM.from_model(model, like.tokenizer, dtype=dtype)


def measure(shape: str, dtype: str, rows: int, repeats: int, length: int, cache_folder: Path) -> dict[str, Any]:
    """Build the cache, let the sides take turns, one of them to warm up."""
    config, lm, examples = embedded(rows * (repeats + 1), length, dtype, print)
    if shape == "gpt2":
        lm = random_lm(lm, dtype)
    began, busy = time.perf_counter(), time.process_time()
    cache = FirstPassCache(lm, rows_read(examples), folder=cache_folder)
    built = {"seconds": time.perf_counter() - began, "processor": time.process_time() - busy}
    prompt = SoftPrompt.create(lm, length, init=uniform(), position="prefix")
    kept, anew = (RecursiveLM(lm, *_recursion(config, lm, length)) for _ in range(2))
    sides = {
        "one_pass": Side(prompt, lambda batch: prompt_loss(lm, prompt, batch)),
        "kept": Side(kept.module, lambda batch: recursion_loss(kept, batch, cache)),
        "anew": Side(anew.module, lambda batch: recursion_loss(anew, batch)),
    }
    worst = 0.0
    for turn in range(repeats + 1):
        batch = examples[turn * rows : (turn + 1) * rows]
        order = [SIDES[(turn + k) % len(SIDES)] for k in range(len(SIDES))]
        losses = {name: sides[name].step(batch) for name in order}
        worst = max(worst, abs(losses["kept"] - losses["anew"]))
    if worst > (1e-3 if dtype == "float32" else 0.1):
        raise SystemExit(f"kept and run states give losses that differ by {worst}; the sides do not do the same")
    trained = {"one_pass": prompt, "kept": kept.module, "anew": anew.module}
    return {
        "lm_parameters": sum(p.numel() for p in lm.model.parameters()),
        "trained": {name: sum(p.numel() for p in module.parameters()) for name, module in trained.items()},
        "tokens_a_row": round(statistics.mean(example.length for example in examples), 1),
        "seconds": {name: _median(side.seconds) for name, side in sides.items()},
        "processor_seconds": {name: _median(side.processor) for name, side in sides.items()},
        "of_one_pass": {n: _ratio(sides[n].seconds, sides["one_pass"].seconds) for n in ("kept", "anew")},
        "of_one_pass_processor": {n: _ratio(sides[n].processor, sides["one_pass"].processor) for n in ("kept", "anew")},
        "cache_rows": cache.counts.kept,
        "cache_tokens": cache.counts.tokens,
        "cache_bytes": sum(path.stat().st_size for path in cache.folder.glob("*.safetensors")),
        "build_seconds": round(built["seconds"], 2),
        "build_processor_seconds": round(built["processor"], 2),
        "run_anew": cache.counts.run_anew,
        "largest_loss_difference": worst,
        "lm": str(lm.verify()),
    }


def _recursion(config: Any, lm: FrozenLM, length: int) -> tuple[Connector, SoftPrompt]:
    """The config's connector and a prompt in front of the last pass, both as new."""
    connector = Connector.create(lm, build_recursion.sizes(config.connector), seed=config.seed)
    return connector, SoftPrompt.create(lm, length, init=uniform(), position="prefix")


def _median(values: list[float]) -> float:
    """Without the first turn, which warms up."""
    return round(statistics.median(values[1:]), 3)


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(ours[1:], theirs[1:], strict=True)), 2)


def run(given: argparse.Namespace) -> None:
    given.out.mkdir(parents=True, exist_ok=True)
    repeats, rows = (3, 2) if given.quick else (given.repeats, given.rows)
    name = f"{given.shape}-{given.dtype}-{rows}x{repeats}-{given.length}"
    if any(record["name"] == name for record in read(given.out)):
        print(f"{name} is there already")
        return
    with tempfile.TemporaryDirectory(dir=given.out) as folder:
        figures = measure(given.shape, given.dtype, rows, repeats, given.length, Path(folder))
    about = {"name": name, "shape": given.shape, "dtype": given.dtype, "rows": rows, "repeats": repeats}
    about |= {"soft_tokens": given.length, "threads": torch.get_num_threads(), "load": round(os.getloadavg()[0], 1)}
    with (given.out / "results.jsonl").open("a") as stream:
        stream.write(json.dumps(about | figures) + "\n")


def read(out: Path) -> list[dict[str, Any]]:
    path = out / "results.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(out: Path) -> None:
    """A line a measurement: seconds a step (processor seconds), ratios, and what the cache takes."""
    for found in read(out):
        steps = "  ".join(f"{n} {found['seconds'][n]:.2f} s ({found['processor_seconds'][n]:.2f})" for n in SIDES)
        ratios = "  ".join(
            f"{n} {found['of_one_pass'][n]:.2f}x ({found['of_one_pass_processor'][n]:.2f}x)" for n in ("kept", "anew")
        )
        megabytes, each = found["cache_bytes"] / 1e6, found["cache_bytes"] / found["cache_tokens"]
        print(
            f"{found['name']} ({found['threads']} threads, load {found['load']}): {steps} | {ratios} of one pass "
            f"(target {TARGET}x) | cache {found['cache_rows']} rows, {megabytes:.1f} MB, {each:.0f} bytes a token, "
            f"built in {found['build_seconds']} s ({found['build_processor_seconds']})"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "table"])
    parser.add_argument("--out", type=Path, default=Path("runs/pass_cache"))
    parser.add_argument("--quick", action="store_true", help="3 turns of 2 rows")
    parser.add_argument("--shape", choices=["22m", "gpt2"], default="22m")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rows", type=int, default=8, help="of a step")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--length", type=int, default=20, help="soft tokens")
    given = parser.parse_args()
    run(given) if given.action == "run" else table(given.out)
