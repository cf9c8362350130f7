"""Plain text for pretraining, as configs name it: files and corpora, one text after the other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from pipelines.config_text import PlainText
from pipelines.corpora import passages
from pipelines.delimiters import split_template
from pipelines.errors import ConfigError
from pipelines.filling import fill


def held_out(count: int, dev: int) -> tuple[list[int], list[int]]:
    """Places to train on, and `dev` places held out, spread evenly over all of them."""
    places = [place * count // dev for place in range(dev)]
    chosen = set(places)
    return [place for place in range(count) if place not in chosen], places


def texts(block: PlainText) -> Iterator[str]:
    """The texts of a pretraining block, one after the other.

    Raises:
        ConfigError: a file that is missing, is not UTF-8, or is damaged.
        CorpusError: the corpus is missing or malformed.
    """
    for path in block.files:
        try:
            yield from _json_texts(path) if path.suffix == ".jsonl" else _plain_texts(path, block.parted_by)
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
        except OSError as error:
            raise ConfigError(f"pretraining text {path} cannot be read: {error}") from error
    if block.corpus is not None:
        template = split_template(block.passage, frozenset({"title", "text"}))
        for passage in passages(block.corpus):
            yield fill(template, {"title": passage.title, "text": passage.text})


def _plain_texts(path: Path, parted_by: str) -> Iterator[str]:
    with path.open(encoding="utf-8-sig") as stream:
        if parted_by == "nothing":
            yield stream.read().strip()
            return
        lines: list[str] = []
        for line in stream:
            if line.strip():
                lines.append(line)
            if lines and (parted_by == "line" or not line.strip()):
                yield "".join(lines).strip()
                lines = []
        if lines:
            yield "".join(lines).strip()


def _json_texts(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                text = json.loads(line)["text"]
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(f"{path}:{number}: no JSON object with the key text ({error!r})") from error
            if not isinstance(text, str):
                raise ConfigError(f"{path}:{number}: text is {type(text).__name__}, expected a string")
            yield text.strip()
