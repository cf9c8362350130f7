"""`make demo`: the main job from start to end on the embedded corpus and LM, with one table at the end."""

from __future__ import annotations

import json
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from pipelines import config as c
from pipelines.build import Log
from pipelines.errors import ConfigError
from pipelines.evaluation.questions import read_questions
from pipelines.evaluation.run import evaluate
from pipelines.indexing import build_indexes
from pipelines.loader import load_config
from pipelines.pipeline import Pipeline
from pipelines.training import train
from retrievers.files import sha256_json

QUESTIONS = (
    "who got the first nobel prize in physics",
    "which schoolgirl came up with the name pluto?",
    "where do ships cross a man-made lake between the atlantic and the pacific?",
)


def run_demo(
    config: Any, *, log: Log, ranking: c.RerankerJob | None = None, console: Console | None = None
) -> dict[str, dict[str, Any]]:
    """Index, train the re-ranker and the soft prompt, evaluate four readers, answer three questions.

    Everything goes below the config's workspace; what is there already is used again.

    Args:
        config: of kind frozen_reader.
        log: told what happens.
        ranking: how the re-ranker is trained; `reranker.yaml` in the same workspace by default.
        console: where the table and the answers go.

    Returns:
        The metrics of each reader by name.

    Raises:
        ConfigError: the config is no frozen reader with a re-ranker, a prompt and test questions.
    """
    if not isinstance(config, c.FrozenReader) or config.reranker is None or config.prompt is None:
        raise ConfigError("the demo needs a config of kind frozen_reader with a reranker and a prompt block")
    if config.evaluation.questions is None:
        raise ConfigError("the demo needs evaluation.questions")
    console = console or Console()
    console.rule("1. index")
    build_indexes(config, log=log)
    console.rule("2. train the re-ranker")
    train(ranking or load_config("reranker.yaml", overrides=[f"workspace={config.workspace}"]), log=log)
    console.rule("3. train the reader's soft prompt")
    plain = config.model_copy(update={"reranker": None})
    train(plain, log=log)
    console.rule("4. evaluate")
    questions = read_questions(config.evaluation.questions)
    readers: dict[str, Any] = {
        "closed book": _closed_book(config),
        "zero-shot reader": plain.model_copy(update={"prompt": None}),
        "prompt-tuned reader": plain,
        "  + re-ranking": config,
    }
    results: dict[str, dict[str, Any]] = {}
    for name, job in readers.items():
        with Pipeline.from_config(job, log=log) as pipeline:
            # Named by what it measures: a module that was trained anew is measured anew, anything else is reused.
            key = sha256_json([job.model_dump(mode="json"), pipeline.provenance()])[:12]
            out = config.workspace_path / "evaluation" / f"{name.strip(' +').replace(' ', '_')}-{key}"
            results[name] = evaluate(
                pipeline,
                questions,
                out,
                recall_at=config.evaluation.recall_at,
                matcher=config.evaluation.matcher,
                chunk=config.evaluation.chunk,
                log=log,
            )
    console.print(_table(results))
    changed = {name: metrics["lm_weights_changed"] for name, metrics in results.items()}
    console.print(f"LM weights changed: {sum(changed.values())}   (fingerprint {_fingerprint(results)})")
    console.rule("5. ask")
    with Pipeline.from_config(config, log=log) as pipeline:
        for answer in pipeline.answer(QUESTIONS):
            source = next((kept.hit for kept in answer.context if answer.text and answer.text in kept.text), None)
            console.print(f"[bold]{answer.question}[/bold]")
            console.print(f"  {answer.text}   (log-probability {answer.score:.2f})", highlight=False)
            for kept in sorted(answer.context, key=lambda k: k.rank):
                mark = "*" if source is not None and kept.hit.passage_id == source.passage_id else " "
                console.print(f"  {mark} {kept.hit.title} [{kept.hit.passage_id}]", highlight=False, markup=False)
    return results


def _closed_book(config: c.FrozenReader) -> c.ClosedBook:
    shared = {name: getattr(config, name) for name in ("seed", "workspace", "lm", "packing", "generation", "surface")}
    return c.ClosedBook(kind="closed_book", prompt=None, **shared)


def _table(results: dict[str, dict[str, Any]]) -> Table:
    first = next(iter(results.values()))
    table = Table(title=f"{first['n']} test questions; 95% intervals in brackets", box=box.SIMPLE)
    for heading in ("reader", "EM", "F1", "recall@ctx", "EM/recall"):
        table.add_column(heading, justify="left" if heading == "reader" else "right", no_wrap=True)
    for name, m in results.items():
        low, high = m["ci95"]["em"]
        recall, ratio = m.get("recall_at_context"), m.get("em_given_context")
        table.add_row(
            name,
            f"{100 * m['em']:.1f} [{100 * low:.1f}, {100 * high:.1f}]",
            f"{100 * m['f1']:.1f}",
            f"{100 * recall:.1f}" if recall else "-",
            f"{ratio:.3f}" if ratio else "-",
        )
    return table


def _fingerprint(results: dict[str, dict[str, Any]]) -> str:
    seen = {metrics["lm_fingerprint"][:16] for metrics in results.values()}
    return json.dumps(sorted(seen)) if len(seen) > 1 else seen.pop()
