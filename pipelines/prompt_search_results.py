"""What a search for prompts hands over: a config that other commands take as it is, and a table of the best."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from pipelines.config import PromptingJob, PromptSearch
from pipelines.loader import as_written

SHOWN = 10
_PLAIN = re.compile(r"[A-Za-z_/][^\r\n]*")  # anything else could be a number to our reader, which is not PyYAML's


def best_yaml(config: PromptSearch, found: PromptingJob, said: str) -> str:
    """The text of a config file that asks as `found` does.

    Args:
        config: what was searched with; secrets stay as it has them written. A path behind an environment variable is
            written in full, since a relative one would start from another folder.
        found: the candidate, as `config.job` makes it.
        said: a line on where it comes from.
    """
    settings = _settled(as_written(config), config.model_dump(mode="json", by_alias=True, exclude_unset=True))
    for name in ("extends", "search"):
        settings.pop(name, None)
    asking = settings["prompting"] | {"templates": found.prompting.templates, "words": found.prompting.words}
    whole = {"kind": found.kind} | settings | {"kind": found.kind, "prompting": asking}
    body = yaml.dump(whole, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6)
    return f"# frozenlm evaluate best.yaml --out DIR\n# {said}\n{body}"


def candidates_table(found: Mapping[str, Any], *, title: str) -> Group:
    """What `search_prompts` returns, for the eye: the best candidates, then the one to beat."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    table.add_column("dev accuracy", justify="right")
    table.add_column("template")
    table.add_column("words")
    first = found["baseline"]
    for one in found["candidates"][:SHOWN]:
        table.add_row(*_cells(one, " (the first)" if one == first else ""))
    if first not in found["candidates"][:SHOWN]:
        table.add_section()
        table.add_row(*_cells(first, " (the first)"))
    left = [f"{found['tried']} tried on {found['dev_records']} dev records, {found['impossible']} of them impossible"]
    left.append("the best was chosen on these records: measure it on the test split")
    left.append(
        f"wrote {found['best_yaml']}; LM weights changed: {found['lm_weights_changed']} of {found['lm_weights']}"
    )
    return Group(table, *map(Text, left))


def _cells(one: Mapping[str, Any], note: str) -> tuple[Text, Text, Text]:
    return Text(f"{one['score']:.4f}{note}"), Text(one["template"]), Text(", ".join(one["words"].values()))


def _settled(written: Any, dumped: Any) -> Any:
    """`written` with every path in full."""
    if isinstance(written, dict) and isinstance(dumped, dict):
        return {key: _settled(value, dumped.get(key)) for key, value in written.items()}
    if isinstance(written, list) and isinstance(dumped, list) and len(written) == len(dumped):
        return [_settled(*pair) for pair in zip(written, dumped, strict=True)]
    path = isinstance(dumped, dict) or (isinstance(dumped, str) and Path(dumped).is_absolute())  # records: {path: ...}
    return dumped if path else written


class _Dumper(yaml.SafeDumper):
    """Writes text so that `yaml_source` reads text again."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    style = None if _PLAIN.fullmatch(value) else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)
