"""The commands that train and exchange what is trained: `train`, `pretrain`, `export`, `import`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.cli_jobs import load, show_figures
from pipelines.cli_options import ConfigArg, DryOpt, JsonOpt, QuietOpt, RestartOpt, SetOpt, WorkspaceOpt
from pipelines.console import hush, logger, results


class PeftFormat(StrEnum):
    """Formats of other libraries."""

    peft = "peft"


FormatOpt = Annotated[PeftFormat, typer.Option("--format", help="Whose format.")]


def train(
    config: ConfigArg,
    restart: RestartOpt = False,
    dry_run: DryOpt = False,
    as_json: JsonOpt = False,
    set_: SetOpt = None,
    workspace: WorkspaceOpt = None,
    quiet: QuietOpt = False,
) -> None:
    """Train the config's prompts, connector or re-ranker. Goes on where an interrupted run stopped."""
    loaded = load(config, set_, workspace)
    hush(quiet)
    if dry_run:
        _show_plan(loaded, as_json)
        return
    from pipelines.training import train as run

    summary = run(loaded, restart=restart, log=logger(quiet))
    show_figures(summary, "trained", as_json=as_json)


def pretrain(
    config: ConfigArg,
    restart: RestartOpt = False,
    dry_run: DryOpt = False,
    as_json: JsonOpt = False,
    set_: SetOpt = None,
    workspace: WorkspaceOpt = None,
    quiet: QuietOpt = False,
) -> None:
    """Pretrain the config's connector or prompt on plain text. Goes on where an interrupted run stopped."""
    loaded = load(config, set_, workspace)
    hush(quiet)
    if dry_run:
        _show_plan(loaded, as_json, pretrain=True)
        return
    from pipelines.training import pretrain as run

    summary = run(loaded, restart=restart, log=logger(quiet))
    show_figures(summary, "pretrained", as_json=as_json)


def export(
    run: Annotated[
        str,
        typer.Argument(metavar="RUN", help="The config that trained it, or a trained module's folder with its model."),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="A new folder; else beside the module, as NAME.peft.")
    ] = None,
    format_: FormatOpt = PeftFormat.peft,
    lm: Annotated[
        str | None, typer.Option("--lm", metavar="MODEL", help="Of a folder: the LM it is for, as saved.")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option("--encoder", metavar="MODEL", help="Of a folder: the encoder it is for, as saved.")
    ] = None,
    as_json: JsonOpt = False,
    set_: SetOpt = None,
    workspace: WorkspaceOpt = None,
    quiet: QuietOpt = False,
) -> None:
    """Write what has been trained as another library reads it."""
    from pipelines.errors import ConfigError
    from pipelines.peft_exchange import export_module, export_peft

    hush(quiet)
    if Path(run).is_dir():
        if set_ or workspace is not None:
            raise ConfigError(f"{run} is a folder; --set and --workspace are for a config")
        done = export_module(run, out, lm=lm, encoder=encoder, log=logger(quiet))
    elif lm is not None or encoder is not None:
        raise ConfigError("--lm and --encoder are for a module's folder; a config names its own model")
    else:
        done = export_peft(load(run, set_, workspace), out, log=logger(quiet))
    show_figures(done, "exported", as_json=as_json)


def import_(
    config: ConfigArg,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What the other library wrote.")],
    format_: FormatOpt = PeftFormat.peft,
    restart: Annotated[bool, typer.Option("--restart", help="Replace what has been trained or imported.")] = False,
    as_json: JsonOpt = False,
    set_: SetOpt = None,
    workspace: WorkspaceOpt = None,
    quiet: QuietOpt = False,
) -> None:
    """Read what another library has trained into the workspace, as what the config would have trained."""
    loaded = load(config, set_, workspace)
    hush(quiet)
    from pipelines.peft_exchange import import_peft

    done = import_peft(loaded, folder, restart=restart, log=logger(quiet))
    show_figures(done, "imported", as_json=as_json)


def _show_plan(config: Any, as_json: bool, *, pretrain: bool = False) -> None:
    from pipelines.dry_run import describe, plan_table
    from pipelines.show import print_json

    plan = describe(config, pretrain=pretrain)
    print_json(results(), plan) if as_json else results().print(plan_table(plan))
