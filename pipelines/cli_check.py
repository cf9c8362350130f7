"""The commands that look without running: `verify`, `config check`, `config schema`, `plugins list`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli_jobs import load
from pipelines.cli_options import SetOpt
from pipelines.console import WRONG_USE, results, show_error


def verify(
    path: Annotated[Path, typer.Argument(help="An index, a module, an evaluation, a workspace, or one file.")],
) -> None:
    """Check that nothing in a folder that frozenlm wrote is damaged."""
    from pipelines.verify import verify as check

    damaged = checked = 0
    for finding in check(path):
        checked += 1
        damaged += finding.problem is not None
        state = "OK" if finding.problem is None else f"DAMAGED: {finding.problem}"
        style = "green" if finding.problem is None else "red"
        line = f"{finding.path}  ({finding.kind})  {state}"
        results().print(line, style=style, soft_wrap=True, markup=False, highlight=False)
    results().print(f"{checked} checked, {damaged} damaged", highlight=False)
    if damaged:
        raise typer.Exit(1)


def config_check(
    files: Annotated[list[str], typer.Argument(metavar="FILE...")],
    set_: SetOpt = None,
) -> None:
    """Say OK, or every fault of each file, with its line."""
    from pipelines.errors import ConfigError

    faulty = False
    for name in files:
        try:
            load(name, set_)
        except ConfigError as error:
            faulty = True
            show_error(str(error))
        else:
            results().print(f"{name}: OK", soft_wrap=True, markup=False, highlight=False)
    if faulty:
        raise typer.Exit(WRONG_USE)


def config_schema() -> None:
    """Print the JSON Schema of config files, for editors."""
    sys.stdout.write(schema_text())


def plugins_list() -> None:
    """Built-in retrievers and installed plug-ins, and whether each one loads."""
    from pipelines import plugins, show

    results().print(show.plugins(plugins.BUILT_IN_RETRIEVERS, plugins.installed_plugins()))


def schema_text() -> str:
    """What `frozenlm config schema` prints and `configs/schema.json` holds."""
    from pipelines.config import json_schema

    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"
