"""The config blocks of a training run, and of what is measured on questions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipelines.config_values import Block, Count, Positive, Questions, Rate


class Loop(Block):
    """The training loop's settings (`frozenlm.train_settings`)."""

    steps: Positive = 500
    batch_size: Positive = 8
    gradient_accumulation: Positive = 1
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    learning_rate: Rate = 0.01
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup_steps: Count = 20
    clip_norm: Rate | None = 1.0
    precision: Literal["no", "bf16"] = "no"
    eval_every: Positive = 100
    patience: Positive | None = None
    save_every: Positive = 100
    trackers: list[Literal["tensorboard"]] = []


class Training(Loop):
    """One training run on questions. `questions` train; `dev` picks the best step and is never reported."""

    questions: Annotated[list[Questions], Field(min_length=1)]
    dev: list[Questions] = []
    dev_limit: Positive = 200


class PromptTraining(Training):
    """Training of the reader's prompt on packed contexts. Questions whose packed context lacks every answer are left
    out unless `unanswerable` is `keep`; with `add_gold` the gold passage is put first among the hits
    where retrieval missed it."""

    unanswerable: Literal["skip", "keep"] = "skip"
    add_gold: bool = False
    context_cache: Literal["off", "memory", "disk"] = "memory"
    context_cache_bytes: Positive = 2_000_000_000


class RerankerTraining(Training):
    """Listwise training: one positive against `negatives` drawn from the retriever's first `depth` hits (our choice of
    loss and counts). `balanced` draws those that are gold for another question, so that a small training set cannot
    teach which passages tend to be gold."""

    learning_rate: Rate = 3e-5
    negatives: Positive = 7
    balanced: bool = False
    depth: Positive = 100


class Evaluation(Block):
    """What is measured. `questions` may be given on the command line instead."""

    questions: Questions | None = None
    recall_at: Annotated[list[Positive], Field(min_length=1)] = [1, 5, 20, 100]
    matcher: Literal["dpr", "substring"] = "dpr"
    chunk: Positive = 64
