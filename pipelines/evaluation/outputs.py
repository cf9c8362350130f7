"""The result folder of an evaluation: rows appended durably, taken up again after a kill, read back by `compare`.

    run.json                  what is being measured; a folder takes rows of one such measurement only
    predictions.jsonl         one row a question, in the questions' order
    retrieval.partial.jsonl   passages so far; becomes retrieval.trec and retrieval.json (DPR's form) at the end
    checksums.json            SHA-256 of every other file, for `frozenlm verify`
    metrics.json              written last: a folder without it is unfinished

A row is on disk (fsync) before the next chunk begins; passages are written before the row that counts them. A torn last
line is cut off.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError, retrieval_errors
from retrievers.files import clear_write_errors, sha256_file, sha256_json, write_bytes, written_whole

Row = dict[str, Any]
RUN, PREDICTIONS, PARTIAL, METRICS = "run.json", "predictions.jsonl", "retrieval.partial.jsonl", "metrics.json"
RETRIEVAL_JSON, RETRIEVAL_TREC = "retrieval.json", "retrieval.trec"
CHECKSUMS = "checksums.json"


class ResultFolder:
    """One evaluation's folder. Used within `locked()`.

    Args:
        path: made if it does not exist.
        passages: whether rows come with the passages they were answered from.
    """

    def __init__(self, path: Path | str, *, passages: bool = True) -> None:
        self.path, self.passages = Path(path), passages

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out.

        Raises:
            ConfigError: another process is writing here, or `path` is a file.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"{self.path} is a file; the results need a folder")
        with self._writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(f"another evaluation is writing {self.path}; wait or use another folder") from None
            yield
        finally:
            os.close(handle)

    def begin(self, identity: Mapping[str, Any], about: Mapping[str, Any], *, restart: bool) -> None:
        """Open the folder for one measurement.

        Args:
            identity: what rows depend on; equal on resume.
            about: said for the reader's sake, not compared.
            restart: throw away what is there.

        Raises:
            ConfigError: the folder holds another measurement, or files that are not ours.
        """
        if restart:
            with self._writing(self.path):
                for name in (METRICS, CHECKSUMS, PREDICTIONS, PARTIAL, RETRIEVAL_JSON, RETRIEVAL_TREC, RUN):
                    (self.path / name).unlink(missing_ok=True)
        if not (self.path / RUN).exists():
            if (self.path / PREDICTIONS).exists():
                raise ConfigError(
                    f"{self.path} has {PREDICTIONS} but no {RUN}; use another folder, or restart this one"
                )
            self._write_json(RUN, {"identity": identity, **about})
            return
        there = _read_object(self.path / RUN).get("identity", {})
        now = json.loads(json.dumps(identity))
        if differing := sorted(key for key in {*there, *now} if there.get(key) != now.get(key)):
            if not (self.path / PREDICTIONS).exists() and not (self.path / METRICS).exists():
                self._write_json(RUN, {"identity": identity, **about})  # stopped before its first row: nothing to lose
                return
            raise ConfigError(
                f"{self.path} holds an evaluation that differs in {', '.join(differing)}; rows of two evaluations are "
                "never mixed: use another folder, or restart this one (restart=True, --restart), which deletes its rows"
            )
        if (self.path / METRICS).exists():
            with self._writing(self.path):
                (self.path / PARTIAL).unlink(missing_ok=True)

    def metrics(self) -> Row | None:
        """What a finished evaluation found, or None."""
        return _read_object(self.path / METRICS) if (self.path / METRICS).exists() else None

    def reopen(self) -> None:
        """Take the figures of a finished evaluation away, so that others can be computed from its rows."""
        with self._writing(self.path):
            (self.path / METRICS).unlink(missing_ok=True)

    def resume(self, ids: Sequence[str], chunk: int) -> int:
        """Cut back to whole chunks (so that batches stay what they would have been) and say how many rows stand.

        Raises:
            ConfigError: a row is damaged or does not belong to these questions.
        """
        rows = _JsonLines(self.path / PREDICTIONS)
        done = 0
        for row in rows:
            if done >= len(ids) or row.get("id") != ids[done]:
                raise ConfigError(
                    f"{rows.path}:{done + 1}: {row.get('id')!r} is not the question asked; restart this folder"
                )
            done += 1
        passages = _JsonLines(self.path / PARTIAL)
        if self.passages and (done < len(ids) or passages.path.exists()):
            done = min(done, sum(1 for _ in passages))
        if done < len(ids):
            done -= done % chunk
        with self._writing(self.path):
            rows.cut(done)
            passages.cut(done)
        return done

    def append(self, rows: Iterable[Row], passages: Iterable[Row] = ()) -> None:
        """Add one chunk, durably."""
        with self._writing(self.path):
            if self.passages:
                _JsonLines(self.path / PARTIAL).append(passages)
            _JsonLines(self.path / PREDICTIONS).append(rows)

    def rows(self) -> Iterator[Row]:
        """The rows of `predictions.jsonl`, one after the other.

        Raises:
            ConfigError: a damaged row.
        """
        return iter(_JsonLines(self.path / PREDICTIONS))

    def finish(self, metrics: Row, *, retrieval: bool) -> None:
        """Write the retrieval files where there are passages, then `metrics.json`, each whole or not at all."""
        partial = _JsonLines(self.path / PARTIAL)
        if retrieval and partial.path.exists():
            with self._writing(self.path):
                _write_lines(self.path / RETRIEVAL_TREC, _trec_lines(partial))
                _write_lines(self.path / RETRIEVAL_JSON, _json_list(partial))
        with self._writing(self.path):
            written = (RUN, PREDICTIONS, RETRIEVAL_TREC, RETRIEVAL_JSON)
            hashes = {name: sha256_file(self.path / name) for name in written if (self.path / name).exists()}
        hashes[METRICS] = hashlib.sha256(_json_bytes(metrics)).hexdigest()
        self._write_json(CHECKSUMS, {"files": hashes, "sha256": sha256_json(hashes)})
        self._write_json(METRICS, metrics)
        with self._writing(self.path):
            partial.path.unlink(missing_ok=True)

    def _write_json(self, name: str, value: Mapping[str, Any]) -> None:
        with retrieval_errors():
            write_bytes(self.path / name, _json_bytes(value))

    @contextmanager
    def _writing(self, target: Path) -> Iterator[None]:
        with retrieval_errors(), clear_write_errors(target):
            yield


class _JsonLines:
    """A file of JSON objects, one a line, that is only ever appended to or cut."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[Row]:
        """Whole lines only: a last line without its line break was torn by a kill.

        Raises:
            ConfigError: a whole line that is no JSON object.
        """
        for number, line in enumerate(self._lines(), start=1):
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise ConfigError(f"{self.path}:{number}: damaged row; restart this folder or use another")
            yield row

    def _lines(self) -> Iterator[bytes]:
        if not self.path.exists():
            return
        with self.path.open("rb") as stream:
            for line in stream:
                if line.endswith(b"\n"):
                    yield line

    def append(self, rows: Iterable[Row]) -> None:
        """Add rows and wait until they are on disk."""
        text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        with self.path.open("ab") as stream:
            stream.write(text.encode("utf-8", "backslashreplace"))
            stream.flush()
            os.fsync(stream.fileno())

    def cut(self, rows: int) -> None:
        """Keep the first so many rows."""
        if not self.path.exists():
            return
        end = 0
        for number, line in enumerate(self._lines()):
            if number == rows:
                break
            end += len(line)
        with self.path.open("r+b") as stream:
            stream.truncate(end)
            os.fsync(stream.fileno())


