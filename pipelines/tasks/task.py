"""Tasks: records become rows that every prompt method, the trainer and the evaluation read.

In dev and test of a free-text task, records with the same input are one row with several references, wherever they
stand (data-to-text sets give each input many times, shuffled). In train each record stays a row of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipelines.errors import ConfigError
from pipelines.tasks.promptsource import load_template
from pipelines.tasks.records import Record, RecordList, read_records
from pipelines.tasks.spec import Metric, TaskSpec
from pipelines.tasks.template import Template
from pipelines.tasks.verbalizer import label_key


@dataclass(frozen=True)
class TaskRow:
    """One input and its answer.

    id: `task/split/number`, the number being the record's own
    text: the input as the LM reads it
    target: the answer to learn
    choices: what the answer is chosen among; empty for free text
    references: every good answer, the target among them
    label: the label as the data have it; None for free text
    """

    id: str
    task: str
    text: str
    target: str
    choices: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    label: str | None = None


class TaskRows(list[TaskRow]):
    """The rows of one split.

    Attributes:
        path: of the records, as given.
        sha256: of the record file; None for a Hugging Face dataset.
        skipped: records that the promptsource template had nothing to ask of.
        merged: records that were added to another row as a reference.
    """

    def __init__(self, rows: Iterable[TaskRow], *, path: str, sha256: str | None, skipped: int, merged: int) -> None:
        super().__init__(rows)
        self.path, self.sha256, self.skipped, self.merged = path, sha256, skipped, merged


@dataclass(frozen=True)
class Task:
    """A task that has been read.

    choices: those that all its rows share, in order; empty for free text, or where they differ by row
    rows: split -> rows
    """

    name: str
    metric: Metric
    choices: tuple[str, ...] = ()
    rows: Mapping[str, Sequence[TaskRow]] = field(default_factory=dict)


def load_tasks(specs: Iterable[TaskSpec], splits: Sequence[str] | None = None) -> list[Task]:
    """Read tasks, of all their splits or of those named that they have.

    Raises:
        ConfigError: no task, two of one name; as `load_task`.
    """
    specs = list(specs)
    if not specs:
        raise ConfigError("no task was given; expected at least one")
    names = [spec.name for spec in specs]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise ConfigError(f"two tasks are named {name!r}; names must be unique")
    return [_loaded(spec, [split for split in spec.records if splits is None or split in splits]) for spec in specs]


def _loaded(spec: TaskSpec, splits: Sequence[str]) -> Task:
    rows = {split: load_task(spec, split) for split in splits}
    sets = {row.choices for part in rows.values() for row in part}
    return Task(spec.name, spec.metric, sets.pop() if len(sets) == 1 else (), rows)


def load_task(spec: TaskSpec, split: str) -> TaskRows:
    """The rows of one split.

    Raises:
        ConfigError: no such split, no record, no row left, a field that is missing, a label without a word, a metric
            that does not fit; each names the task and the record.
        MissingExtraError: a Hugging Face dataset without the package `datasets`.
    """
    if split not in spec.records:
        raise ConfigError(f"task {spec.name!r} has no split {split!r}; it has {', '.join(spec.records)}")
    try:
        records = read_records(spec.records[split])
    except ConfigError as error:
        raise ConfigError(f"task {spec.name!r}, split {split}: {error}") from error
    made = _maker(spec)
    found = [(record, made(record, f"{spec.name}/{split}/{record.number}")) for record in records]
    rows = [row for _, row in found if row is not None]
    if not rows:
        raise ConfigError(
            f"task {spec.name!r}: none of the {len(records)} records of {records.path} gives a row; "
            "the template leaves them all out"
        )
    kept = rows if split == "train" or rows[0].choices else _merged(rows)
    return _counted(kept, rows, records)


def _counted(kept: list[TaskRow], rows: list[TaskRow], records: RecordList) -> TaskRows:
    return TaskRows(
        kept,
        path=records.path,
        sha256=records.sha256,
        skipped=len(records) - len(rows),
        merged=len(rows) - len(kept),
    )


Maker = Callable[[Record, str], TaskRow | None]


def _maker(spec: TaskSpec) -> Maker:
    template, target = spec.parsed
    return _by_promptsource(spec) if template is None else _by_template(spec, template, target)


def _by_template(spec: TaskSpec, template: Template, target: Template | None) -> Maker:

    def made(record: Record, id_: str) -> TaskRow:
        values = _values(spec, record)
        text = template.render(values, where=record.where)
        if not text.strip():
            raise ConfigError(f"{record.where}: the input of task {spec.name!r} is blank; expected text")
        if spec.words is not None:
            label = _field(spec, values, spec.label, record.where)
            word = spec.words.word(label, where=record.where)
            choices = spec.words.choices
            return TaskRow(id_, spec.name, text, word, choices, (word,), label_key(label, where=record.where))
        references = _references(spec, values, record.where)
        answer = target.render(values, where=record.where) if target else references[0]
        return _free_text(spec, record, id_, text, answer, references)

    return made


def _by_promptsource(spec: TaskSpec) -> Maker:
    template = load_template(str(spec.promptsource), str(spec.promptsource_template))
    ranked = template.source.answer_choices is not None
    if ranked != (spec.metric == "accuracy"):
        has = "has answer choices, which go with accuracy" if ranked else "is free text: rouge, bleu or em_f1"
        raise ConfigError(f"task {spec.name!r}: metric {spec.metric} does not fit; {template.source.where} {has}")

    def made(record: Record, id_: str) -> TaskRow | None:
        values = _values(spec, record)
        rendered = template.render(values, where=record.where, seed=f"{spec.seed}/{id_}")
        if rendered is None:
            return None
        if not ranked:
            references = _references(spec, values, record.where)
            return _free_text(spec, record, id_, rendered.text, rendered.target, references)
        known = spec.label in record.fields
        label = label_key(record.fields[spec.label], where=record.where) if known else rendered.target
        target = rendered.target
        return TaskRow(id_, spec.name, rendered.text, target, rendered.choices, (target,), label)

    return made


def _free_text(
    spec: TaskSpec, record: Record, id_: str, text: str, target: str, references: tuple[str, ...]
) -> TaskRow:
    if not target.strip():
        raise ConfigError(f"{record.where}: the target of task {spec.name!r} is blank; there is nothing to learn from")
    return TaskRow(id_, spec.name, text, target, (), tuple(dict.fromkeys((target, *references))))


def _values(spec: TaskSpec, record: Record) -> dict[str, Any]:
    """The record under the names that the template uses; a mapped name hides the record's own."""
    own = dict(record.fields)
    if spec.labels:
        key = label_key(_field(spec, own, spec.label, record.where), where=record.where)
        if key not in spec.label_order:
            known = ", ".join(map(repr, spec.label_order))
            raise ConfigError(
                f"{record.where}: the label {key!r} is not among the labels of task {spec.name!r}: {known}"
            )
        own[spec.label] = spec.label_order.index(key)
    return own | {name: _field(spec, own, source, record.where) for name, source in spec.fields.items()}


def _field(spec: TaskSpec, values: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in values:
        raise ConfigError(f"{where}: task {spec.name!r} needs the field {name!r}; the record has {', '.join(values)}")
    return values[name]


def _references(spec: TaskSpec, values: Mapping[str, Any], where: str) -> tuple[str, ...]:
    if spec.references is None:
        return ()
    found = _field(spec, values, spec.references, where)
    found = [found] if isinstance(found, str) else found
    if not isinstance(found, list) or not found or not all(isinstance(one, str) and one.strip() for one in found):
        raise ConfigError(
            f"{where}: the references of task {spec.name!r} ({spec.references}) are {found!r:.60}; expected a list of "
            "texts, none blank"
        )
    return tuple(found)


def _merged(rows: list[TaskRow]) -> list[TaskRow]:
    """Rows with the same input become the first of them, with the references of all."""
    by_text: dict[str, TaskRow] = {}
    for row in rows:
        first = by_text.get(row.text, row)
        by_text[row.text] = replace(first, references=tuple(dict.fromkeys(first.references + row.references)))
    return list(by_text.values())
