"""The command `frozenlm`. Each command loads what it needs when it runs, so that `frozenlm --help` answers at once.

Results go to standard output, everything else to standard error. Exit codes: 0 done, 1 failed, 2 wrong usage or config,
70 a bug of ours, 130 interrupted. An expected error is one message; `--debug` adds the traceback.
"""

from __future__ import annotations

import itertools
import json
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.console import INTERRUPTED, WRONG_USE, hush, interrupted, logger, report, results, show_error

ASK_CHUNK = 32

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


@app.callback()
def _common(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere in the command.")] = False,
) -> None:
    """Many tasks from one frozen language model."""


@app.command()
def index(
    config: ConfigArg,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build again what is there already.")] = False,
    set_: SetOpt = None,
    workspace: WorkspaceOpt = None,
    quiet: QuietOpt = False,
) -> None:
    """Build the indexes that the config's retriever needs. Goes on where an interrupted build stopped."""
    loaded = _load(config, set_, workspace)
    hush(quiet)
    from pipelines.indexing import build_indexes

    for folder in build_indexes(loaded, rebuild=rebuild, log=logger(quiet)):
        results().print(str(folder), soft_wrap=True, markup=False, highlight=False)


@app.command()
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
    with _pipeline(config, set_, workspace, allow_import, quiet) as pipeline:
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


@app.command()
def train(
    config: ConfigArg,
    restart: Annotated[bool, typer.Option("--restart", help="Forget an earlier run and begin again.")] = False,
    dry_run: DryOpt = False,
    as_json: JsonOpt = False,
    set_: SetOpt = None,
    workspace: WorkspaceOpt = None,
    quiet: QuietOpt = False,
) -> None:
    """Train the config's prompts, connector or re-ranker. Goes on where an interrupted run stopped."""
    loaded = _load(config, set_, workspace)
    hush(quiet)
    if dry_run:
        _show_plan(loaded, as_json)
        return
    from pipelines import show
    from pipelines.training import train as run

    summary = run(loaded, restart=restart, log=logger(quiet))
    show.print_json(results(), summary) if as_json else results().print(show.figures(summary, "trained"))


@app.command()
def pretrain(
    config: ConfigArg,
    restart: Annotated[bool, typer.Option("--restart", help="Forget an earlier run and begin again.")] = False,
    dry_run: DryOpt = False,
    as_json: JsonOpt = False,
    set_: SetOpt = None,
    workspace: WorkspaceOpt = None,
    quiet: QuietOpt = False,
) -> None:
    """Pretrain the config's connector or prompt on plain text. Goes on where an interrupted run stopped."""
    loaded = _load(config, set_, workspace)
    hush(quiet)
    if dry_run:
        _show_plan(loaded, as_json, pretrain=True)
        return
    from pipelines import show
    from pipelines.training import pretrain as run

    summary = run(loaded, restart=restart, log=logger(quiet))
    show.print_json(results(), summary) if as_json else results().print(show.figures(summary, "pretrained"))


@app.command()
def evaluate(
    config: ConfigArg,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the result files go.")],
    questions: Annotated[
        Path | None, typer.Option("--questions", metavar="FILE", help="Else the config's own.")
    ] = None,
    question_format: Annotated[str, typer.Option("--format", help="Format of the questions file.")] = "auto",
    qrels: Annotated[
        Path | None,
        typer.Option("--qrels", metavar="FILE", help="Gold passages of the questions, for nDCG and --oracle."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Only the first N questions (rows of each task).")
    ] = None,
    oracle: Annotated[bool, typer.Option("--oracle", help="Read the gold passages instead of retrieving.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Forget what DIR holds and begin again.")] = False,
    as_json: JsonOpt = False,
    set_: SetOpt = None,
    workspace: WorkspaceOpt = None,
    allow_import: ImportOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Answer questions, or the config's tasks, and measure. Goes on where an interrupted evaluation stopped."""
    from pipelines import show
    from pipelines.errors import ConfigError

    with _pipeline(config, set_, workspace, allow_import, quiet) as pipeline:
        if pipeline.config.kind in ("multitask", "classification", "prompting"):
            if questions is not None or qrels is not None or oracle:
                raise ConfigError(
                    "--questions, --qrels and --oracle are for questions; this config names its own tasks"
                )
            from pipelines.evaluation.classification import evaluate_classification
            from pipelines.evaluation.multitask import evaluate_multitask
            from pipelines.evaluation.prompting import evaluate_prompting
            from pipelines.evaluation.task_table import task_table

            measured: dict[str, Any] = {"multitask": evaluate_multitask, "classification": evaluate_classification}
            measured["prompting"] = evaluate_prompting
            run_of = measured[pipeline.config.kind]
            found = run_of(pipeline, out, limit=limit, restart=restart, log=logger(quiet), progress=not quiet)
            show.print_json(results(), found) if as_json else results().print(task_table(found, title=str(out)))
            return
        asked = _evaluation_questions(pipeline.config, questions, question_format, qrels, limit)
        from pipelines.evaluation.run import evaluate as run

        block = pipeline.config.evaluation
        metrics = run(
            pipeline, asked, out, recall_at=block.recall_at, matcher=block.matcher, chunk=block.chunk, oracle=oracle,
            restart=restart, log=logger(quiet), progress=not quiet,
        )  # fmt: skip
    show.print_json(results(), metrics) if as_json else results().print(show.figures(metrics, str(out)))


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="DIR_A")],
    second: Annotated[Path, typer.Argument(metavar="DIR_B")],
    as_json: JsonOpt = False,
) -> None:
    """Compare two evaluations of the same questions: paired bootstrap and McNemar."""
    from pipelines.evaluation.compare import compare as of_questions
    from pipelines.evaluation.task_figures import compare_tasks, holds_tasks
    from pipelines.evaluation.task_table import task_comparison_table
    from pipelines.report import comparison_table
    from pipelines.show import print_json

    tasks = holds_tasks(first) and holds_tasks(second)
    result = compare_tasks(first, second) if tasks else of_questions(first, second)
    if as_json:
        print_json(results(), result)
    else:
        results().print(task_comparison_table(result) if tasks else comparison_table(result))