def _trec_lines(rows: Iterable[Row]) -> Iterator[str]:
    """A TREC run. The score is the last one given; where scores do not fall along the list, ranks stand in for them,
    so that no reader of the file can sort a re-ranked list back."""
    for row in rows:
        scores = [context.get("rerank_score", context["score"]) for context in row["ctxs"]]
        if any(later > score for score, later in pairwise(scores)):
            scores = [float(-rank) for rank in range(1, len(scores) + 1)]
        for rank, (context, score) in enumerate(zip(row["ctxs"], scores, strict=True), start=1):
            yield f"{_word(row['id'])} Q0 {_word(context['id'])} {rank} {score!r} frozenlm\n"


def _word(identifier: str) -> str:
    """TREC columns are parted by white space; an id that has some is written with underscores."""
    return "_".join(identifier.split()) or "_"


def _json_list(rows: Iterable[Row]) -> Iterator[str]:
    yield "["
    for n, row in enumerate(rows):
        yield (",\n" if n else "\n") + json.dumps(row, ensure_ascii=False, allow_nan=False)
    yield "\n]\n"


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    with written_whole(path) as stream:
        for line in lines:
            stream.write(line.encode("utf-8", "backslashreplace"))


def _json_bytes(value: Mapping[str, Any]) -> bytes:
    text = json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    return text.encode("utf-8", "backslashreplace")


def _read_object(path: Path) -> Row:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as JSON ({error}); restart this folder or use another") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} is no JSON object; restart this folder or use another")
    return value
