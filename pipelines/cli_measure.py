"""The commands that measure: `evaluate`, `compare`, `compare-methods`, `prompts`, `cost`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.cli_jobs import load, opened, show_figures
from pipelines.cli_options import ConfigArg, ImportOpt, JsonOpt, QuietOpt, SetOpt, WorkspaceOpt
from pipelines.console import hush, logger, results


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

    with opened(config, set_, workspace, allow_import, quiet) as pipeline:
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
    show_figures(metrics, str(out), as_json=as_json)


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
    loaded = load(config, set_)
    hush(quiet)
    from dataclasses import asdict

    from pipelines import show
    from pipelines.comparison.figures import figures
    from pipelines.comparison.results import in_order, read_results
    from pipelines.comparison.runs import compare_methods as run
    from pipelines.comparison.runs import part_of
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
    found = in_order(found, loaded)
    for path in write_report(found, out, reference=loaded.reference, title=Path(config).stem):
        logger(quiet)(f"wrote {path}")
    if as_json:
        for one in figures(found, loaded.reference):
            show.print_json(results(), asdict(one))
    else:
        results().print(comparison_table(found, reference=loaded.reference, title=str(out)))


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
    with opened(config, set_, workspace, False, quiet) as pipeline:
        from pipelines.evaluation.multitask import export_prompts

        found = export_prompts(pipeline, out, split=split, limit=limit, log=logger(quiet))
    show_figures(found, str(out))


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
    loaded = load(config, set_)
    hush(True)
    from pipelines import show
    from pipelines.cost import cost as run
    from pipelines.cost import cost_table
    from pipelines.cost_types import Assumed

    found = run(loaded, Assumed(input_tokens=input_tokens, answer_tokens=answer_tokens))
    show.print_json(results(), found) if as_json else results().print(cost_table(found, title=config))


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
