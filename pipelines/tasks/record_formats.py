"""One reader for each format of records; `records.py` chooses among them.

A reader yields (number from 1, place for messages, fields) lazily and raises `ConfigError` with the place of what is
malformed.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError, MissingExtraError

Row = tuple[int, str, dict[str, Any]]
MAX_LINE_BYTES = 2**26
_HF_LOADERS = {".parquet": "parquet", ".arrow": "arrow", ".json": "json", ".jsonl": "json", ".csv": "csv"}
_SAVED_MARKS = ("dataset_dict.json", "state.json")


def read_jsonl(path: Path) -> Iterator[Row]:
    """One JSON object a line; blank lines are passed over."""
    for number, line in _lines(path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{where}: not JSON ({error})") from error
        if not isinstance(fields, dict):
            raise ConfigError(f"{where}: expected a JSON object, got {type(fields).__name__}")
        yield number, where, fields


def read_csv(path: Path, *, delimiter: str, quoted: bool) -> Iterator[Row]:
    """A header line, then rows of as many fields; quoted fields may be large and hold line breaks."""
    # The limit is the csv module's own global: it is only ever raised.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))
    lines = (line for _, line in _lines(path))
    if quoted:
        rows = csv.reader(lines, delimiter=delimiter, strict=True)
    else:
        rows = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE, strict=True)
    try:
        header = next(rows, None)
        if header is None:
            return
        _check_header(f"{path}:1", header)
        end, number = rows.line_num, 0
        for row in rows:
            start, end = end + 1, rows.line_num
            if not row:
                continue
            number += 1
            if len(row) != len(header):
                raise ConfigError(
                    f"{path}:{start}: {len(row)} fields, the header has {len(header)}; check the quotes and delimiters"
                )
            yield number, f"{path}:{start}", dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise ConfigError(f"{path}:{rows.line_num}: malformed line ({error}); check the quotes") from error


def _check_header(where: str, header: list[str]) -> None:
    if not header:
        raise ConfigError(f"{where}: the first line is blank; expected a header with the fields' names")
    for i, name in enumerate(header):
        if not name.strip():
            raise ConfigError(f"{where}: column {i + 1} of the header has no name; give every column one")
        if name in header[:i]:
            raise ConfigError(f"{where}: the header names {name!r} twice; names must be unique")


def read_hf(path: str, *, split: str, subset: str | None, revision: str | None) -> Iterator[Row]:
    """A dataset saved with `save_to_disk`, a local folder or file that `datasets` can load, or one on the hub.

    Raises:
        MissingExtraError: the package `datasets` is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError('reading Hugging Face datasets needs: pip install "frozenlm[hf]"') from error
    number = 0
    try:
        data = _opened(datasets, path, split=split, subset=subset, revision=revision)
        if isinstance(data, dict):
            if split not in data:
                raise ConfigError(f"dataset {path} has no split {split!r}; it has {', '.join(map(str, data))}")
            data = data[split]
        for number, fields in enumerate(data, start=1):  # streamed, so that files may fail here too
            yield number, f"{path}[{split}] row {number}", dict(fields)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        after = f" after row {number}" if number else ""
        raise ConfigError(f"dataset {path} (split {split!r}) cannot be loaded{after}: {error}") from error


def _opened(datasets: Any, path: str, *, split: str, subset: str | None, revision: str | None) -> Any:
    local = Path(path).expanduser()
    if local.is_dir() and any((local / mark).is_file() for mark in _SAVED_MARKS):
        return datasets.load_from_disk(str(local))
    if local.is_file():
        loader = _HF_LOADERS.get(local.suffix.lower())
        if loader is None:
            raise ConfigError(f"{local}: `datasets` is given {', '.join(_HF_LOADERS)} files here; set another format")
        return datasets.load_dataset(loader, data_files={split: str(local)}, split=split, streaming=True)
    place = str(local) if local.is_dir() else path
    return datasets.load_dataset(place, subset, split=split, revision=revision, streaming=True)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a UTF-8 file, line ends kept, byte-order mark dropped."""
    number = 0
    try:
        with path.open("rb") as stream:
            while line := stream.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise ConfigError(f"{path}:{number}: longer than {MAX_LINE_BYTES:,} bytes; expected lines of text")
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}:{number}: not UTF-8 ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror or error})") from error
