"""Corpus files to a stream of passages: psgs_w100.tsv, BEIR folders, plain jsonl, Hugging Face datasets.

Every reader is a generator; memory does not grow with the corpus but for 8 bytes a passage, the hashes that duplicate
ids are found with. Two equal hashes are confirmed by a second reading before anything is called a duplicate, so that
the error can name both places. An id seen shortly before is reported at once, an older one within 65,536 passages.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from retrievers.errors import CorpusError, MissingExtraError
from retrievers.types import Passage

Format = Literal["auto", "psgs_w100", "beir", "jsonl", "hf"]
FORMATS = ("auto", "psgs_w100", "beir", "jsonl", "hf")
Record = tuple[str, Passage]

_HF_MARKS = ("dataset_info.json", "dataset_dict.json", "state.json")
_PSGS_HEADER = ["id", "text", "title"]
_RUN = 65_536
_FIELD_LIMIT = 2**31 - 1


def read_corpus(
    path: Path | str,
    format: Format = "auto",
    *,
    limit: int | None = None,
    split: str = "train",
    name: str | None = None,
    revision: str | None = None,
) -> Iterator[Passage]:
    """Stream the passages of a corpus. The path and the format are checked now, the contents as they are read.

    Args:
        path: a `.tsv` or `.jsonl` file (`.gz` allowed), a BEIR folder with `corpus.jsonl`, a dataset saved with
            `save_to_disk`, or, with `format="hf"`, a dataset's name on the hub.
        format: `psgs_w100`: tab-separated, header `id text title`, csv quoting. `beir`: `_id`, `title`, `text`.
            `jsonl`: `id` or `_id`, `text` or `contents`, `title` optional. `hf`: columns named as in jsonl. `auto`:
            told by name and content. A mapping under `metadata` or `meta` becomes `Passage.meta`; other fields are
            ignored.
        limit: read at most so many passages.
        split, name, revision: of a Hugging Face dataset.

    Raises:
        CorpusError: missing file, unknown format, malformed line (named as file:line), missing field, duplicate id,
            or no
            passage at all.
        MissingExtraError: `hf` without the package `datasets`.
    """
    chosen = detect_format(path) if format == "auto" else format
    if chosen not in FORMATS:
        raise CorpusError(f"unknown corpus format {format!r}; expected one of {', '.join(FORMATS)}")
    if limit is not None and limit < 1:
        raise CorpusError(f"limit is {limit}, expected at least 1 or None")
    if chosen == "hf":

        def records() -> Iterator[Record]:
            return _hf_records(str(path), split, name, revision)
    else:
        file = _corpus_file(Path(path), chosen)

        def records() -> Iterator[Record]:
            return _psgs_records(file) if chosen == "psgs_w100" else _jsonl_records(file)

    return islice(_checked(records, str(path)), limit)


def detect_format(path: Path | str) -> Literal["psgs_w100", "beir", "jsonl", "hf"]:
    """Tell a corpus' format by name and content.

    Raises:
        CorpusError: nothing there, or nothing that we know.
    """
    place = Path(path)
    if not place.exists():
        raise CorpusError(f"there is no corpus at {place}; check the path (a hub dataset needs format: hf)")
    if place.is_dir():
        if any((place / f"corpus.jsonl{end}").is_file() for end in ("", ".gz")):
            return "beir"
        if any((place / mark).is_file() for mark in _HF_MARKS):
            return "hf"
        raise CorpusError(f"{place} is a folder without corpus.jsonl (BEIR) and without a saved dataset; name the file")
    with _opened(place) as stream:
        try:
            first = stream.readline(2**20)
        except (OSError, EOFError, zlib.error) as error:
            raise CorpusError(f"{place} cannot be read: {error}") from error
    if first.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
        return "beir" if b'"_id"' in first else "jsonl"
    if place.name.removesuffix(".gz").endswith((".tsv", ".csv")) or b"\t" in first:
        return "psgs_w100"
    if not first:
        raise CorpusError(f"the corpus {place} is empty")
    raise CorpusError(f"cannot tell the format of {place}; pass format as one of {', '.join(FORMATS[1:])}")


def estimate_passages(path: Path | str, format: Format = "auto") -> int | None:
    """About how many passages a corpus has, from its size and the length of its first lines; None where nobody can
    tell."""
    chosen = detect_format(path) if format == "auto" else format
    if chosen == "hf":
        return None
    file = _corpus_file(Path(path), chosen)
    with _opened(file) as stream:
        lengths = [len(line) for line in islice(stream, 1000)]
    packed = 3.0 if file.suffix == ".gz" else 1.0
    return max(1, round(file.stat().st_size * packed * len(lengths) / sum(lengths))) if lengths else 0


def _corpus_file(path: Path, format: str) -> Path:
    if path.is_dir():
        for end in ("", ".gz"):
            if (path / f"corpus.jsonl{end}").is_file() and format in ("beir", "jsonl"):
                return path / f"corpus.jsonl{end}"
        raise CorpusError(f"{path} is a folder; format {format} needs a file in it")
    if not path.is_file():
        raise CorpusError(f"there is no corpus file {path}; check the path")
    return path


def _opened(path: Path) -> IO[bytes]:
    # Both give bytes, so that a line that is not UTF-8 can be named by its number.
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a UTF-8 file, newline kept, byte-order mark dropped."""
    number = 0
    try:
        with _opened(path) as stream:
            for number, line in enumerate(stream, start=1):
                yield number, line.removeprefix(b"\xef\xbb\xbf").decode() if number == 1 else line.decode()
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{path}:{number}: not UTF-8 ({error.reason} at byte {error.start}); convert the file"
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise CorpusError(f"{path}:{number + 1}: cannot be read any further: {error}") from error