@app.command("compare-methods")
def compare_methods(
    config: ConfigArg,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where results, plots and modules go.")] = Path(
        "runs/method_comparison"
    ),
    list_: Annotated[bool, typer.Option("--list", help="Only name the methods, one a line.")] = False,
    part: Annotated[str, typer.Option("--part", metavar="I/N", help="Every Nth method from the Ith.")] = "0/1",
    report_only: Annotated[bool, typer.Option("--report", help="Only show what has been run.")] = False,
    as_json: JsonOpt = False,
    set_: SetOpt = None,
    quiet: QuietOpt = False,
) -> None:
    """Train and measure all methods of a config on all its tasks. Goes on where an interrupted comparison stopped."""
    loaded = _load(config, set_, None)
    hush(quiet)
    from dataclasses import asdict

    from pipelines import show
    from pipelines.comparison.figures import figures
    from pipelines.comparison.runs import compare_methods as run
    from pipelines.comparison.runs import part_of, read_results
    from pipelines.comparison.show import comparison_table, write_report
    from pipelines.errors import ConfigError

    if loaded.kind != "method_comparison":
        raise ConfigError(f"methods are compared by a config of kind method_comparison; {config} is {loaded.kind}")
    if list_:
        for method in loaded.methods:
            results().print(method.name, markup=False, highlight=False)
        return
    found = read_results(out) if report_only else run(loaded, out, part=part_of(part), log=logger(quiet))
    if not found:
        raise ConfigError(f"{out} has no results yet; run the command without --report")
    for path in write_report(found, out, reference=loaded.reference, title=Path(config).stem):
        logger(quiet)(f"wrote {path}")
    if as_json:
        for one in figures(found, loaded.reference):
            show.print_json(results(), asdict(one))
    else:
        results().print(comparison_table(found, reference=loaded.reference, title=str(out)))


@app.command()
def prompts(
    config: ConfigArg,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the prompts and their picture go.")],
    split: Annotated[str, typer.Option("--split", help="train, dev or test")] = "dev",
    limit: Annotated[int, typer.Option("--limit", min=1, help="Rows of each task.")] = 60,
    set_: SetOpt = None,
    workspace: WorkspaceOpt = None,
    quiet: QuietOpt = False,
) -> None:
    """Export the prompts that a trained method writes for the tasks' inputs, and draw where they lie."""
    with _pipeline(config, set_, workspace, False, quiet) as pipeline:
        from pipelines import show
        from pipelines.evaluation.multitask import export_prompts

        found = export_prompts(pipeline, out, split=split, limit=limit, log=logger(quiet))
    results().print(show.figures(found, str(out)))


class PeftFormat(StrEnum):
    """Formats of other libraries."""

    peft = "peft"


FormatOpt = Annotated[PeftFormat, typer.Option("--format", help="Whose format.")]


@app.command()
def export(
    config: ConfigArg,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="A new folder.")],
    format_: FormatOpt = PeftFormat.peft,
    as_json: JsonOpt = False,
    set_: SetOpt = None,
    workspace: WorkspaceOpt = None,
    quiet: QuietOpt = False,
) -> None:
    """Write what the config has trained as another library reads it."""
    loaded = _load(config, set_, workspace)
    hush(quiet)
    from pipelines import show
    from pipelines.peft_exchange import export_peft

    done = export_peft(loaded, out, log=logger(quiet))
    show.print_json(results(), done) if as_json else results().print(show.figures(done, "exported"))


