"""`frozenlm evaluate` and `frozenlm prompts` for a config of kind `multitask`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import build_tasks
from pipelines.errors import ConfigError
from pipelines.evaluation.tasks import evaluate_tasks
from pipelines.surface import clean
from pipelines.tasks.spec import SPLITS
from retrievers.files import sha256_json

if TYPE_CHECKING:
    from pipelines.multitask import MultitaskPipeline
    from pipelines.tasks.task import TaskRow

Log = Callable[[str], None]
_MEASURED = ("tasks", "input", "generation", "surface", "prompt", "delta", "lm", "encoder")


def evaluate_multitask(
    pipeline: MultitaskPipeline,
    out: Path | str,
    *,
    limit: int | None = None,
    restart: bool = False,
    log: Log = lambda _: None,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure the config's own prompt or delta, or the LM as it is where there is none, on every task of the config.

    Args:
        limit: rows a task at most; None takes the config's.

    Returns:
        The content of metrics.json; `unseen` names the tasks that were not trained on, `mean_unseen` is theirs.

    Raises:
        ConfigError: no task, or a task without the split that is to be measured.
        CheckpointError: the prompt has not been trained.
    """
    from pipelines.loader import as_written

    config = pipeline.config
    block = config.evaluation
    name = pipeline.own_name
    settings = config.model_dump(mode="json", include=set(_MEASURED))
    unseen = [task.name for task in build_tasks.expanded(config.tasks) if not task.seen]
    rows = _rows(
        pipeline, block.split, limit or block.limit, log
    )  # before the LM, so that their faults are said at once
    return evaluate_tasks(
        pipeline.lm,
        None if name is None else pipeline.module(name),
        rows,
        out,
        encode_row=pipeline.coder.scored,
        metrics={task.name: task.metric for task in build_tasks.expanded(config.tasks)},
        normalize=block.normalize,
        max_new_tokens=config.generation.max_new_tokens,
        stop=tuple(config.generation.stop),
        clean=lambda text: clean(text, join_digits=config.surface.join_digits, as_in_passage=False),
        batch_tokens=config.generation.batch_tokens,
        inputs_cut=lambda: pipeline.coder.counts.inputs_cut,
        unseen=unseen,
        identity={
            **pipeline.provenance(),
            "split": block.split,
            "unseen": unseen,
            "config_sha256": sha256_json(settings),
        },
        about={"config": as_written(config)},
        chunk=block.chunk,
        seed=config.seed,
        restart=restart,
        log=log,
        progress=progress,
    )


def export_prompts(
    pipeline: MultitaskPipeline, out: Path | str, *, split: str = "dev", limit: int = 60, log: Log = lambda _: None
) -> dict[str, Any]:
    """Write p(x) of the tasks' inputs, and a picture of where they lie, into a folder.

    Returns:
        How much of the prompts' variance lies between tasks, and the files' names.

    Raises:
        ConfigError: the config is not of kind multitask, has no prompt, or no such split.
        MissingExtraError: matplotlib is not installed.
    """
    from pipelines.evaluation.prompt_plot import PICTURE, draw_prompts, written_prompts
    from pipelines.tasks.encoding import source_of

    prompt = getattr(pipeline.config, "prompt", None)
    if pipeline.config.kind != "multitask" or prompt is None:
        raise ConfigError("prompts are exported from a config of kind multitask with a prompt block")
    if split not in SPLITS:
        raise ConfigError(f"split is {split!r}; expected one of {', '.join(SPLITS)}")
    sources = [source_of(row) for rows in _rows(pipeline, split, limit, log).values() for row in rows]
    module: Any = pipeline.module(prompt.name)
    found = written_prompts(module, sources)
    found.save(out, pipeline.provenance() | {"split": split})
    draw_prompts(found, Path(out) / PICTURE, title=f"{prompt.kind}: {len(sources)} inputs of {split}")
    return found.figures() | {"picture": str(Path(out) / PICTURE)}


def _rows(pipeline: MultitaskPipeline, split: str, limit: int | None, log: Log) -> dict[str, list[TaskRow]]:
    if not pipeline.config.tasks:
        raise ConfigError("this config has no tasks to measure; give it a tasks block")
    return {task.name: list(task.rows[split])[:limit] for task in build_tasks.tasks(pipeline.config, split, log=log)}
