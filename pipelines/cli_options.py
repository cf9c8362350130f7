"""The arguments and options that several commands share, so that they mean the same everywhere."""

from __future__ import annotations

from typing import Annotated

import typer

ConfigArg = Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a packaged config.")]
SetOpt = Annotated[
    list[str] | None, typer.Option("--set", metavar="a.b=c", help="Override one setting; may be given several times.")
]
WorkspaceOpt = Annotated[
    str | None, typer.Option("--workspace", metavar="DIR", help="Where indexes, modules and caches lie.")
]
ImportOpt = Annotated[
    bool,
    typer.Option("--allow-import", help="Let the config name a retriever as module:Class; also looks in this folder."),
]
QuietOpt = Annotated[bool, typer.Option("--quiet", "-q", help="Only results and errors.")]
DryOpt = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be trained, its memory and FLOPs; loads no weights.")
]
JsonOpt = Annotated[bool, typer.Option("--json", help="Print JSON, one line a result.")]
RestartOpt = Annotated[bool, typer.Option("--restart", help="Forget an earlier run and begin again.")]
