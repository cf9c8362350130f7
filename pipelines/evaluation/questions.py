"""Question files: NQ-open jsonl, DPR and NQ csv/tsv, SQuAD JSON, BEIR queries with qrels, plain jsonl or a JSON list.

Every fault is a `ConfigError` with file and line. Answers in csv files are Python list literals and are read with
`ast.literal_eval`, never evaluated. Ids are the file's own, else the line's number, so they stay what they are.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from pipelines.config import Questions
from pipelines.errors import ConfigError
from pipelines.evaluation import formats
from retrievers.errors import CorpusError
from retrievers.files import sha256_file
from retrievers.runs import read_qrels


@dataclass(frozen=True, slots=True)
class Question:
    """One question.

    Attributes:
        id: unique in its file.
        text: as asked.
        answers: the gold answers; may be empty where only passages are judged.
        gold_passages: ids of the passages judged relevant.
        grades: their grades, parallel to `gold_passages`; empty means 1 for each.
    """

    id: str
    text: str
    answers: tuple[str, ...] = ()
    gold_passages: tuple[str, ...] = ()
    grades: tuple[int, ...] = ()


class QuestionList(list[Question]):
    """A list of questions that knows its file.

    Attributes:
        path: the file.
        sha256: of the file's bytes.
        unjudged: questions left out because the qrels have no relevant passage for them (as BEIR does).
    """

    def __init__(self, questions: Iterable[Question], *, path: Path, sha256: str, unjudged: int = 0) -> None:
        super().__init__(questions)
        self.path, self.sha256, self.unjudged = path, sha256, unjudged


def read_questions(
    source: Questions | Path | str,
    *,
    format: str = "auto",
    qrels: Path | str | None = None,
    limit: int | None = None,
) -> QuestionList:
    """Read a question file, or a BEIR folder with `queries.jsonl` in it.

    Args:
        source: a config's block, or a path. A block's `skip` passes over the first so many of the judged questions.
        format: `auto` or a name in `formats.READERS`; a block brings its own.
        qrels: judgements (BEIR tsv or TREC); keeps only questions with a relevant passage. A BEIR folder's
            `qrels/test.tsv` is taken where none is named.
        limit: read only the first so many.

    Raises:
        ConfigError: a missing, unreadable or malformed file, a duplicate id, no question at all.
    """
    if isinstance(source, Questions):
        block = source
        path, format, qrels = Path(block.path), block.format, qrels or block.qrels
        limit = block.limit if limit is None else min(limit, block.limit or limit)
    else:
        path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "queries.jsonl").is_file():
            raise ConfigError(f"{path} is a folder without queries.jsonl; name a question file or a BEIR folder")
        default = path / "qrels" / "test.tsv"
        qrels = qrels or (default if default.is_file() else None)
        path = path / "queries.jsonl"
    if not path.is_file():
        raise ConfigError(f"question file {path} does not exist; give a .jsonl, .csv, .tsv or .json file")
    if format == "auto":
        format = formats.detect(path)
    if format not in formats.READERS:
        raise ConfigError(f"unknown question format {format!r}; expected auto or one of {', '.join(formats.READERS)}")
    skip = source.skip if isinstance(source, Questions) else 0
    unjudged = 0
    with formats.readable(path):
        found = [Question(*record) for record in _unique(path, formats.READERS[format](path))]
    if not found:
        raise ConfigError(f"{path} has no questions (read as {format})")
    if qrels is not None:
        judged = _judged(Path(qrels).expanduser())
        relevant = {id: [(p, grade) for p, grade in graded.items() if grade > 0] for id, graded in judged.items()}
        kept = [_with_gold(question, relevant[question.id]) for question in found if relevant.get(question.id)]
        if not kept:
            raise ConfigError(
                f"{qrels} has no relevant passage for any question of {path}; do their ids belong together?"
            )
        unjudged, found = len(found) - len(kept), kept
    end = None if limit is None else skip + limit
    chosen = list(islice(found, skip, end))
    size = source.sample if isinstance(source, Questions) else None
    if size is not None and size < len(chosen):
        chosen = [chosen[i] for i in sorted(random.Random(0).sample(range(len(chosen)), size))]
    return QuestionList(chosen, path=path, sha256=sha256_file(path), unjudged=unjudged)


def _judged(path: Path) -> dict[str, dict[str, int]]:
    try:
        return read_qrels(path)
    except CorpusError as error:
        raise ConfigError(f"qrels: {error}") from error


def _with_gold(question: Question, graded: Sequence[tuple[str, int]]) -> Question:
    return replace(question, gold_passages=tuple(p for p, _ in graded), grades=tuple(g for _, g in graded))


def _unique(path: Path, records: Iterable[formats.Located]) -> Iterable[formats.Record]:
    seen: dict[str, str] = {}
    for where, record in records:
        if record.id in seen:
            raise ConfigError(f"{where}: id {record.id!r} is taken already at {seen[record.id]}; ids must be unique")
        seen[record.id] = where
        yield record
