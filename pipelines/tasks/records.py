"""Records of a task: what each line of a file, or each row of a Hugging Face dataset, says under which name.

A record keeps the place where it was found, so that whatever is wrong with it later can be pointed at. Files are read
line by line and hub datasets are streamed; with `limit`, what lies behind it is never read.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from pipelines.errors import ConfigError
from pipelines.tasks import record_formats
from retrievers.files import sha256_file

Format = Literal["auto", "jsonl", "csv", "tsv", "tsv_unquoted", "hf"]
FORMATS: tuple[Format, ...] = get_args(Format)
_ENDINGS: dict[str, Format] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv", ".parquet": "hf"}


class Record(NamedTuple):
    """One record.

    number: its line in a jsonl file, else its place among the rows, from 1; stays the same under skip and sample
    where: `file:line` or `dataset[split] row n`, for messages
    fields: field name -> value as the file has it (csv: always text)
    """

    number: int
    where: str
    fields: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class RecordSource:
    """Where records come from, and which of them.

    path: a local file, a folder of a Hugging Face dataset, or with `format="hf"` a dataset's name on the hub
    format: `tsv` is quoted in the csv way, `tsv_unquoted` takes quotes as they stand (GLUE's files); `auto` goes by
        the ending, and takes a folder as `hf`
    split, subset, revision: of a Hugging Face dataset
    skip: records to pass over first
    limit: records to take after that; None for all
    sample: of those, how many to draw without replacement; they keep their order
    seed: of the sample

    Raises: ConfigError for a number out of range or an unknown format.
    """

    path: Path | str
    format: Format = "auto"
    split: str = "train"
    subset: str | None = None
    revision: str | None = None
    skip: int = 0
    limit: int | None = None
    sample: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ConfigError(f"unknown record format {self.format!r}; expected one of {', '.join(FORMATS)}")
        if self.skip < 0:
            raise ConfigError(f"skip is {self.skip}; expected 0 or more")
        for name, value in (("limit", self.limit), ("sample", self.sample)):
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; expected at least 1, or None for all")


class RecordList(list[Record]):
    """Records that know their source.

    Attributes:
        path: as given.
        sha256: of the file's bytes; None for a Hugging Face dataset.
    """

    def __init__(self, records: Iterable[Record], *, path: str, sha256: str | None) -> None:
        super().__init__(records)
        self.path, self.sha256 = path, sha256


def read_records(source: RecordSource | Path | str) -> RecordList:
    """Read what a source asks for.

    Raises:
        ConfigError: missing, empty or unreadable file, damaged line (named as file:line), duplicate csv header,
            a JSON line that is no object, nothing left after skip.
        MissingExtraError: a Hugging Face dataset without the package `datasets`.
    """
    if not isinstance(source, RecordSource):
        source = RecordSource(path=source)
    form = _detected(source)
    found = _records(source, form)
    first = next(found, None)
    if first is None:
        raise ConfigError(f"{source.path} is empty; expected at least one record (read as {form})")
    end = None if source.limit is None else source.skip + source.limit
    chosen = _sampled(islice(chain([first], found), source.skip, end), source.sample, source.seed)
    if not chosen:
        raise ConfigError(f"{source.path} has no more than {source.skip} records, all skipped; lower skip")
    sha256 = None if form == "hf" else sha256_file(Path(source.path).expanduser())
    return RecordList(chosen, path=str(source.path), sha256=sha256)


def _detected(source: RecordSource) -> Format:
    path = Path(source.path).expanduser()
    if source.format == "hf":
        return "hf"
    if not path.exists():
        raise ConfigError(
            f"record file {path} does not exist; check the path (a data set of the hub is named as `dataset` in a "
            'config, and with format="hf" in Python)'
        )
    form: Format = source.format
    if form == "auto":
        form = "hf" if path.is_dir() else _ENDINGS.get(path.suffix.lower(), "auto")
    if form == "auto":
        expected = ", ".join(FORMATS[1:])
        raise ConfigError(f"the format of {path} cannot be told from its ending; set format to one of {expected}")
    if form != "hf" and not path.is_file():
        raise ConfigError(f"{path} is a folder; format {form} needs a file")
    return form


def _records(source: RecordSource, form: Format) -> Iterator[Record]:
    if form == "hf":
        rows = record_formats.read_hf(
            str(source.path), split=source.split, subset=source.subset, revision=source.revision
        )
    else:
        path = Path(source.path).expanduser()
        if form == "jsonl":
            rows = record_formats.read_jsonl(path)
        else:
            delimiter = "," if form == "csv" else "\t"
            rows = record_formats.read_csv(path, delimiter=delimiter, quoted=form != "tsv_unquoted")
    return (Record(*row) for row in rows)


def _sampled(records: Iterator[Record], size: int | None, seed: int) -> list[Record]:
    """Reservoir sampling (Vitter's algorithm R): memory for `size` records only, whatever streams by."""
    if size is None:
        return list(records)
    rng = random.Random(seed)
    kept = list(enumerate(islice(records, size)))
    for i, record in enumerate(records, start=size):
        place = rng.randrange(i + 1)
        if place < size:
            kept[place] = (i, record)
    return [record for _, record in sorted(kept, key=lambda pair: pair[0])]
