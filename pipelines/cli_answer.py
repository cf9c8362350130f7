"""The commands that serve: `index`, `ask`, and `demo`, which does the whole job."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from pipelines.cli_jobs import load, opened
from pipelines.cli_options import ConfigArg, ImportOpt, JsonOpt, QuietOpt, SetOpt, WorkspaceOpt
from pipelines.console import hush, logger, results

ASK_CHUNK = 32


def index(
    config: ConfigArg,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build again what is there already.")] = False,
    set_: SetOpt = None,
    workspace: WorkspaceOpt = None,
    quiet: QuietOpt = False,
) -> None:
    """Build the indexes that the config's retriever needs. Goes on where an interrupted build stopped."""
    loaded = load(config, set_, workspace)
    hush(quiet)
    from pipelines.indexing import build_indexes

    for folder in build_indexes(loaded, rebuild=rebuild, log=logger(quiet)):
        results().print(str(folder), soft_wrap=True, markup=False, highlight=False)


def ask(
    config: ConfigArg,
    question: Annotated[str, typer.Argument(help='The question; "-" reads questions from standard input, one a line.')],
    as_json: JsonOpt = False,
    k: Annotated[int, typer.Option("--k", min=0, help="Sources to show.")] = 5,
    set_: SetOpt = None,
    workspace: WorkspaceOpt = None,
    allow_import: ImportOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Answer a question, with its sources. A question has at most 100,000 characters."""
    from pipelines import show
    from pipelines.stages import check_questions

    questions = _questions_from(sys.stdin) if question == "-" else iter([question])
    with opened(config, set_, workspace, allow_import, quiet) as pipeline:
        while chunk := list(itertools.islice(questions, 1 if sys.stdin.isatty() else ASK_CHUNK)):
            check_questions(chunk)
            pipeline.warmup()  # so that a question's timings are its own
            for answer in pipeline.answer(chunk):
                if as_json:
                    show.print_json(results(), show.answer_record(answer, k))
                    continue
                if question == "-":
                    results().print(answer.question, style="bold", markup=False, highlight=False)
                results().print(show.answer_text(answer, k))


def demo(
    config: Annotated[str, typer.Argument(metavar="[CONFIG]")] = "demo.yaml",
    set_: SetOpt = None,
    workspace: WorkspaceOpt = None,
    quiet: QuietOpt = False,
) -> None:
    """The whole job on the embedded default: index, train, evaluate, answer. A second run reuses everything."""
    loaded = load(config, set_, workspace)
    hush(quiet)
    from pipelines.demo import run_demo

    run_demo(loaded, log=logger(quiet))


def _questions_from(lines: Any) -> Iterator[str]:
    """Questions of standard input, blank lines left out."""
    from pipelines.errors import ConfigError

    some = False
    try:
        for line in lines:
            if line.strip():
                some = True
                yield line.strip()
    except UnicodeDecodeError as error:
        raise ConfigError(f"standard input is not UTF-8 text: {error.reason} at byte {error.start}") from error
    if not some:
        raise ConfigError("there is no question on standard input; write one a line")