def _psgs_records(path: Path) -> Iterator[Record]:
    csv.field_size_limit(max(csv.field_size_limit(), _FIELD_LIMIT))
    rows = csv.reader((line for _, line in _text_lines(path)), delimiter="\t", quotechar='"', strict=True)
    try:
        header = next(rows, None)
        if header is None:
            return
        if header != _PSGS_HEADER:
            raise CorpusError(f"{path}:1: header is {header[:5]!r}, expected {_PSGS_HEADER!r}")
        end = rows.line_num
        for row in rows:
            start, end = end + 1, rows.line_num
            if not row:
                continue
            if len(row) != 3:
                raise CorpusError(f"{path}:{start}: {len(row)} fields, expected 3 (id, text, title) separated by tabs")
            if not row[0]:
                raise CorpusError(f"{path}:{start}: the id is empty")
            yield f"{path}:{start}", Passage(row[0], row[1], row[2])
    except csv.Error as error:
        raise CorpusError(f"{path}:{rows.line_num}: malformed line: {error}; check the quotes") from error


def _jsonl_records(path: Path) -> Iterator[Record]:
    for number, line in _text_lines(path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CorpusError(f"{where}: malformed line: {error}") from error
        if not isinstance(fields, dict):
            raise CorpusError(f"{where}: a JSON {type(fields).__name__}, expected an object with an id and a text")
        yield where, _from_fields(fields, where)


def _hf_records(path: str, split: str, name: str | None, revision: str | None) -> Iterator[Record]:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError('reading Hugging Face datasets needs: pip install "frozenlm[hf]"') from error
    try:
        if Path(path).is_dir():
            data = datasets.load_from_disk(path)
            if isinstance(data, datasets.DatasetDict):
                data = data[split]
        else:
            data = datasets.load_dataset(path, name, split=split, revision=revision, streaming=True)
    except KeyError:
        raise CorpusError(f"dataset {path} has no split {split!r}; it has {', '.join(data)}") from None
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise CorpusError(f"dataset {path} (split {split!r}) cannot be loaded: {error}") from error
    for number, fields in enumerate(data):
        where = f"{path}[{split}] row {number}"
        yield where, _from_fields(fields, where)


def _from_fields(fields: Mapping[str, Any], where: str) -> Passage:
    key = fields.get("_id", fields.get("id"))
    text = fields.get("text", fields.get("contents"))
    title = fields.get("title")
    meta = fields.get("metadata", fields.get("meta"))
    if isinstance(key, int) and not isinstance(key, bool):
        key = str(key)
    if not isinstance(key, str) or not key:
        raise CorpusError(f"{where}: id is {key!r}, expected a text or a number under `_id` or `id`")
    if not isinstance(text, str):
        raise CorpusError(f"{where}: text is {text!r:.60}, expected a text under `text` or `contents`")
    if title is not None and not isinstance(title, str):
        raise CorpusError(f"{where}: title is {title!r:.60}, expected a text")
    return Passage(key, text, title or "", meta if isinstance(meta, dict) else {})


def _checked(records: Callable[[], Iterator[Record]], source: str) -> Iterator[Passage]:
    """The passages of `records`, with an error for a duplicate id and for an empty corpus."""
    seen = _SeenIds()
    empty = True
    for _, passage in records():
        empty = False
        if seen.add(passage.id):
            _confirm(records(), seen.suspects)
        yield passage
    if empty:
        raise CorpusError(f"the corpus {source} is empty: not one passage was found")
    if seen.flush():
        _confirm(records(), seen.suspects)


def _confirm(records: Iterator[Record], suspects: set[int]) -> None:
    """Read again and raise if one of the suspected hashes belongs to an id that really occurs twice."""
    places: dict[str, str] = {}
    for where, passage in records:
        if _hash(passage.id) in suspects:
            if passage.id in places:
                first = places[passage.id]
                raise CorpusError(
                    f"{where}: passage id {passage.id!r} occurs twice, first at {first}; ids must be unique"
                )
            places[passage.id] = where
    suspects.clear()


def _hash(passage_id: str) -> int:
    digest = blake2b(passage_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


class _SeenIds:
    """Hashes of ids in sorted runs that are merged when they are of like size: 8 bytes an id, few look-ups each."""

    def __init__(self) -> None:
        self.suspects: set[int] = set()
        self._fresh: set[int] = set()
        self._runs: list[np.ndarray] = []

    def add(self, passage_id: str) -> bool:
        """Remember an id; True if one with the same hash may have been seen before."""
        value = _hash(passage_id)
        if value in self._fresh:
            self.suspects.add(value)
            return True
        self._fresh.add(value)
        return len(self._fresh) >= _RUN and self.flush()

    def flush(self) -> bool:
        """Compare the fresh hashes with all earlier ones; True if any is among them."""
        fresh = np.fromiter(self._fresh, dtype=np.uint64, count=len(self._fresh))
        fresh.sort()
        self._fresh.clear()
        for run in self._runs:
            at = np.searchsorted(run, fresh)
            at[at == len(run)] = 0
            self.suspects.update(fresh[run[at] == fresh].tolist())
        self._runs.append(fresh)
        while len(self._runs) > 1 and len(self._runs[-2]) <= 2 * len(self._runs[-1]):
            last = self._runs.pop()
            self._runs[-1] = np.sort(np.concatenate([self._runs[-1], last]), kind="stable")
        return bool(self.suspects)
