"""Trains and measures every method on every task with every seed, one line of results a run.

The experiment of the Delta Tuning survey (arXiv 2203.06904, section 5). A method's learning rate is chosen for each
task on its dev split with the first seed, and kept for the other seeds (our choice). A prompting that learns nothing is
asked only: the seed draws its demonstrations, and where it draws none one run a task, with the first seed, says it all.
A run that has its line is not run again, and one that was interrupted goes on where it stopped, so the whole can be
killed at any time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.build import Log, module_folder
from pipelines.comparison.identity import check_identity
from pipelines.comparison.results import Result, alone, append_result, read_results, results_file
from pipelines.config import ComparedMethod, MethodComparison, TaskBlock
from pipelines.config_comparison import ZERO_SHOT
from pipelines.errors import ConfigError, DivergedError

_NOTHING = {"trained_parameters": 0, "kept_parameters": 0}


@dataclass(frozen=True)
class Run:
    """One training of one method on one task, or a prompting that is only asked."""

    method: ComparedMethod
    task: TaskBlock
    seed: int

    @property
    def name(self) -> str:
        """What its results go by."""
        return f"{self.method.name}/{self.task.name}/{self.seed}"


def runs(config: MethodComparison) -> Iterator[Run]:
    """All runs, seed by seed, so that every method has been seen once before any is seen twice."""
    for seed in range(config.seeds):
        for task in config.tasks:
            yield from (Run(method, task, seed) for method in config.methods if seed < method.runs(config.seeds))


def compare_methods(
    config: MethodComparison, out: Path | str, *, part: tuple[int, int] = (0, 1), log: Log = lambda _: None
) -> list[Result]:
    """Run what has not been run.

    Args:
        out: `results.jsonl`, evaluations and trained modules go there.
        part: (i, n) takes every nth method from the ith, so that several processes can share the work, each with a file
            of results of its own.

    Returns:
        All results in the folder.

    Raises:
        ConfigError: a task's file is missing; the folder holds another comparison, results of other weights or a
            damaged line; another process runs the same part, or shares the work in another number of parts.
    """
    out, (index, of) = Path(out), part
    if index >= len(config.methods):
        raise ConfigError(
            f"part {index}/{of} has nothing to do: there are {len(config.methods)} methods; take fewer parts"
        )
    check_identity(config, out)
    config = config.model_copy(update={"workspace": str(out / "work")})
    file = results_file(out, part)
    with alone(file):
        for task in config.tasks if index == 0 and config.lm is not None else ():
            if not any(result["name"] == f"{ZERO_SHOT}/{task.name}" for result in read_results(out)):
                append_result(file, _zero_shot(config, task, out))
        own = config.methods[index::of]
        for run in runs(config):
            done = {result["name"]: result for result in read_results(out)}
            if run.method in own and run.name not in done:
                log(f"{run.name} ({len(done)} results so far)")
                if not run.method.trains:
                    append_result(file, _prompted(config, run, out))
                    continue
                first = done.get(Run(run.method, run.task, 0).name)
                rates = run.method.learning_rates if first is None else [first["learning_rate"]]
                append_result(file, _measured(config, run, rates, out, log))
                _discard_states(config, run, rates)
    return read_results(out)


def part_of(text: str) -> tuple[int, int]:
    """ "1/3" -> (1, 3).

    Raises:
        ConfigError: anything else, or a part beyond the number of parts.
    """
    index, slash, of = text.partition("/")
    numbers = slash and index.isdecimal() and of.isdecimal() and len(text) < 20
    if not numbers or int(index) >= int(of):
        raise ConfigError(f"part is {text[:40]!r}; expected I/N with I from 0 to N - 1, such as 0/2")
    return int(index), int(of)


def _measured(config: MethodComparison, run: Run, rates: list[float], out: Path, log: Log) -> dict[str, Any]:
    """Train with each learning rate, and measure what the dev split likes best."""
    trained = {rate: _trained(config.one(run.method, run.task, run.seed, rate), log) for rate in rates}
    ended = {rate: summary for rate, summary in trained.items() if summary is not None}
    if not ended:
        raise ConfigError(f"{run.name}: no learning rate of {rates} keeps the loss finite; give the method a lower one")
    rate, summary = max(ended.items(), key=lambda pair: pair[1]["best_score"])
    best = config.one(run.method, run.task, run.seed, rate)
    found = _evaluated(best, out / "evaluation" / run.method.name / f"{run.task.name}-{run.seed}")
    scores: dict[str, float] = {}
    if config.transfer and best.kind == "multitask":  # what a prompting learns is of one task's labels
        for other in config.tasks:
            if other.name != run.task.name:
                moved = best.model_copy(update={"tasks": [other]})
                folder = out / "evaluation" / run.method.name / f"{run.task.name}-{run.seed}-on-{other.name}"
                scores[other.name] = _evaluated(moved, folder)["score"]
    said = ("trained_parameters", "kept_parameters", "steps", "best_step", "best_score")
    of_steps = ("seconds_per_step", "saved_bytes", "history")
    return {
        "name": run.name,
        "method": run.method.name,
        "kind": run.method.kind,
        "task": run.task.name,
        "seed": run.seed,
        "learning_rate": rate,
        "dev_by_learning_rate": {f"{tried:g}": one and one["best_score"] for tried, one in trained.items()},
        **{key: summary[key] for key in (*said, *of_steps)},
        **found,
        "transfer": scores,
    }


def _trained(config: Any, log: Log) -> dict[str, Any] | None:
    """The summary of a training; None where the loss does not stay finite, which is an answer about a learning rate."""
    from pipelines.training import train

    try:
        return train(config, log=log)
    except DivergedError as error:
        log(str(error))
        return None


def _prompted(config: MethodComparison, run: Run, out: Path) -> dict[str, Any]:
    about: dict[str, Any] = {"name": run.name, "method": run.method.name, "kind": run.method.kind}
    about |= {"task": run.task.name, "seed": run.seed, **_NOTHING, "seconds_per_step": None}
    folder = out / "evaluation" / run.method.name / f"{run.task.name}-{run.seed}"
    return about | _evaluated(config.one(run.method, run.task, run.seed), folder)


def _zero_shot(config: MethodComparison, task: TaskBlock, out: Path) -> dict[str, Any]:
    about = {"name": f"{ZERO_SHOT}/{task.name}", "method": ZERO_SHOT, "kind": ZERO_SHOT, "task": task.name, "seed": 0}
    found = _evaluated(config.plain(task), out / "evaluation" / ZERO_SHOT / task.name)
    return about | _NOTHING | found


def _evaluated(config: Any, folder: Path) -> dict[str, Any]:
    from pipelines.evaluation.classification import evaluate_classification
    from pipelines.evaluation.multitask import evaluate_multitask
    from pipelines.evaluation.prompting import evaluate_prompting
    from pipelines.pipeline import Pipeline

    with Pipeline.from_config(config) as pipeline:
        made: Any = pipeline
        if config.kind == "multitask":
            metrics, host, changed = evaluate_multitask(made, folder, progress=False), made.lm, "lm_weights_changed"
        elif config.kind == "prompting":
            metrics, host, changed = evaluate_prompting(made, folder, progress=False), made.host, "lm_weights_changed"
        else:
            metrics, host = evaluate_classification(made, folder, progress=False), made.encoder
            changed = "encoder_weights_changed"
        parameters = sum(p.numel() for p in host.model.parameters())
    (task,) = metrics["tasks"].values()
    return {
        "score": task["score"],
        "ci95": task["ci95"],
        "metric": task["metric"],
        "n": task["n"],
        "majority": task.get("majority_accuracy"),
        "lm_parameters": parameters,
        "lm_fingerprint": host.fingerprint,
        "lm_weights_changed": metrics[changed],
    }


def _discard_states(config: MethodComparison, run: Run, rates: list[float]) -> None:
    """Remove what a training goes on from; its module stays."""
    from frozenlm.train_state import RunFolder
    from pipelines.training.phases import RUNS

    for rate in rates:
        block: Any = config.one(run.method, run.task, run.seed, rate)
        folder = module_folder(block, _module_name(block))
        for ending in RUNS:
            RunFolder(folder.with_name(f"{folder.name}.{ending}"), {}).discard()


def _module_name(block: Any) -> str:
    if block.kind == "classification":
        return str(block.name)
    return str(block.prompting.name if block.kind == "prompting" else block.trained.name)
