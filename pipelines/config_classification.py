"""The kind of config with a frozen encoder and a head."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipelines.config_deltas import Delta
from pipelines.config_job import Job
from pipelines.config_prompts import FrozenEncoder
from pipelines.config_tasks import TaskBlock, TaskEvaluation, TaskTraining
from pipelines.config_values import Name, Rate


class Classification(Job):
    """`kind: classification`: a frozen encoder with a linear head and a delta, or the head alone, for one task with
    choices (P-tuning v2, arXiv 2110.07602, section 3.3). `name` is the folder of what is trained; `text_b` words the
    second text of a pair, as the task's template words the first. `pool: first` reads the encoder's first token,
    `last` its last one, as for causal models. The head learns at `head_rate` times the learning rate."""

    kind: Literal["classification"]
    encoder: FrozenEncoder
    name: Name
    delta: Delta | None = None
    pool: Literal["mean", "first", "last"] = "mean"
    head_rate: Rate = 1.0
    task: TaskBlock
    text_b: Annotated[str, Field(min_length=1)] | None = None
    training: TaskTraining | None = None
    evaluation: TaskEvaluation = TaskEvaluation()
