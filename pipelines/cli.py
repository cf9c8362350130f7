"""The command `frozenlm`. Each command loads what it needs when it runs, so that `frozenlm --help` answers at once.

Results go to standard output, everything else to standard error. Exit codes: 0 done, 1 failed, 2 wrong usage or config,
70 a bug of ours, 130 interrupted. An expected error is one message; `--debug` adds the traceback.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from pipelines import cli_answer, cli_check, cli_measure, cli_search, cli_train
from pipelines.console import INTERRUPTED, interrupted, report

app = typer.Typer(
    name="frozenlm",
    help="Many tasks from one frozen language model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(help="Check config files and print their schema.", no_args_is_help=True)
plugins_app = typer.Typer(help="Retrievers that other packages bring.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(plugins_app, name="plugins")


@app.callback()
def _common(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere in the command.")] = False,
) -> None:
    """Many tasks from one frozen language model."""


app.command()(cli_answer.index)
app.command()(cli_answer.ask)
app.command()(cli_train.train)
app.command()(cli_train.pretrain)
app.command()(cli_measure.evaluate)
app.command()(cli_measure.compare)
app.command("compare-methods")(cli_measure.compare_methods)
app.command("search-prompts")(cli_search.search_prompts)
app.command()(cli_measure.prompts)
app.command()(cli_train.export)
app.command("import")(cli_train.import_)
app.command()(cli_measure.cost)
app.command()(cli_answer.demo)
app.command()(cli_check.verify)
config_app.command("check")(cli_check.config_check)
config_app.command("schema")(cli_check.config_schema)
plugins_app.command("list")(cli_check.plugins_list)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. The console entry point."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = words[: words.index("--")] if "--" in words else words
    debug = "--debug" in options
    words = [word for word in options if word != "--debug"] + words[len(options) :]
    try:
        app(words, prog_name="frozenlm")
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        return interrupted() if code == INTERRUPTED else code
    except KeyboardInterrupt:
        return interrupted()
    except Exception as error:
        if debug:
            traceback.print_exc()
        return report(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
