"""What commands share: from their arguments to a config or a pipeline, and how figures are printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.console import hush, logger, results


def load(config: str, settings: list[str] | None, workspace: str | None = None) -> Any:
    """The config of a command, with `--set` and `--workspace`."""
    from pipelines.loader import load_config

    return load_config(config, overrides=_overrides(settings, workspace))


@contextmanager
def opened(
    config: str, settings: list[str] | None, workspace: str | None, allow_import: bool, quiet: bool
) -> Iterator[Any]:
    """The pipeline of a command, closed when it is done."""
    loaded = load(config, settings, workspace)
    hush(quiet)
    if allow_import:
        sys.path.append(str(Path.cwd()))  # an installed command does not see the current folder by itself
    from pipelines.pipeline import Pipeline

    with Pipeline.from_config(loaded, allow_import=allow_import, log=logger(quiet)) as pipeline:
        yield pipeline


def show_figures(found: dict[str, Any], title: str, *, as_json: bool = False) -> None:
    """Print what a command has found: a table, or with `--json` one line."""
    from pipelines import show

    show.print_json(results(), found) if as_json else results().print(show.figures(found, title))


def _overrides(settings: list[str] | None, workspace: str | None) -> list[str]:
    # As JSON, which is YAML too: a folder called 7 or "a: b" stays text.
    return [*(settings or []), *([f"workspace={json.dumps(workspace)}"] if workspace is not None else [])]
