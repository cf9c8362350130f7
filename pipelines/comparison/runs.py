"""Trains and measures every method on every task with every seed, one line of results a run.

The experiment of the Delta Tuning survey (arXiv 2203.06904, section 5). A method's learning rate is chosen for each
task on its dev split with the first seed, and kept for the other seeds (our choice). A prompting that learns nothing is
asked only: the seed draws its demonstrations, and where it draws none one run a task, with the first seed, says it all.
A run that has its line is not run again, and one that was interrupted goes on where it stopped, so the whole can be
killed at any time.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.build import Log, module_folder
from pipelines.config import ComparedMethod, MethodComparison, TaskBlock
from pipelines.config_comparison import ZERO_SHOT
from pipelines.config_tasks import Records
from pipelines.errors import ConfigError, DivergedError
from pipelines.tasks.spec import SPLITS
from retrievers.files import sha256_file, sha256_json

COMPARISON = "comparison.json"
Result = Mapping[str, Any]
_WRITTEN: dict[str, Any] = {  # what a line of results has in any case
    **dict.fromkeys(("name", "method", "kind", "task"), str),
    **dict.fromkeys(("seed", "trained_parameters", "lm_parameters"), int),
    "score": (int, float),
    "ci95": list,
}
_SHARED = ("lm", "encoder", "input", "generation", "training", "evaluation")  # by all runs
_ENCODER = "encoder"


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
        ConfigError: the folder holds another comparison or a damaged line, or another process runs the same part.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; the results need a folder")
    out.mkdir(parents=True, exist_ok=True)
    _check_identity(config, out)
    config = config.model_copy(update={"workspace": str(out / "work")})
    index, of = part
    if index >= len(config.methods):
        raise ConfigError(
            f"part {index}/{of} has nothing to do: there are {len(config.methods)} methods; take fewer parts"
        )
    file = out / ("results.jsonl" if of == 1 else f"results-{index}-of-{of}.jsonl")
    with _alone(file):
        for task in config.tasks if index == 0 and config.lm is not None else ():
            if not any(result["name"] == f"{ZERO_SHOT}/{task.name}" for result in read_results(out)):
                _append(file, _zero_shot(config, task, out))
        own = config.methods[index::of]
        for run in runs(config):
            done = {result["name"]: result for result in read_results(out)}
            if run.method in own and run.name not in done:
                log(f"{run.name} ({len(done)} results so far)")
                if not run.method.trains:
                    _append(file, _prompted(config, run, out))
                    continue
                first = done.get(Run(run.method, run.task, 0).name)
                rates = run.method.learning_rates if first is None else [first["learning_rate"]]
                _append(file, _measured(config, run, rates, out, log))
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


def read_results(out: Path | str) -> list[Result]:
    """The lines of the folder's results; a last line without its line break was torn by a kill and is left out.

    Raises:
        ConfigError: a damaged line.
    """
    found: dict[str, Result] = {}
    for path in sorted(Path(out).glob("results*.jsonl")):
        for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
            try:
                result = json.loads(line)
                if any(not isinstance(result[key], kind) for key, kind in _WRITTEN.items()):
                    raise TypeError("a value is missing or of another type")
                found[result["name"]] = result
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise ConfigError(f"{path}:{number}: damaged line; remove it, and its run is made again") from error
    return list(found.values())


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
    kept = ("trained_parameters", "steps", "best_step", "best_score", "seconds_per_step", "saved_bytes", "history")
    return {
        "name": run.name,
        "method": run.method.name,
        "kind": run.method.kind,
        "task": run.task.name,
        "seed": run.seed,
        "learning_rate": rate,
        "dev_by_learning_rate": {f"{tried:g}": one and one["best_score"] for tried, one in trained.items()},
        **{key: summary[key] for key in kept},
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
    about |= {"task": run.task.name, "seed": run.seed, "trained_parameters": 0, "seconds_per_step": None}
    folder = out / "evaluation" / run.method.name / f"{run.task.name}-{run.seed}"
    return about | _evaluated(config.one(run.method, run.task, run.seed), folder)


def _zero_shot(config: MethodComparison, task: TaskBlock, out: Path) -> dict[str, Any]:
    about = {"name": f"{ZERO_SHOT}/{task.name}", "method": ZERO_SHOT, "kind": ZERO_SHOT, "task": task.name, "seed": 0}
    found = _evaluated(config.plain(task), out / "evaluation" / ZERO_SHOT / task.name)
    return about | {"trained_parameters": 0} | found


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
        "lm_weights_changed": metrics[changed],
    }


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Keep other processes from the same part."""
    with file.open("ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another process writes {file}; wait, or share the work with --part") from None
        yield


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


