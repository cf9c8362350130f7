"""The lines of results of a comparison, one a run: read and checked, put in order, written by one process a file."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipelines.config import MethodComparison
from pipelines.config_comparison import ZERO_SHOT
from pipelines.errors import ConfigError

Result = Mapping[str, Any]
_Number = Annotated[int, Field(ge=0)]


class _Entry(BaseModel):
    """What one evaluation of a training found."""

    model_config = ConfigDict(strict=True)

    step: float
    score: float | None = None


class _Line(BaseModel):
    """What is read of a line, which may say more. What has a default is not said of every run, or not by lines of
    earlier versions."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    name: str
    method: str
    kind: str
    task: str
    seed: int
    score: float
    ci95: tuple[float, float]
    trained_parameters: _Number
    kept_parameters: _Number | None = None
    lm_parameters: Annotated[int, Field(gt=0)]
    lm_fingerprint: str | None = None
    learning_rate: float | None = None
    seconds_per_step: float | None = None
    saved_bytes: _Number | None = None
    history: list[_Entry] = []
    transfer: dict[str, float] = {}

    @model_validator(mode="after")
    def _says_how_it_was_trained(self) -> Self:
        if self.trained_parameters and self.learning_rate is None:
            raise ValueError("it was trained, and has no learning_rate")
        return self


def results_file(out: Path, part: tuple[int, int]) -> Path:
    """Where the lines of part (i, n) go."""
    index, of = part
    return out / ("results.jsonl" if of == 1 else f"results-{index}-of-{of}.jsonl")


def read_results(out: Path | str) -> list[Result]:
    """The lines of the folder's results; a last line without its line break was torn by a kill and is left out.

    Raises:
        ConfigError: a damaged line.
    """
    found: dict[str, Result] = {}
    for path in sorted(Path(out).glob("results*.jsonl")):
        for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
            try:
                name = _Line.model_validate_json(line).name
                found[name] = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ConfigError(
                    f"{path}:{number}: damaged line: {_words(error).strip()}; remove it, and its run is made again"
                ) from error
    return list(found.values())


def in_order(results: Sequence[Result], config: MethodComparison) -> list[Result]:
    """The results by method and by task as the config names them, and by seed, whichever part wrote them first.

    The LM as it is comes first, what the config does not name (any more) last.
    """
    methods = {name: place for place, name in enumerate([ZERO_SHOT, *(method.name for method in config.methods)])}
    tasks = {task.name: place for place, task in enumerate(config.tasks)}

    def place(result: Result) -> tuple[int, int, int]:
        method = methods.get(result["method"], len(methods))
        return method, tasks.get(result["task"], len(tasks)), result["seed"]

    return sorted(results, key=place)


def append_result(path: Path, result: Mapping[str, Any]) -> None:
    """Add a line, in the place of one that was torn."""
    whole = path.read_bytes() if path.exists() else b""
    with path.open("ab") as stream:
        stream.truncate(whole.rfind(b"\n") + 1)
        stream.write(json.dumps(result).encode() + b"\n")


@contextmanager
def alone(file: Path) -> Iterator[None]:
    """Keep other processes from the same part of a folder, and from sharing its work in another number of parts.

    file: of the part, `results_file`

    Raises:
        ConfigError: another process is at it.
    """
    with _locked_folder(file.parent):  # while we look, so that of two that start together the second sees the first
        for other in sorted(file.parent.glob("results*.jsonl")):
            if _parts(other) != _parts(file) and _is_held(other):
                raise ConfigError(
                    f"another process shares the work in {file.parent} as I/{_parts(other)} (it writes {other.name}), "
                    f"and this one would as I/{_parts(file)}; give --part with the same number of parts, or wait for it"
                )
        stream = file.open("ab")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.close()
            raise ConfigError(
                f"another process runs this part: it writes {file}; wait for it. Processes that share the work are "
                "each started with a part of their own, --part 0/2 and --part 1/2"
            ) from None
    with stream:
        yield


@contextmanager
def _locked_folder(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_held(file: Path) -> bool:
    with file.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _parts(file: Path) -> str:
    """The N of a file's name, as `results_file` makes it."""
    return file.stem.partition("-of-")[2] or "1"


def _words(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return type(error).__name__
    first = error.errors(include_url=False)[0]
    return ".".join(map(str, first["loc"])) + f" {first['msg']}"
