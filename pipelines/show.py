"""What the command line prints: answers with their sources, figures with their intervals; `--json` is for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from pipelines.answer import Answer
    from pipelines.plugins import PluginInfo

SNIPPET = 160
_NOT_SHOWN = ("ci95", "ci95_method", "versions")


def answer_record(answer: Answer, sources: int) -> dict[str, Any]:
    """One answer as plain JSON values, with its first `sources` passages."""
    read = {kept.hit.passage_id for kept in answer.context}
    return {
        "question": answer.question,
        "answer": answer.text,
        "score": answer.score,
        "prompt": answer.prompt,
        "module": answer.module,
        "cut": list(answer.cut),
        "passages": [
            {
                "id": hit.passage_id,
                "title": hit.title,
                "text": hit.text,
                "score": hit.score,
                "rerank_score": hit.rerank_score,
                "in_context": hit.passage_id in read,
            }
            for hit in answer.passages[:sources]
        ],
        "timings": answer.timings,
    } | _recursion_record(answer)


def _recursion_record(answer: Answer) -> dict[str, Any]:
    """Passes and candidates, of an answer that recursion gave."""
    if not answer.passes:
        return {}
    shown = [asdict(one) for one in answer.candidates] if answer.candidates is not None else None
    return {"passes": list(answer.passes), "confidence": answer.confidence, "candidates": shown}


def answer_text(answer: Answer, sources: int) -> RenderableType:
    """One answer for the eye: text and score, then its sources; a `*` marks those that the LM read."""
    head = Text()
    if answer.text is not None:
        head.append(answer.text or "(no answer)", style="bold green" if answer.text else "yellow")
        if answer.score is not None:
            head.append(f"   log-probability {answer.score:.2f}", style="dim")
    parts: list[RenderableType] = [head] if head else []
    if answer.cut:
        parts.append(Text(f"   the input was too long and was cut for: {', '.join(answer.cut)}"))
    if answer.candidates is not None:
        listed = "; ".join(f"{one.text} ({one.count}x, {one.logprob:.2f})" for one in answer.candidates)
        parts.append(Text(f"   candidates: {listed or 'none'}", style="dim"))
    if answer.passes:
        parts.append(Text(f"   passes: {', '.join(answer.passes)}", style="dim"))
    read = {kept.hit.passage_id for kept in answer.context}
    for hit in answer.passages[:sources]:
        line = Text(f" {'*' if hit.passage_id in read else ' '} ")
        line.append(hit.title or "(no title)", style="bold")
        line.append(f" [{hit.passage_id}]", style="dim")
        parts += [line, Padding(Text(snippet(hit.text)), (0, 0, 0, 4))]
    hidden = sum(hit.passage_id in read for hit in answer.passages[sources:])
    if answer.packing is not None and answer.passages and not answer.context:
        parts.append(Text(f"   no passage fits the LM's window beside the question: 0 of {len(answer.passages)} read"))
    elif answer.packing is not None and not answer.passages and "retrieve" in answer.timings:
        parts.append(Text("   no passage was found; the LM answered without any"))
    elif answer.context:
        more = f" ({hidden} not shown)" if hidden else ""
        parts.append(Text(f"   * = read by the LM: {len(read)} of {len(answer.passages)} passages{more}", style="dim"))
    return Group(*parts)


def snippet(text: str) -> str:
    """The beginning of a passage on one line, cut at a word."""
    line = " ".join(text.split())
    return line if len(line) <= SNIPPET else line[:SNIPPET].rsplit(" ", 1)[0] + " ..."


def figures(metrics: Mapping[str, Any], title: str) -> Table:
    """A result file as a table, one figure a line, with its interval where `ci95` has one; hashes stay in the file."""
    intervals = metrics.get("ci95") or {}
    columns = ["figure", "value", *(["95% interval"] if intervals else [])]
    table = Table(*columns, title=title, title_justify="left", box=box.SIMPLE)
    for name, value in _flat({key: value for key, value in metrics.items() if key not in _NOT_SHOWN}):
        if isinstance(value, bool | int | float | str) and not name.endswith("sha256"):
            interval = _lookup(intervals, name)
            low_high = f"{interval[0]:.4f} .. {interval[1]:.4f}" if isinstance(interval, list | tuple) else ""
            table.add_row(
                name,
                f"{value:.4f}" if isinstance(value, float) else str(value)[:64],
                *([low_high] if intervals else []),
            )
    return table


def plugins(built_in: tuple[str, ...], found: list[PluginInfo]) -> Table:
    """Names that `retriever.kind` may hold."""
    table = Table("retriever.kind", "from", "loads", box=box.SIMPLE)
    for name in built_in:
        table.add_row(name, "built in", "yes")
    for info in found:
        table.add_row(info.name, Text(f"{info.distribution} ({info.target})"), Text(info.problem or "yes"))
    return table


def print_json(console: Console, value: Any) -> None:
    """One line of JSON, never wrapped, and out at once: another program may be waiting for it."""
    console.file.write(json.dumps(value, ensure_ascii=False, default=str) + "\n")
    console.file.flush()


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in tree.items():
        name = f"{prefix}{key}"
        rows += _flat(value, f"{name}.") if isinstance(value, Mapping) else [(name, value)]
    return rows


def _lookup(tree: Any, name: str) -> Any:
    if isinstance(tree, Mapping) and name in tree:
        return tree[name]
    head, dot, rest = name.partition(".")
    return _lookup(tree.get(head), rest) if dot and isinstance(tree, Mapping) else None