def _append(path: Path, result: Mapping[str, Any]) -> None:
    whole = path.read_bytes() if path.exists() else b""
    with path.open("ab") as stream:
        stream.truncate(whole.rfind(b"\n") + 1)
        stream.write(json.dumps(result).encode() + b"\n")


def _check_identity(config: MethodComparison, out: Path) -> None:
    """One folder holds the results of one comparison; methods, tasks and seeds may be added to it, not changed."""
    from frozenlm.checkpoint import atomic_write_json

    path, settings = out / COMPARISON, config.model_dump(mode="json", include=set(_SHARED))
    if config.lm is not None:
        settings[_ENCODER] = None  # beside an LM it is a part: methods that need one may come later
    now, parts = sha256_json(settings), _parts(config)
    if not path.exists():
        atomic_write_json(path, {"settings_sha256": now, "settings": settings, "parts": parts})
        return
    there = _identity_in(path)
    if there["settings_sha256"] != now:
        raise ConfigError(
            f"{out} holds a comparison with another LM, input, training or evaluation; use another folder, or delete it"
        )
    before, used = there.get("parts", {}), _used(read_results(out))
    if changed := [name for name in parts if name in used and before.get(name, parts[name]) != parts[name]]:
        raise ConfigError(
            f"{out} holds results of another {changed[0]}; set it back, give it another name, or use another folder"
        )
    if before | parts != before:
        atomic_write_json(path, there | {"parts": before | parts})


def _used(results: Sequence[Result]) -> set[str]:
    """The parts that there are results of, by the names of `_parts`."""
    of_each = [(f"method {one['method']!r}", f"task {one['task']!r}") for one in results]
    common = {"seed", "surface", "transfer", _ENCODER}
    return {name for names in of_each for name in names} | (common if results else set())


def _parts(config: MethodComparison) -> dict[str, str]:
    """What may be added to a comparison, and what else its runs depend on: "what it is" -> digest of its settings."""
    found = {f"method {one.name!r}": _method_digest(one) for one in config.methods}
    if config.lm is not None and config.encoder is not None:
        found[_ENCODER] = sha256_json(config.encoder.model_dump(mode="json"))
    for task in config.tasks:
        files = {split: _file_digest(getattr(task, split)) for split in SPLITS}
        about = task.model_dump(mode="json", exclude=set(SPLITS)) | {"files": files}
        found[f"task {task.name!r}"] = sha256_json(about | {"pair": config.pairs.get(task.name)})
    return found | {
        "seed": sha256_json(config.seed),
        "surface": sha256_json(config.surface.model_dump(mode="json")),
        "transfer": sha256_json(config.transfer),
    }


def _method_digest(method: ComparedMethod) -> str:
    """Of a method the one that it had before there were settings that it does not use, so that its results stay."""
    unused: Any = {"prompting"}
    if method.prompting is not None:
        unused = {"prompting": {"verbalizer"}} if method.prompting.verbalizer == "words" else None
    return sha256_json(method.model_dump(mode="json", exclude=unused))


def _file_digest(records: Records | None) -> Any:
    """Of a split: its settings, with the content of a file in the place of its path, which may move."""
    if records is None:
        return None
    path = None if records.path is None else Path(records.path)
    content = sha256_file(path) if path is not None and path.is_file() else records.path
    return records.model_dump(mode="json", exclude={"path"}) | {"content": content}


def _identity_in(path: Path) -> dict[str, Any]:
    try:
        there = json.loads(path.read_bytes())
        whole = isinstance(there["settings_sha256"], str) and isinstance(there.get("parts", {}), dict)
    except (ValueError, TypeError, KeyError, RecursionError):
        whole = False
    if not whole:
        raise ConfigError(f"{path} is damaged; use another folder, or delete it if its results are of this config")
    return there
