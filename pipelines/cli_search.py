"""The command that searches: `search-prompts`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli_jobs import load
from pipelines.cli_options import ConfigArg, JsonOpt, QuietOpt, SetOpt
from pipelines.console import hush, logger, results


def search_prompts(
    config: ConfigArg,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where scores and best.yaml go.")],
    restart: Annotated[bool, typer.Option("--restart", help="Forget what DIR holds and begin again.")] = False,
    as_json: JsonOpt = False,
    set_: SetOpt = None,
    quiet: QuietOpt = False,
) -> None:
    """Find the template and words that get the most dev records right. Goes on where an interrupted search stopped."""
    loaded = load(config, set_)
    hush(quiet)
    from pipelines.errors import ConfigError

    if loaded.kind != "prompt_search":
        raise ConfigError(f"prompts are searched by a config of kind prompt_search; {config} is {loaded.kind}")
    from pipelines import show
    from pipelines.prompt_search import search_prompts as run
    from pipelines.prompt_search_results import candidates_table

    found = run(loaded, out, restart=restart, log=logger(quiet))
    show.print_json(results(), found) if as_json else results().print(candidates_table(found, title=str(out)))
