"""Measuring what was trained, or the bare LM, on many tasks: into a folder that survives being killed, or in memory.

The folder is that of every evaluation (`outputs.py`), without passages: `predictions.jsonl` has one record a row, and
`metrics.json` each task's score beside its majority baseline, the mean over tasks, intervals, and what made them.
"""

from __future__ import annotations

import hashlib
import json
import time
from array import array
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from frozenlm.context_cache import ContextCache
from frozenlm.deltas.attach import Delta
from frozenlm.fingerprint import digest_tensors, fingerprint
from frozenlm.lm import BATCH_TOKENS, FrozenLM
from frozenlm.prompts.interface import PromptModule
from frozenlm.ranking import Normalize
from pipelines.errors import ConfigError
from pipelines.evaluation.outputs import ResultFolder
from pipelines.evaluation.progress import progress_bar
from pipelines.evaluation.task_answers import Asker, Encoded, EncodeRow, gold_of
from pipelines.evaluation.task_figures import (
    CI_METHOD,
    Records,
    by_task,
    check_figure,
    default_metric,
    mean_figure,
    measure,
    task_figures,
)
from pipelines.evaluation.text_metrics import figures_of
from pipelines.evaluation.versions import versions
from pipelines.tasks.encoding import too_long
from pipelines.tasks.task import TaskRow

if TYPE_CHECKING:
    from frozenlm.encoder import FrozenEncoder

Log = Callable[[str], None]
Tasks = Mapping[str, Sequence[TaskRow]]


