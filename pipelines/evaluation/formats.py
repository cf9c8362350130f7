"""One reader for each format of question file; `questions.py` joins them.

A reader yields (place in the file, record) pairs lazily and raises `ConfigError` with the place of what is malformed.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.errors import ConfigError

MAX_LINE_BYTES = 2**20
MAX_JSON_BYTES = 2**30


class Record(NamedTuple):
    """What every format says of a question."""

    id: str
    text: str
    answers: tuple[str, ...]
    gold_passages: tuple[str, ...] = ()


Located = tuple[str, Record]


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what the operating system says into a `ConfigError`."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror or error})") from error


def detect(path: Path) -> str:
    """The format of a file, from its ending and its first record.

    Raises:
        ConfigError: nothing tells.
    """
    ending = path.suffix.lower()
    if ending in (".csv", ".tsv", ".txt"):
        return "dpr_csv"
    with readable(path):
        if ending == ".json":
            with path.open("rb") as stream:
                return "jsonl" if stream.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[") else "squad"
        if ending in (".jsonl", ".ndjson"):
            for where, line in _lines(path):
                record = _object(where, line)
                return "beir" if "_id" in record else "nq_open" if "answer" in record else "jsonl"
            raise ConfigError(f"{path} is empty; expected one question a line")
    raise ConfigError(f"the format of {path} cannot be told from its ending; set format to one of {', '.join(READERS)}")


def read_json_records(path: Path) -> Iterator[Located]:
    """One JSON object a line, or a JSON list of them.

    Keys: question (or query, text), answers (or answer), id (or _id, qid), gold_passages.
    """
    if path.suffix.lower() == ".json":
        records = _whole(path)
        if not isinstance(records, list):
            raise ConfigError(f"{path}: expected a JSON list of questions, got {type(records).__name__}")
        for i, record in enumerate(records):
            yield f"{path}[{i}]", _record(f"{path}[{i}]", record, default_id=str(i + 1))
        return
    for number, (where, line) in _numbered(path):
        yield where, _record(where, _object(where, line), default_id=str(number))


def read_csv(path: Path) -> Iterator[Located]:
    """Question, tab, Python list literal of answers. Fields quoted in the csv way are unquoted."""
    for number, (where, line) in _numbered(path):
        fields = line.split("\t")
        if len(fields) != 2:
            raise ConfigError(f"{where}: expected a question, a tab and a list of answers, got {len(fields)} columns")
        literal = _unquoted(fields[1].strip())
        try:
            answers = ast.literal_eval(literal)
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            raise ConfigError(
                f"{where}: answers are no Python list: {literal[:60]!r} ({type(error).__name__})"
            ) from error
        if not isinstance(answers, list):
            raise ConfigError(f"{where}: answers are {type(answers).__name__}, expected a list such as ['Paris']")
        yield where, Record(str(number), _text(where, _unquoted(fields[0])), _answers(where, answers))


def read_squad(path: Path) -> Iterator[Located]:
    """SQuAD JSON. Questions that have no answer (SQuAD 2.0) come with none."""
    for where, qa in _squad_questions(path, _whole(path)):
        spans = _member(where, qa, "answers", list)
        answers = [_member(where, span, "text", str) for span in spans]
        id_ = _member(where, qa, "id", str)
        yield where, Record(id_, _text(where, _member(where, qa, "question", str)), _answers(where, answers))


def _squad_questions(path: Path, content: Any) -> Iterator[tuple[str, Any]]:
    for i, article in enumerate(_member(str(path), content, "data", list)):
        where = f"{path}: data[{i}]"
        for j, paragraph in enumerate(_member(where, article, "paragraphs", list)):
            inner = f"{where}.paragraphs[{j}]"
            for k, qa in enumerate(_member(inner, paragraph, "qas", list)):
                yield f"{inner}.qas[{k}]", qa


READERS: Mapping[str, Callable[[Path], Iterator[Located]]] = {
    "nq_open": read_json_records,
    "dpr_csv": read_csv,
    "squad": read_squad,
    "beir": read_json_records,
    "jsonl": read_json_records,
}


def _record(where: str, record: Any, *, default_id: str) -> Record:
    if not isinstance(record, dict):
        raise ConfigError(f"{where}: expected a JSON object, got {type(record).__name__}")
    id_ = next((record[key] for key in ("id", "_id", "qid") if record.get(key) is not None), default_id)
    if not isinstance(id_, str | int) or isinstance(id_, bool) or not str(id_).strip():
        raise ConfigError(f"{where}: id is {id_!r}, expected a string or a whole number")
    key = next((key for key in ("question", "query", "text") if key in record), None)
    if key is None:
        raise ConfigError(f"{where}: no question; expected the key question (or query, text), got {sorted(record)[:8]}")
    answers: Any = next((record[key] for key in ("answers", "answer") if key in record), [])
    answers = [answers] if isinstance(answers, str) else answers
    if not isinstance(answers, list):
        raise ConfigError(f"{where}: answers are {type(answers).__name__}, expected a list of strings")
    gold = record.get("gold_passages", [])
    if not isinstance(gold, list) or not all(isinstance(passage, str) and passage for passage in gold):
        raise ConfigError(f"{where}: gold_passages is {gold!r}, expected a list of passage ids")
    return Record(str(id_), _text(where, record[key]), _answers(where, answers), tuple(dict.fromkeys(gold)))


def _text(where: str, text: Any) -> str:
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f"{where}: the question is {text!r}, expected a string that is not blank")
    return text


def _answers(where: str, answers: list[Any]) -> tuple[str, ...]:
    for answer in answers:
        if not isinstance(answer, str) or not answer.strip():
            raise ConfigError(f"{where}: a gold answer is {answer!r}, expected a string that is not blank")
    return tuple(dict.fromkeys(answers))


def _member(where: str, node: Any, key: str, kind: type) -> Any:
    value = node.get(key) if isinstance(node, dict) else None
    if not isinstance(value, kind):
        raise ConfigError(f"{where}: expected {key!r} to be a {kind.__name__}, got {type(value).__name__}")
    return value


def _unquoted(field: str) -> str:
    """A csv field without its quotes; a question that only begins with a quoted title keeps them."""
    inner = field[1:-1]
    if len(field) >= 2 and field[0] == field[-1] == '"' and '"' not in inner.replace('""', ""):
        return inner.replace('""', '"')
    return field


def _object(where: str, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not JSON ({error})") from error
    if not isinstance(record, dict):
        raise ConfigError(f"{where}: expected a JSON object, got {type(record).__name__}")
    return record


def _whole(path: Path) -> Any:
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_JSON_BYTES:,} bytes; use jsonl, which is read line by line")
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON ({error})") from error


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    return (located for _, located in _numbered(path))


def _numbered(path: Path) -> Iterator[tuple[int, tuple[str, str]]]:
    """Lines that are not blank, with their numbers from 1 and their places for messages."""
    with path.open("rb") as stream:
        number = 0
        while line := stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            where = f"{path}:{number}"
            if len(line) > MAX_LINE_BYTES:
                raise ConfigError(f"{where}: longer than {MAX_LINE_BYTES:,} bytes; expected one question a line")
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ConfigError(f"{where}: not UTF-8 ({error.reason} at byte {error.start})") from error
            if text.strip():
                yield number, (where, text.rstrip("\r\n"))
