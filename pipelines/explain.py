"""pydantic's faults in a user's words: file and line, the key's full name, what was got, expected and meant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from pydantic import ValidationError

from pipelines.config import CONFIG
from pipelines.suggest import did_you_mean
from pipelines.yaml_source import Source, Where

MAX_FAULTS = 50


def explain(source: Source, error: ValidationError) -> str:
    """Every fault of `error`, one a line, at most `MAX_FAULTS`."""
    found = error.errors(include_url=False)
    strange = {
        fault["loc"][:-1] for fault in found if fault["type"] == "value_error" and fault["loc"][-1:] == ("kind",)
    }
    # Which keys a block may have is not known where its kind is not.
    faults = [f for f in found if f["type"] != "extra_forbidden" or f["loc"][:-1] not in strange]
    lines = [_fault(source, fault) for fault in faults[:MAX_FAULTS]]
    if len(faults) > MAX_FAULTS:
        lines.append(f"... and {len(faults) - MAX_FAULTS} more")
    return "\n".join(lines)


def _fault(source: Source, fault: Any) -> str:
    loc, kind = fault["loc"], fault["type"]
    where, node = _locate(source.values, loc)
    # A missing key has no line, its block has one (a parent file's line for that key may linger).
    known = where[:-1] if kind == "missing" else where
    line = next((source.lines[known[:n]] for n in range(len(known), -1, -1) if known[:n] in source.lines), "config")
    name = ".".join(str(step)[:80] for step in where) or "config"
    if kind == "extra_forbidden":
        text = f"unknown key{did_you_mean(str(where[-1]), _keys_at(loc[:-1]))}"
    elif kind == "missing":
        text = "missing; this key is required"
    elif kind in ("union_tag_invalid", "union_tag_not_found"):
        tags = _tags_at(loc)
        line = source.lines.get((*where, "kind"), line)
        got = node.get("kind") if isinstance(node, dict) else node
        text = f"kind is {_short(got)}, expected one of {', '.join(tags)}"
        text += did_you_mean(got, tags, listed=False) if isinstance(got, str) else ""
    elif kind in ("model_type", "model_attributes_type", "dict_type"):
        text = f"expected a block of `key: value`, got {_short(fault['input'])}"
    elif kind == "value_error":
        text = _lower_first(fault["msg"].removeprefix("Value error, "))
    else:
        text = f"{_lower_first(fault['msg'])}, got {_short(fault['input'])}"
    return f"{line}: {name}: {source.hide(text)}"


def _locate(values: Any, loc: Sequence[str | int]) -> tuple[Where, Any]:
    """pydantic's location without the tags of unions, and the value there."""
    where: list[str | int] = []
    node = values
    for i, step in enumerate(loc):
        inside_dict = isinstance(node, dict) and step in node
        inside_list = isinstance(node, list) and isinstance(step, int) and step < len(node)
        if inside_dict or inside_list:
            node = node[step]
            where.append(step)
        elif i == len(loc) - 1 and isinstance(node, dict) and step not in (node.get("kind"), "custom"):
            where.append(step)
    return tuple(where), node


@cache
def _schema() -> dict[str, Any]:
    return CONFIG.json_schema()


def _blocks(nodes: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The plain schemas that `nodes` stand for, through references and unions."""
    for node in nodes:
        if "$ref" in node:
            yield from _blocks([_schema()["$defs"][node["$ref"].rsplit("/", 1)[-1]]])
        elif "oneOf" in node or "anyOf" in node:
            yield from _blocks(node.get("oneOf", []) + node.get("anyOf", []))
        else:
            yield node


def _at(loc: Sequence[str | int]) -> list[dict[str, Any]]:
    """The schemas at pydantic's location `loc`, which names the tag of each union on its way."""
    nodes = [_schema()]
    for step in loc:
        blocks = list(_blocks(nodes))
        inside = [block for block in blocks if step in _tags(block)]
        inside = inside or [block["properties"][step] for block in blocks if step in block.get("properties", {})]
        for container in ("additionalProperties", "items"):
            inside = inside or [block[container] for block in blocks if isinstance(block.get(container), dict)]
        nodes = inside or nodes
    return list(_blocks(nodes))


def _tags(block: dict[str, Any]) -> list[str]:
    """The kinds that mean this block; some stand for several methods."""
    if block.get("title") == "Custom":
        return ["custom"]
    kind = block.get("properties", {}).get("kind", {})
    return [kind["const"]] if "const" in kind else kind.get("enum", [])


def _keys_at(loc: Sequence[str | int]) -> list[str]:
    return sorted({key for block in _at(loc) for key in block.get("properties", {})})


def _tags_at(loc: Sequence[str | int]) -> list[str]:
    return sorted({tag for block in _at(loc) for tag in _tags(block)})


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def _short(value: Any) -> str:
    """A value for a message: a scalar itself, of a block only what it is, since it may be long or hold a secret."""
    if isinstance(value, dict):
        return f"a mapping with the keys {', '.join(str(key)[:30] for key in list(value)[:8]) or '(none)'}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if value is None:
        return "nothing (null)"
    if isinstance(value, str):
        return f"{str(value)[:80]!r}{'...' if len(value) > 80 else ''} (text)"
    if isinstance(value, bool | int | float):
        return f"{str(value)[:80]} ({type(value).__name__})"
    return f"an object of type {type(value).__name__}"