def evaluate_tasks(
    lm: FrozenLM,
    module: PromptModule | Delta | None,
    tasks: Tasks,
    out: Path | str,
    *,
    encode_row: EncodeRow,
    metrics: Mapping[str, str | None] | None = None,
    normalize: Normalize = "none",
    max_new_tokens: int = 32,
    stop: Sequence[str] = ("\n",),
    clean: Callable[[str], str] = str.strip,
    batch_tokens: int = BATCH_TOKENS,
    inputs_cut: Callable[[], int] = lambda: 0,
    unseen: Collection[str] = (),
    identity: Mapping[str, Any] | None = None,
    about: Mapping[str, Any] | None = None,
    chunk: int = 256,
    seed: int = 0,
    restart: bool = False,
    log: Log = lambda _: None,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure. A run that was stopped goes on where it was; a finished one is not run again.

    Args:
        lm: the frozen LM.
        module: a prompt method or a delta; None measures the LM as it is.
        tasks: name -> rows. Ids must be unique over all tasks.
        out: result folder: metrics.json, predictions.jsonl.
        encode_row: TaskRow -> (context ids, ids of each candidate, what a prompt is written from).
        metrics: task -> one of `text_metrics.METRICS`; by default accuracy where rows have choices, else em_f1.
        normalize: "none" ranks choices by log-probability, "tokens" by its mean over their tokens.
        max_new_tokens, stop: of free-text answers.
        clean: what is made of a generated text before it is scored.
        batch_tokens: the most tokens of a batch.
        inputs_cut: running count of the inputs that `encode_row` had to cut; its growth is recorded.
        unseen: tasks that were not trained on; they and the others get a mean of their own.
        identity: what else the rows depend on (a config's hash); recorded, and compared when a run goes on.
        about: recorded in run.json, not compared.
        chunk: rows a batch of the folder; what a kill can cost at most.
        seed: of the bootstrap.
        restart: throw away what the folder holds.
        log: told of what is done on the user's behalf.
        progress: show a bar with the time left, on standard error.

    Returns:
        The content of metrics.json.

    Raises:
        ConfigError: no task, a task without rows, ids that are there twice, a metric that does not fit, a row whose
            target is not among its choices, or a folder with another evaluation in it.
        ShapeError: a row that does not fit the LM's window.
        MissingExtraError: the package of a metric is not installed.
    """
    chosen = _checked_metrics(tasks, metrics)
    if chunk < 1:
        raise ConfigError(f"chunk is {chunk}; expected a whole number from 1")
    asker = Asker(
        lm=lm,
        module=module,
        normalize=normalize,
        max_new_tokens=max_new_tokens,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        clean=clean,
        batch_tokens=batch_tokens,
    )
    names = [name for name, own in tasks.items() for _ in own]
    rows = [row for own in tasks.values() for row in own]
    cut_before = inputs_cut()
    encoded = [_compact(encode_row(row)) for row in rows]
    cut = inputs_cut() - cut_before
    whole_identity = {**(identity or {}), **_identity(asker, names, rows, encoded)}
    folder = ResultFolder(out, passages=False)
    with folder.locked():
        folder.begin(whole_identity, {"versions": versions(), **(about or {})}, restart=restart)
        finished = folder.metrics()
        if finished is not None and _same_figures(finished, chosen, unseen, seed):
            log(f"{folder.path} is finished; its figures are taken as they are")
            return finished
        folder.reopen()
        done = folder.resume([row.id for row in rows], chunk)
        if done:
            log(f"{done} of {len(rows)} rows are answered in {folder.path} already")
        with progress_bar(len(rows), done, show=progress) as advance:
            for start in range(done, len(rows), chunk):
                part = slice(start, start + chunk)
                folder.append(_timed(asker, names[part], rows[part], encoded[part]))
                advance(len(rows[part]))
        records = by_task(folder.rows())
        found = _metrics(asker, records, chosen, seed) | _means(chosen, records, unseen, seed)
        found |= {"inputs_cut": cut} | whole_identity
        folder.finish(found, retrieval=False)
    return found


def dev_scores(
    lm: FrozenLM,
    module: PromptModule | Delta | None,
    tasks: Tasks,
    *,
    encode_row: EncodeRow,
    metrics: Mapping[str, str | None] | None = None,
    normalize: Normalize = "none",
    max_new_tokens: int = 32,
    stop: Sequence[str] = ("\n",),
    clean: Callable[[str], str] = str.strip,
    batch_tokens: int = BATCH_TOKENS,
    memory_cache: ContextCache | None = None,
) -> dict[str, float]:
    """Each task's score, in memory, as `evaluate_tasks` would find it; what training looks at.

    Args:
        memory_cache: keeps what the LM has read of contexts from one call to the next; used for ranking with suffix
            prompts on decoder-only LMs, where the contexts of a dev set then are read once in a whole training run.

    Raises:
        ConfigError, ShapeError, MissingExtraError: as `evaluate_tasks`.
    """
    chosen = _checked_metrics(tasks, metrics)
    asker = Asker(
        lm=lm,
        module=module,
        normalize=normalize,
        max_new_tokens=max_new_tokens,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        clean=clean,
        batch_tokens=batch_tokens,
        memory_cache=memory_cache,
    )
    rows = [row for own in tasks.values() for row in own]
    names = [name for name, own in tasks.items() for _ in own]
    records = by_task(asker.records(names, rows, [encode_row(row) for row in rows]))
    return {name: measure(figures_of(chosen[name])[0], records[name]).score for name in tasks}


def _checked_metrics(tasks: Tasks, metrics: Mapping[str, str | None] | None) -> dict[str, str]:
    """task -> metric; whatever can be refused is refused before the LM runs for hours.

    Raises: ConfigError, MissingExtraError.
    """
    given = metrics or {}
    if not tasks or not all(tasks.values()):
        empty = [name for name, rows in tasks.items() if not rows]
        raise ConfigError(f"there is nothing to evaluate on: {empty or 'no task'}; give each task at least one row")
    if unknown := sorted(set(given) - set(tasks)):
        raise ConfigError(f"metrics are given for {unknown}, which are not among the tasks {sorted(tasks)}")
    seen: set[str] = set()
    chosen = {}
    for name, rows in tasks.items():
        for row in rows:
            if row.id in seen:
                raise ConfigError(f"row id {row.id!r} is there twice; ids must be unique over all tasks")
            if not all(text.strip() for text in row.references or (row.target,)):
                raise ConfigError(f"row {row.id!r} has a blank reference; leave the row out")
            if row.choices:
                gold_of(row)
            seen.add(row.id)
        chosen[name] = given.get(name) or default_metric(choices=all(row.choices for row in rows))
        shapes = [{"task": name} | ({"choices": row.choices} if row.choices else {}) for row in rows]
        for figure in figures_of(chosen[name]):
            check_figure(figure, shapes)
    return chosen


def _compact(encoded: Encoded) -> Encoded:
    """All rows of an evaluation are held at once: four bytes a token instead of some forty."""
    context, candidates, source = encoded
    return array("i", context), [tuple(ids) for ids in candidates], source


def _identity(
    asker: Asker, names: Sequence[str], rows: Sequence[TaskRow], encoded: Sequence[Encoded]
) -> dict[str, Any]:
    """What a record depends on. Two runs with equal identities may share a folder."""
    inputs = hashlib.sha256()
    for context, candidates, source in encoded:
        inputs.update(json.dumps([list(context), candidates, source.text, source.task]).encode() + b"\n")
    return {
        "examples_sha256": examples_sha256(names, rows),
        "inputs_sha256": inputs.hexdigest(),
        "lm_fingerprint": asker.lm.fingerprint,
        "lm_dtype": str(asker.lm.dtype).removeprefix("torch."),
        "module": _module_identity(asker.module),
        "normalize": asker.normalize,
        "max_new_tokens": asker.max_new_tokens,
        "stop": list(asker.stop),
    }


def examples_sha256(names: Sequence[str], rows: Sequence[TaskRow]) -> str:
    """Of what was to be answered, however it is worded; runs over the same examples can be compared.

    names: of each row's task
    """
    examples = hashlib.sha256()
    for name, row in zip(names, rows, strict=True):
        example = [name, row.id, row.target, list(row.choices), list(row.references)]
        examples.update(json.dumps(example).encode() + b"\n")
    return examples.hexdigest()


def _module_identity(module: PromptModule | Delta | None) -> dict[str, Any] | None:
    if module is None:
        return None
    encoder = getattr(module, "encoder", None)
    return {
        "class": type(module).__name__,
        **({} if isinstance(module, Delta) else {"position": module.position, "length": module.length}),
        "sha256": fingerprint(digest_tensors(module)) if isinstance(module, torch.nn.Module) else None,
        "encoder_fingerprint": getattr(encoder, "fingerprint", None),
    }


def _timed(
    asker: Asker, names: Sequence[str], rows: Sequence[TaskRow], encoded: Sequence[Encoded]
) -> list[dict[str, Any]]:
    """The records of a chunk, each with its share of the seconds and whether the encoder had to cut its input."""
    began = time.perf_counter()
    records = asker.records(names, rows, encoded)
    seconds = (time.perf_counter() - began) / len(rows)
    cut = too_long(asker.module, [source for _, _, source in encoded])
    return [
        record | {"seconds": seconds, "encoder_inputs_cut": int(one)} for record, one in zip(records, cut, strict=True)
    ]


def _same_figures(finished: Mapping[str, Any], chosen: Mapping[str, str], unseen: Collection[str], seed: int) -> bool:
    metrics = {name: own.get("metric") for name, own in finished.get("tasks", {}).items()}
    same = finished.get("seed") == seed and finished.get("unseen", []) == list(unseen)
    return same and metrics == {name: figures_of(one)[0] for name, one in chosen.items()}


def _means(
    chosen: Mapping[str, str], records: Mapping[str, Records], unseen: Collection[str], seed: int
) -> dict[str, Any]:
    """The mean over all tasks; where some were trained on and some were not, also that of either kind."""
    found: dict[str, Any] = {"mean": mean_figure(chosen, records, seed=seed), "unseen": list(unseen)}
    new = {name: own for name, own in records.items() if name in unseen}
    known = {name: own for name, own in records.items() if name not in unseen}
    if new and known:
        found["mean_seen"] = mean_figure(chosen, known, seed=seed)
        found["mean_unseen"] = mean_figure(chosen, new, seed=seed)
    return found


def _metrics(asker: Asker, records: Mapping[str, Records], chosen: Mapping[str, str], seed: int) -> dict[str, Any]:
    encoder: FrozenEncoder | None = getattr(asker.module, "encoder", None)
    verification = asker.lm.verify()
    encoder_verification = None if encoder is None else encoder.verify()
    everything = [record for own in records.values() for record in own]
    seconds = sum(record["seconds"] for record in everything)
    return {
        "n": len(everything),
        "tasks": {name: task_figures(chosen[name], own, seed=seed) for name, own in records.items()},
        "ci95_method": CI_METHOD,
        "encoder_inputs_cut": sum(record["encoder_inputs_cut"] for record in everything),
        "answers_at_length_limit": sum(record.get("stopped") == "length" for record in everything),
        "seconds": seconds,
        "rows_per_second": len(everything) / seconds if seconds > 0 else None,
        "lm_weights_changed": verification.changed,
        "lm_weights": verification.total,
        "encoder_weights_changed": encoder_verification.changed if encoder_verification is not None else None,
        "seed": seed,
        "versions": versions(),
    }