@app.command("import")
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
    loaded = _load(config, set_, workspace)
    hush(quiet)
    from pipelines import show
    from pipelines.peft_exchange import import_peft

    done = import_peft(loaded, folder, restart=restart, log=logger(quiet))
    show.print_json(results(), done) if as_json else results().print(show.figures(done, "imported"))


@app.command()
def cost(
    config: ConfigArg,
    input_tokens: Annotated[
        int | None, typer.Option("--input-tokens", min=1, help="Text that the LM reads; else what the config packs.")
    ] = None,
    answer_tokens: Annotated[
        int | None, typer.Option("--answer-tokens", min=1, help="Else generation.max_new_tokens.")
    ] = None,
    as_json: JsonOpt = False,
    set_: SetOpt = None,
) -> None:
    """Parameters and FLOPs of what is trained and of the LM, for one input. Loads no model."""
    loaded = _load(config, set_, None)
    hush(True)
    from pipelines import show
    from pipelines.cost import cost as run
    from pipelines.cost import cost_table
    from pipelines.cost_types import Assumed

    found = run(loaded, Assumed(input_tokens=input_tokens, answer_tokens=answer_tokens))
    show.print_json(results(), found) if as_json else results().print(cost_table(found, title=config))


@app.command()
def demo(
    config: Annotated[str, typer.Argument(metavar="[CONFIG]")] = "demo.yaml",
    set_: SetOpt = None,
    workspace: WorkspaceOpt = None,
    quiet: QuietOpt = False,
) -> None:
    """The whole job on the embedded default: index, train, evaluate, answer. A second run reuses everything."""
    loaded = _load(config, set_, workspace)
    hush(quiet)
    from pipelines.demo import run_demo

    run_demo(loaded, log=logger(quiet))


@app.command()
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


@config_app.command("check")
def config_check(
    files: Annotated[list[str], typer.Argument(metavar="FILE...")],
    set_: SetOpt = None,
) -> None:
    """Say OK, or every fault of each file, with its line."""
    from pipelines.errors import ConfigError

    faulty = False
    for name in files:
        try:
            _load(name, set_, None)
        except ConfigError as error:
            faulty = True
            show_error(str(error))
        else:
            results().print(f"{name}: OK", soft_wrap=True, markup=False, highlight=False)
    if faulty:
        raise typer.Exit(WRONG_USE)


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON Schema of config files, for editors."""
    sys.stdout.write(schema_text())


@plugins_app.command("list")
def plugins_list() -> None:
    """Built-in retrievers and installed plug-ins, and whether each one loads."""
    from pipelines import plugins, show

    results().print(show.plugins(plugins.BUILT_IN_RETRIEVERS, plugins.installed_plugins()))


def schema_text() -> str:
    """What `frozenlm config schema` prints and `configs/schema.json` holds."""
    from pipelines.config import json_schema

    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


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


def _show_plan(config: Any, as_json: bool, *, pretrain: bool = False) -> None:
    from pipelines.dry_run import describe, plan_table
    from pipelines.show import print_json

    plan = describe(config, pretrain=pretrain)
    print_json(results(), plan) if as_json else results().print(plan_table(plan))


def _overrides(settings: list[str] | None, workspace: str | None) -> list[str]:
    # As JSON, which is YAML too: a folder called 7 or "a: b" stays text.
    return [*(settings or []), *([f"workspace={json.dumps(workspace)}"] if workspace is not None else [])]


def _load(config: str, settings: list[str] | None, workspace: str | None) -> Any:
    from pipelines.loader import load_config

    return load_config(config, overrides=_overrides(settings, workspace))


@contextmanager
def _pipeline(
    config: str, settings: list[str] | None, workspace: str | None, allow_import: bool, quiet: bool
) -> Iterator[Any]:
    loaded = _load(config, settings, workspace)
    hush(quiet)
    if allow_import:
        sys.path.append(str(Path.cwd()))  # an installed command does not see the current folder by itself
    from pipelines.pipeline import Pipeline

    with Pipeline.from_config(loaded, allow_import=allow_import, log=logger(quiet)) as pipeline:
        yield pipeline


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


def _evaluation_questions(config: Any, path: Path | None, form: str, qrels: Path | None, limit: int | None) -> Any:
    """The questions of the command line, else the config's own."""
    from pydantic import ValidationError

    from pipelines.config import Questions
    from pipelines.errors import ConfigError
    from pipelines.evaluation.questions import read_questions

    block = config.evaluation.questions
    if path is not None:
        try:
            block = Questions(path=path, format=form)  # type: ignore[arg-type]
        except ValidationError as error:
            raise ConfigError(f"--format {form!r}: {error.errors()[0]['msg']}") from error
    if block is None:
        raise ConfigError("no questions: give --questions FILE, or set evaluation.questions in the config")
    return read_questions(block, qrels=qrels, limit=limit)


if __name__ == "__main__":
    sys.exit(main())
