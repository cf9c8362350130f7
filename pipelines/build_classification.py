"""From a config of kind `classification` to texts, and to a frozen encoder with what is trained around it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import config as c
from pipelines.build import Log, module_folder
from pipelines.build_deltas import check_asked_for, delta_class, new_delta
from pipelines.config_tasks import task_spec
from pipelines.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from frozenlm.encoder import FrozenEncoder
    from frozenlm.encoder_tasks import LabelledText, TunedEncoder
    from pipelines.tasks.task import TaskRow


def labelled_texts(
    config: c.Classification, split: str, *, log: Log = lambda _: None
) -> list[tuple[TaskRow, LabelledText]]:
    """The rows of one split, each with its text, or pair of texts, and its label, which is the verbalizer's word.

    Raises:
        ConfigError: no such split, a damaged record, or a task whose answers are no fixed choice.
    """
    from frozenlm.encoder_tasks import LabelledText
    from pipelines.tasks.task import load_task

    rows = load_task(task_spec(config.task), split)
    if not rows[0].choices or any(row.choices != rows[0].choices for row in rows):
        raise ConfigError(
            f"task {config.task.name!r} has no fixed set of choices, and a head has a place for each label; give it "
            "a verbalizer"
        )
    if rows.skipped:
        log(f"{config.task.name}: {rows.skipped} {split} records left out, for which the template has nothing to ask")
    seconds: list[str | None] = [None] * len(rows)
    if config.text_b is not None:
        other = task_spec(config.task.model_copy(update={"template": config.text_b}))
        seconds = [row.text for row in load_task(other, split)]
    return [(row, LabelledText(row.text, b, row.target)) for row, b in zip(rows, seconds, strict=True)]


def new_tuned(config: c.Classification, encoder: FrozenEncoder, labels: tuple[str, ...]) -> TunedEncoder:
    """Head and delta before training.

    Raises:
        ConfigError: a size out of range, or a method that is not defined for this encoder.
    """
    from frozenlm.encoder_tasks import TunedEncoder
    from frozenlm.task_heads import ClassificationHead

    head = ClassificationHead.create(encoder, labels, pool=config.pool, seed=config.seed)
    return TunedEncoder(head, None if config.delta is None else new_delta(config.delta, encoder, config.seed))


def trained_tuned(config: c.Classification, encoder: FrozenEncoder) -> TunedEncoder:
    """Head and delta from the workspace, in eval mode.

    Raises:
        CheckpointError: not trained yet, damaged, of another encoder, or not what the config asks for.
    """
    from frozenlm.encoder_tasks import TunedEncoder

    folder = module_folder(config, config.name)
    if not folder.exists():
        raise CheckpointError(f"no trained head at {folder}; run `frozenlm train CONFIG` from this directory")
    kind = None if config.delta is None else delta_class(config.delta.kind)
    tuned = TunedEncoder.load(folder, encoder, delta=kind).eval()
    _check_head(tuned.head, config, folder)
    if config.delta is not None:
        check_asked_for(tuned.delta, config.delta, encoder, folder / "delta")
    return tuned


def _check_head(head: Any, config: c.Classification, folder: Path) -> None:
    words = task_spec(config.task).words
    if head.pool != config.pool:
        raise CheckpointError(
            f"{folder} was trained with pool {head.pool!r}, the config asks for {config.pool!r}; set it back, train it "
            "again with --restart, or give it another name"
        )
    if words is not None:
        check_labels(head, words.choices, folder)


def check_labels(head: Any, choices: Sequence[str], where: Path) -> None:
    """Compare the labels that a head knows with those of a task, in whatever order.

    Raises:
        CheckpointError: they differ.
    """
    if sorted(head.labels) != sorted(choices):
        raise CheckpointError(
            f"{where} tells {', '.join(head.labels)} apart, the task asks for {', '.join(choices)}; set its words "
            "back, train it again with --restart, or give it another name"
        )
