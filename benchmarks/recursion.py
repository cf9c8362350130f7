"""Recursion, the frozen LM on its own output, against one pass: two settings, equal steps (docs/results.md).

    python benchmarks/fact_world.py --out runs/fact_world          # once: the LMs and questions of closed_book
    python benchmarks/recursion.py run --out runs/recursion --setting closed_book --seeds 3 [--only neural]
    python benchmarks/recursion.py run --out runs/recursion --setting passages --seeds 1
    python benchmarks/recursion.py latency --out runs/recursion --setting closed_book
    python benchmarks/recursion.py table --out runs/recursion

closed_book: small decoders that know a made-up world (configs/fact_world*.yaml; FROZENLM_HOME says where it is).
passages: a 22M LM with one retrieved passage (configs/wiki_mix_recursion*.yaml). Every method takes as many steps as
one pass in all: the pass's own, those of the prompts that candidates are cross-fitted with, pretraining, the task. A
run that is there is not run again, so the whole can be stopped. `latency` asks all methods the same questions, one at
a time and in turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines.config import Questions
from pipelines.cost import cost
from pipelines.cost_types import Assumed
from pipelines.evaluation.questions import read_questions
from pipelines.evaluation.statistics import bootstrap, paired_bootstrap
from pipelines.loader import load_config

TIMED = 40  # questions that latency is measured on


@dataclass(frozen=True)
class Setting:
    """config: name without ending; sets: question sets, "" for the config's own; answer_tokens: of a usual answer."""

    config: str
    sets: tuple[str, ...]
    answer_tokens: int


SETTINGS = {
    "closed_book": Setting("fact_world", ("",), 2),
    "passages": Setting("wiki_mix_recursion", ("squad_dev", "nq_oracle_dev"), 5),
}


@dataclass(frozen=True)
class Method:
    """A row of the table. {seed} in a setting is filled in.

    form: ending of the config's name
    settings: changes to the config
    needs: the method whose prompt this one reads or begins with
    trains: False where it only reads what `needs` has trained
    """

    form: str
    settings: tuple[str, ...]
    needs: str | None = None
    trains: bool = True


METHODS = {
    "zero_shot": Method("", ("prompt=null",), trains=False),
    "first_pass": Method("", ("prompt.name=first_pass-{seed}",)),
    "one_pass": Method("", ("prompt.name=one_pass-{seed}",)),
    "vote": Method("_textual", ("prompt.name=one_pass-{seed}", "answer_by=majority"), "one_pass", trains=False),
    "best_of_n": Method("_textual", ("prompt.name=one_pass-{seed}", "answer_by=best_score"), "one_pass", trains=False),
    "textual": Method(
        "_textual", ("prompt.name=first_pass-{seed}", "second_pass.prompt.name=second_pass-{seed}"), "first_pass"
    ),
    "textual_where_unsure": Method(
        "_textual",
        (
            "prompt.name=first_pass-{seed}",
            "second_pass.prompt.name=second_pass-{seed}",
            "when=below_confidence",
        ),
        "textual",
        trains=False,
    ),
    "neural": Method(
        "_neural",
        (
            "prompt.name=neural_prompt-{seed}",
            "prompt.start=first_pass-{seed}",
            "connector.name=connector-{seed}",
            "pretraining.name=pretrained-{seed}",
        ),
        "first_pass",
    ),
    "neural_not_pretrained": Method(
        "_neural",
        (
            "prompt.name=plain_neural_prompt-{seed}",
            "prompt.start=first_pass-{seed}",
            "connector.name=plain_connector-{seed}",
            "connector.missing=untrained",
        ),
        "first_pass",
    ),
    "lora": Method("", ("prompt.name=lora_prompt-{seed}",), "first_pass"),
    "deep_zero_shot": Method("", ("prompt=null",), trains=False),
    "deep": Method("", ("prompt.name=deep-{seed}",)),
}
LABELS = {"first_pass": "one pass, short", "lora": "one pass with LoRA", "deep": "one pass of the deep LM"}


