"""What a task is made of, checked as far as can be told before anything is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from pipelines.errors import ConfigError
from pipelines.suggest import did_you_mean
from pipelines.tasks.records import RecordSource
from pipelines.tasks.template import Template
from pipelines.tasks.verbalizer import Verbalizer, label_key

Metric = Literal["accuracy", "rouge", "bleu", "em_f1"]
METRICS: tuple[Metric, ...] = get_args(Metric)
SPLITS = ("train", "dev", "test")
_NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """One task: records, what the LM reads of them, what it shall answer.

    A task with a `template` is either a classification, with a `verbalizer`, or free text, with a `target` template or
    a `references` field whose first text is the target. A task with a `promptsource` file takes input, target and
    choices from there.

    name: letters, digits, `_`, `.`, `-`; unique in a mixture
    records: split (train, dev, test) -> where its records come from
    metric: `accuracy` where there are choices, else `rouge`, `bleu` or `em_f1`
    template: text with `{field}` slots
    promptsource, promptsource_template: a `templates.yaml`, and the name or id of a template in it
    verbalizer: label -> word
    target: a template of the answer, such as `{label}`
    references: the field with all good answers, a list of texts
    label: the field that holds the label
    labels: the labels in promptsource's order; a label then reads as its index there, as its templates expect
    fields: name in the template -> name in the record, where they differ
    seed: of promptsource's `choice`

    Raises: ConfigError for anything missing, in conflict or of no use.
    """

    name: str
    records: Mapping[str, RecordSource]
    metric: Metric
    template: str | None = None
    promptsource: Path | str | None = None
    promptsource_template: str | None = None
    verbalizer: Mapping[Any, str] | None = None
    target: str | None = None
    references: str | None = None
    label: str = "label"
    labels: tuple[Any, ...] = ()
    fields: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(f"task name {self.name!r}: expected letters, digits, '_', '.' or '-'")
        where = f"task {self.name!r}"
        if self.metric not in METRICS:
            raise ConfigError(f"{where}: unknown metric {self.metric!r}; expected one of {', '.join(METRICS)}")
        for split in self.records:
            if split not in SPLITS:
                raise ConfigError(f"{where}: unknown split {split!r}{did_you_mean(split, SPLITS)}")
        if not self.records:
            raise ConfigError(f"{where} names no records; give at least one of {', '.join(SPLITS)}")
        if (self.template is None) == (self.promptsource is None):
            raise ConfigError(f"{where}: expected either a template or a promptsource file")
        if self.template is not None:
            self._check_own_template(where)
        else:
            self._check_promptsource(where)

    def _check_own_template(self, where: str) -> None:
        if self.promptsource_template is not None or self.labels:
            raise ConfigError(
                f"{where}: promptsource_template and labels belong to a promptsource file; leave them out"
            )
        free = self.target is not None or self.references is not None
        if free == (self.verbalizer is not None):
            raise ConfigError(
                f"{where}: expected either a verbalizer (classification), or a target or references (free text)"
            )
        if (self.metric == "accuracy") == free:
            raise ConfigError(
                f"{where}: the metric {self.metric} does not fit; a verbalizer goes with accuracy, free text with "
                "rouge, bleu or em_f1"
            )
        self.parsed  # noqa: B018 (parsed now, so that its errors come now)
        self.words  # noqa: B018

    def _check_promptsource(self, where: str) -> None:
        if self.promptsource_template is None:
            raise ConfigError(f"{where}: name the template of {self.promptsource} in promptsource_template")
        if self.verbalizer is not None or self.target is not None:
            raise ConfigError(
                f"{where}: a promptsource template brings its own target; leave out verbalizer and target"
            )
        if len(set(self.label_order)) != len(self.labels):
            raise ConfigError(f"{where}: labels name one label twice: {list(self.labels)}")

    @cached_property
    def parsed(self) -> tuple[Template | None, Template | None]:
        """The templates of input and answer; None where there is none."""
        text = None if self.template is None else Template(self.template, name=f"template of task {self.name!r}")
        target = None if self.target is None else Template(self.target, name=f"target of task {self.name!r}")
        return text, target

    @cached_property
    def words(self) -> Verbalizer | None:
        """The verbalizer; None for free text and promptsource."""
        return None if self.verbalizer is None else Verbalizer(self.verbalizer, task=self.name)

    @cached_property
    def label_order(self) -> tuple[str, ...]:
        """`labels` as text."""
        return tuple(label_key(label, where=f"labels of task {self.name!r}") for label in self.labels)
