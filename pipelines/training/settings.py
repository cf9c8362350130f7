"""What the training blocks of a config share: their questions, and the settings of the loop."""

from __future__ import annotations

from frozenlm.train_settings import TrainSettings
from pipelines import config as c
from pipelines.errors import ConfigError
from pipelines.evaluation.questions import Question, read_questions


def loop_settings(block: c.Loop, seed: int) -> TrainSettings:
    """The settings of the loop; a warm-up longer than the run is cut to it."""
    names = TrainSettings.__dataclass_fields__.keys() - {"seed"}
    settings = {name: getattr(block, name) for name in names}
    return TrainSettings(**settings | {"warmup_steps": min(block.warmup_steps, block.steps), "seed": seed})


def training_questions(block: c.Training) -> tuple[list[Question], list[Question]]:
    """Questions to train on and questions to choose the best step by.

    Raises:
        ConfigError: no question with an answer, or a question in both (its score would be no dev score).
    """
    train = [q for source in block.questions for q in read_questions(source) if q.answers]
    dev = [q for source in block.dev for q in read_questions(source) if q.answers][: block.dev_limit]
    if not train:
        raise ConfigError(f"no question with an answer in {', '.join(str(q.path) for q in block.questions)}")
    shared = {(q.id, q.text) for q in train} & {(q.id, q.text) for q in dev}
    if shared:
        raise ConfigError(
            f"{len(shared)} dev questions are training questions too, such as {min(shared)[1]!r}; split the files"
        )
    return train, dev