def methods(setting: str) -> list[str]:
    """The methods of a setting; only the made-up world has a deep decoder and the control."""
    return [name for name in METHODS if setting == "closed_book" or not name.startswith(("deep", "lora"))]


def seeds_of(method: str, seeds: int) -> range:
    """What is not trained and does not sample is the same with every seed."""
    return range(1 if method.endswith("zero_shot") else seeds)


def configured(out: Path, setting: str, method: str, seed: int, shrink: int) -> Any:
    """The config of one run. shrink: divides all steps, to see that everything runs."""
    about, base = METHODS[method], SETTINGS[setting].config
    changes = [f"workspace={json.dumps(str(out / setting))}", f"seed={seed}"]
    changes += [one.format(seed=seed) for one in about.settings]
    config = load_config(f"{base}{about.form}.yaml", overrides=changes)
    steps = {"training.steps": config.training.steps}
    more = []
    if method == "first_pass":
        textual = load_config(f"{base}_textual.yaml").training
        steps["training.steps"] = textual.steps
        more += [f"training.eval_every={textual.eval_every}"]
    elif method == "lora":
        neural = load_config(f"{base}_neural.yaml")
        steps["training.steps"] = neural.training.steps + neural.pretraining.steps
        more += [f"training.learning_rate={neural.training.learning_rate}"]
    elif method == "neural_not_pretrained":
        steps["training.steps"] += config.pretraining.steps
        more += ["pretraining=null"]
    elif about.form == "_neural":
        steps["pretraining.steps"] = config.pretraining.steps
    elif about.form == "_textual":
        steps["second_pass.training.steps"] = config.second_pass.training.steps
    elif method.startswith("deep"):
        more += [f"lm.model={json.dumps(str(Path(config.lm.model).with_name('deep')))}"]
    more += [f"{key}={max(2, count // shrink)}" for key, count in steps.items()]
    return load_config(f"{base}{about.form}.yaml", overrides=[*changes, *more])


def train_all(config: Any) -> dict[str, Any]:
    """Every stage of a config; how long it took in seconds of the processor, and the best of its steps."""
    from pipelines.training import pretrain, train

    start = time.process_time()
    found: dict[str, Any] = {}
    if config.kind == "neural_recursion" and config.pretraining is not None:
        stage = pretrain(config, log=print)
        found |= {key: stage[key] for key in ("one_pass_perplexity", "perplexity")}
    stage = train(config, log=print)
    found |= {key: stage[key] for key in ("steps", "best_step", "best_score")}
    if "train_oracle_at_n" in stage:
        found["train_oracle_at_n"] = stage["train_oracle_at_n"]
    return found | {"training_cpu_seconds": round(time.process_time() - start, 1)}


def question_blocks(config: Any, setting: str) -> dict[str, Questions]:
    """The question sets of a setting."""
    block = config.evaluation.questions
    found = {}
    for name in SETTINGS[setting].sets:
        changes = (
            {}
            if not name
            else {
                key: getattr(block, key).with_name(f"{name}{getattr(block, key).suffix}") for key in ("path", "qrels")
            }
        )
        found[name or block.path.stem] = block.model_copy(update=changes)
    return found


def evaluate_all(config: Any, out: Path, setting: str, name: str) -> dict[str, Any]:
    """Figures by question set; the answers stay in OUT/evaluation."""
    from pipelines.evaluation.run import evaluate
    from pipelines.pipeline import Pipeline

    found = {}
    keys = ("n", "em", "f1", "oracle_at_n", "second_pass_share", "tokens_in_context", "lm_weights_changed")
    with Pipeline.from_config(config) as pipeline:
        for questions, block in question_blocks(config, setting).items():
            folder = out / "evaluation" / f"{setting}-{name}-{questions}"
            metrics = evaluate(pipeline, read_questions(block), folder, log=print, progress=False)
            found[questions] = {key: metrics.get(key) for key in keys}
    return found


def run_all(out: Path, setting: str, seeds: int, only: str | None, shrink: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    done = {record["name"] for record in read(out) if record["setting"] == setting}
    for seed in range(seeds):
        for method in methods(setting):
            name = f"{method}-{seed}"
            if name in done or only not in (None, method) or seed not in seeds_of(method, seeds):
                continue
            print(f"== {setting} {name}")
            config = configured(out, setting, method, seed, shrink)
            if (needed := METHODS[method].needs) is not None:
                train_all(configured(out, setting, needed, seed, shrink))
            record = {"name": name, "setting": setting, "method": method, "seed": seed, "shrink": shrink}
            if method == "lora":
                write(out, record | control(config, out, setting, name, seed))
                continue
            trained = train_all(config) if METHODS[method].trains else {}
            write(out, record | trained | {"figures": evaluate_all(config, out, setting, name)})


def control(config: Any, out: Path, setting: str, name: str, seed: int) -> dict[str, Any]:
    """One pass with LoRA, as many trained parameters as the neural form."""
    from benchmarks.recursion_control import Control

    parameters = cost(configured(out, setting, "neural", seed, 1))["trained_parameters"]
    made = Control(config, first=f"first_pass-{seed}", parameters=parameters)
    trained, figures = made.train(), {}
    for questions, block in question_blocks(config, setting).items():
        folder = out / "evaluation" / f"{setting}-{name}-{questions}"
        figures[questions] = made.evaluate(read_questions(block), folder)
    return trained | {"figures": figures}


def latency(out: Path, setting: str, shrink: int) -> None:
    """Seconds a question, asked alone, by method; all of them in turn, so that a busy machine is busy for all."""
    from pipelines.pipeline import Pipeline

    done = {record["method"] for record in read(out) if record["setting"] == setting and record["seed"] == 0}
    with ExitStack() as stack:
        opened = {}
        for method in (one for one in methods(setting) if one in done and one != "lora"):
            config = configured(out, setting, method, 0, shrink)
            opened[method] = stack.enter_context(Pipeline.from_config(config))
        block = next(iter(question_blocks(config, setting).values()))
        taken: dict[str, list[float]] = {method: [] for method in opened}
        for number, question in enumerate(read_questions(block)[: TIMED + 3]):
            for method, pipeline in opened.items():
                start = time.perf_counter()
                pipeline(question.text)
                if number >= 3:  # the first ones warm up
                    taken[method].append(time.perf_counter() - start)
    medians = {method: round(statistics.median(each), 5) for method, each in taken.items()}
    about = {"questions": TIMED, "threads": torch.get_num_threads()}
    write(out, {"name": "latency", "setting": setting, "method": "", "seed": None, "seconds": medians, **about})


def write(out: Path, record: dict[str, Any]) -> None:
    with (out / "results.jsonl").open("a") as stream:
        stream.write(json.dumps(record) + "\n")


def read(out: Path) -> list[dict[str, Any]]:
    path = out / "results.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def groups(out: Path, setting: str, questions: str) -> dict[str, set[str] | None]:
    """Ids of the questions that are told apart; None: all."""
    if setting != "closed_book":
        return {questions: None}
    block = load_config(f"{SETTINGS[setting].config}.yaml").evaluation.questions
    asked = [json.loads(line) for line in block.path.read_text().splitlines()]
    return {
        "one hop": {one["id"] for one in asked if one["hops"] == 1},
        "two hops": {one["id"] for one in asked if one["hops"] == 2},
        "two hops, the first to a friend": {one["id"] for one in asked if one["relation"].startswith("friend.")},
    }


def scores(out: Path, found: list[dict[str, Any]], questions: str, ids: set[str] | None) -> dict[str, np.ndarray]:
    """Score -> [S, N] of S seeds and N questions, in [0, 1]; oracle only where candidates were drawn."""
    columns: dict[str, list[list[float]]] = {"em": [], "f1": [], "oracle": []}
    for record in found:
        path = out / "evaluation" / f"{record['setting']}-{record['name']}-{questions}" / "predictions.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows = [row for row in rows if ids is None or row["id"] in ids]
        for name, column in columns.items():
            column.append([float(row[name]) for row in rows if row.get(name) is not None])
    return {name: np.array(column) for name, column in columns.items() if column and column[0]}


def expenses(out: Path, setting: str, method: str, tokens: int) -> tuple[float, int]:
    """FLOPs of one question and trained parameters, from the config."""
    config = configured(out, setting, method, 0, 1)  # LoRA merges into the LM: it costs what its prompt costs
    found = cost(config, Assumed(input_tokens=tokens, answer_tokens=SETTINGS[setting].answer_tokens))
    return found["flops_per_input"], found["trained_parameters"]


def table(out: Path) -> None:
    """Percent, means over seeds; 95% intervals by bootstrap over questions, of scores averaged over seeds; seconds are
    medians over seeds, and leave out the training of what a method needs and what a stopped run had done."""
    records = read(out)
    for setting in SETTINGS:
        ran = {
            method: [one for one in records if one["setting"] == setting and one["method"] == method]
            for method in methods(setting)
        }
        ran = {method: found for method, found in ran.items() if found}
        timed = [one["seconds"] for one in records if one["setting"] == setting and one["name"] == "latency"]
        if "one_pass" not in ran:
            continue
        for questions in ran["one_pass"][0]["figures"]:
            tokens = round(ran["one_pass"][0]["figures"][questions]["tokens_in_context"])
            spent = {method: expenses(out, setting, method, tokens) for method in ran}
            for group, ids in groups(out, setting, questions).items():
                print(f"\n{setting}, {group}, {tokens} tokens read")
                base = scores(out, ran["one_pass"], questions, ids)["em"].mean(0)
                for method, found in ran.items():
                    parts = line(scores(out, found, questions, ids), base)
                    flops, parameters = spent[method]
                    if method.endswith("where_unsure"):  # the others cost their first answer only
                        paid = statistics.mean(one["figures"][questions]["second_pass_share"] for one in found)
                        flops = spent["first_pass"][0] + paid * (flops - spent["first_pass"][0])
                    parameters = found[0].get("trained_parameters", parameters)
                    seconds = [one["training_cpu_seconds"] for one in found if "training_cpu_seconds" in one]
                    parts += [f"FLOPs {flops / spent['one_pass'][0]:5.2f}", f"trained {parameters:9,}"]
                    parts += [f"{1000 * timed[-1][method]:6.1f} ms" if timed and method in timed[-1] else "     - ms"]
                    parts += [f"{statistics.median(seconds):5.0f} CPU s" if seconds else "    - CPU s"]
                    print(f"{LABELS.get(method, method.replace('_', ' ')):24} seeds {len(found)} " + "  ".join(parts))


def line(found: dict[str, np.ndarray], base: np.ndarray) -> list[str]:
    """EM, its interval and the seeds' spread, F1, EM less one pass's, oracle."""
    each = found["em"].mean(1)
    em = found["em"].mean(0)
    low, high = bootstrap(em[:, None]) or (0.0, 0.0)
    less = paired_bootstrap(base, em)
    parts = [f"n={len(em)}", f"EM {100 * em.mean():5.1f} [{100 * low:5.1f}, {100 * high:5.1f}]"]
    parts += [
        f"sd {100 * each.std(ddof=1):4.1f}" if len(each) > 1 else "sd    -",
        f"F1 {100 * found['f1'].mean():5.1f}",
    ]
    parts += [f"less one pass {100 * less.difference:+5.1f} [{100 * less.low:+5.1f}, {100 * less.high:+5.1f}]"]
    return [*parts, f"oracle {100 * found['oracle'].mean():5.1f}" if "oracle" in found else "oracle     -"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "latency", "table"])
    parser.add_argument("--out", type=Path, default=Path("runs/recursion"))
    parser.add_argument("--setting", choices=list(SETTINGS), default="closed_book")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=list(METHODS), help="run this method alone, and train what it needs")
    parser.add_argument("--shrink", type=int, default=1, help="divides all steps, to see that everything runs")
    given = parser.parse_args()
    if given.action == "run":
        run_all(given.out.absolute(), given.setting, given.seeds, given.only, given.shrink)
    elif given.action == "latency":
        latency(given.out.absolute(), given.setting, given.shrink)
    else:
        table(given.out.absolute())
