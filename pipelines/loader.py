"""A YAML file, a packaged config's name, a mapping or a config object to one validated config, or to every error it has, with file and line.

Reading has no side effects: nothing is built, no folder made, no environment touched.
"""

from __future__ import annotations

import copy
import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from pipelines.assets import SourcedStr, config_folder, packaged_configs
from pipelines.config import CONFIG, Block, Job
from pipelines.errors import ConfigError

Where = tuple[str | int, ...]
_ENV = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
_FLOAT = re.compile(
    r"[-+]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][-+]?\d+)?$|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
)
MAX_BYTES = 1_000_000
MAX_PARENTS = 8


class _Loader(yaml.SafeLoader):
    """YAML 1.1's safe subset, with `1e-3` a number and yes/no/on/off plain words."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, regexp)
        for tag, regexp in resolvers
        if tag not in ("tag:yaml.org,2002:float", "tag:yaml.org,2002:bool", "tag:yaml.org,2002:timestamp")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(rf"^(?=.*[.eE])(?:{_FLOAT.pattern})"), list("-+0123456789.")
)


@dataclass
class _Source:
    """One parsed file: its values, the values before environment variables were filled in, and the line of every key."""

    values: dict[str, Any]
    raw: dict[str, Any]
    lines: dict[Where, str] = field(default_factory=dict)


class _Tree:
    """Walks one YAML document to plain values, noting lines and collecting faults."""

    def __init__(self, name: str, base: Path | None) -> None:
        self.name, self.base = name, base
        self.faults: list[str] = []
        self.lines: dict[Where, str] = {}

    def at(self, node: yaml.Node) -> str:
        return f"{self.name}:{node.start_mark.line + 1}"

    def walk(self, loader: _Loader, node: yaml.Node, where: Where, depth: int = 0) -> tuple[Any, Any]:
        """The value of `node` and the same value with `${env:...}` left as written."""
        self.lines.setdefault(where, self.at(node))
        if depth > 40:
            raise ConfigError(
                f"{self.at(node)}: nested deeper than 40 levels, or an alias that holds itself; write it flat"
            )
        if isinstance(node, yaml.MappingNode):
            values: dict[str, Any] = {}
            raws: dict[str, Any] = {}
            for key_node, value_node in node.value:
                key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
                if key is None:
                    self.faults.append(f"{self.at(key_node)}: a key must be a plain word")
                elif key in values:
                    self.faults.append(
                        f"{self.at(key_node)}: duplicate key {key!r}, first at {self.lines[(*where, key)]}; keep one"
                    )
                else:
                    self.lines[(*where, key)] = self.at(key_node)
                    values[key], raws[key] = self.walk(loader, value_node, (*where, key), depth + 1)
            return values, raws
        if isinstance(node, yaml.SequenceNode):
            pairs = [self.walk(loader, item, (*where, i), depth + 1) for i, item in enumerate(node.value)]
            return [value for value, _ in pairs], [raw for _, raw in pairs]
        return self.scalar(loader, node)

    def scalar(self, loader: _Loader, node: yaml.Node) -> tuple[Any, Any]:
        text = node.value

        def fill(match: re.Match[str]) -> str:
            value = os.environ.get(match[1], match[2])
            if value is None:
                self.faults.append(
                    f"{self.at(node)}: environment variable {match[1]} is not set; set it or write ${{env:{match[1]}:-default}}"
                )
                return ""
            return value

        filled = _ENV.sub(fill, text)
        if filled != text and isinstance(node, yaml.ScalarNode) and node.style is None:
            node = yaml.ScalarNode(
                loader.resolve(yaml.ScalarNode, filled, (True, False)), filled, node.start_mark, node.end_mark
            )
        elif filled != text:
            node.value = filled
        try:
            value = loader.construct_object(node)
        except (yaml.YAMLError, ValueError) as error:
            self.faults.append(f"{self.at(node)}: {text!r} cannot be read: {str(error).splitlines()[0]}")
            return None, None
        if isinstance(value, str):
            value = SourcedStr.of(value, self.base)
        return value, (text if filled != text else value)


def _parse(text: str, name: str, base: Path | None) -> _Source:
    loader = _Loader(text)
    tree = _Tree(name, base)
    try:
        node = loader.get_single_node()
        if node is None:
            raise ConfigError(f"{name}: the file is empty; a config needs at least `kind:`")
        values, raw = tree.walk(loader, node, ())
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{name}:{line}: not valid YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not valid YAML: {str(error).splitlines()[0]}") from error
    finally:
        loader.dispose()
    if tree.faults:
        raise ConfigError("\n".join(tree.faults))
    if not isinstance(values, dict):
        raise ConfigError(f"{name}:1: a config is a mapping of keys to values, got {type(values).__name__}")
    return _Source(values, raw, tree.lines)


def find_config(source: str | Path) -> Path:
    """The file that `source` names: a path, or else a packaged config.

    Raises:
        ConfigError: neither exists; the message lists the packaged names that come near.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path
    packaged = config_folder() / path
    if not path.is_absolute() and ".." not in path.parts and packaged.is_file():
        return packaged
    names = packaged_configs()
    near = difflib.get_close_matches(str(source), names, n=3) or names
    raise ConfigError(
        f"no config file {str(source)!r}: no such file from {Path.cwd()}, and the packaged ones are {', '.join(near)}"
    )


def _read(path: Path, seen: tuple[Path, ...] = ()) -> _Source:
    path = path.resolve()
    if path in seen:
        raise ConfigError(
            f"{path}: extends itself through {' -> '.join(p.name for p in (*seen, path))}; break the circle"
        )
    if len(seen) > MAX_PARENTS:
        raise ConfigError(f"{path}: more than {MAX_PARENTS} parents; flatten the chain of extends")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(
                f"{path}: {path.stat().st_size} bytes, a config has at most {MAX_BYTES}; is this the right file?"
            )
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    own = _parse(text, str(path), path.parent)
    parent = own.values.get("extends")
    if parent is None:
        return own
    if not isinstance(parent, str):
        raise ConfigError(f"{own.lines[('extends',)]}: extends names one file, got {type(parent).__name__}")
    target = path.parent / parent
    if not target.is_file():
        raise ConfigError(f"{own.lines[('extends',)]}: extends {parent!r}, but there is no file {target}")
    base = _read(target, (*seen, path))
    return _Source(_merge(base.values, own.values), _merge(base.raw, own.raw), base.lines | own.lines)


def _merge(parent: dict[str, Any], child: dict[str, Any]) -> dict[str, Any]:
    """The child's keys win; mappings merge key by key, except where `kind` changes: then the child's block replaces the parent's."""
    merged = dict(parent)
    for key, value in child.items():
        old = merged.get(key)
        same_kind = (
            isinstance(old, dict) and isinstance(value, dict) and value.get("kind", old.get("kind")) == old.get("kind")
        )
        merged[key] = _merge(old, value) if isinstance(old, dict) and same_kind else value
    return merged


def _override(source: _Source, override: str) -> None:
    """Set one `a.b=c` in place; the value is read as YAML."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"override {override!r}: expected a.b.c=value")
    label = f"--set {path.strip()}"
    if not text.strip():
        raise ConfigError(f"{label}: no value; write {path.strip()}=null to clear it")
    parsed = _parse(f"value: {text}", label, None)
    for tree, value in ((source.values, parsed.values["value"]), (source.raw, parsed.raw["value"])):
        node: Any = tree
        for depth, key in enumerate(keys):
            last = depth == len(keys) - 1
            if isinstance(node, list):
                if not key.isdigit() or int(key) >= len(node):
                    raise ConfigError(f"{label}: {'.'.join(keys[:depth])} has {len(node)} entries, got index {key!r}")
                step: Any = int(key)
            elif isinstance(node, dict):
                step = key
            else:
                raise ConfigError(f"{label}: {'.'.join(keys[:depth])} is {node!r}, nothing can be set inside it")
            if last:
                node[step] = value
            elif isinstance(node, dict) and node.get(step) is None:
                node[step] = {}
            node = node[step]
    where: Where = tuple(int(key) if key.isdigit() else key for key in keys)
    source.lines = {w: line for w, line in source.lines.items() if w[: len(where)] != where} | {where: label}


def load_config(source: str | Path | Mapping[str, Any] | Job, *, overrides: Sequence[str] = ()) -> Any:
    """One validated config.

    Args:
        source: path of a YAML file, name of a packaged config, a mapping, or a config object.
        overrides: `a.b=c` settings, applied last; values are read as YAML.

    Raises:
        ConfigError: with every fault found, one a line, each with file and line.
    """
    if isinstance(source, Job):
        if not overrides:
            return source
        source = source.model_dump(by_alias=True)
    if isinstance(source, Mapping):
        values = copy.deepcopy(dict(source))
        parsed = _Source(values, copy.deepcopy(values))
        if values.get("extends") is not None:
            base = _read(find_config(str(values["extends"])))
            parsed = _Source(_merge(base.values, values), _merge(base.raw, values), base.lines)
    else:
        parsed = copy.deepcopy(_read(find_config(source)))
    for override in overrides:
        _override(parsed, override)
    try:
        config = CONFIG.validate_python(parsed.values)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(parsed, fault) for fault in error.errors())) from error
    except RecursionError as error:
        raise ConfigError("the config is nested too deeply; write it flat") from error
    object.__setattr__(config, "_raw", parsed.raw)
    return config


def as_written(config: Job) -> dict[str, Any]:
    """The config for a result file: as its files wrote it, so `${env:NAME}` stays unfilled and no secret is written back."""
    return getattr(config, "_raw", None) or config.model_dump(mode="json", by_alias=True, exclude_defaults=True)


def _explain(source: _Source, fault: Any) -> str:
    where, node = _locate(source.values, fault["loc"])
    line = next((source.lines[where[:n]] for n in range(len(where), -1, -1) if where[:n] in source.lines), "config")
    name = ".".join(map(str, where)) or "config"
    kind = fault["type"]
    if kind == "extra_forbidden":
        return f"{line}: {name}: unknown key{_did_you_mean(str(where[-1]), _allowed_keys(fault['loc'][:-1]))}"
    if kind == "missing":
        return f"{line}: {name}: missing; this key is required"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tags = fault["ctx"].get("expected_tags", "").replace("'", "")
        got = node.get("kind") if isinstance(node, dict) else node
        hint = _did_you_mean(str(got), tags.split(", ")) if tags else ""
        return f"{line}: {name}: kind is {got!r}, expected one of {tags or 'retrieval, reranker, frozen_reader, closed_book'}{hint}"
    message = fault["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    got = "" if kind == "value_error" else f", got {_short(fault['input'])}"
    return f"{line}: {name}: {message}{got}"


def _locate(values: Any, loc: Sequence[str | int]) -> tuple[Where, Any]:
    """pydantic's location without the tags of unions, and the value there."""
    where: list[str | int] = []
    node = values
    for i, step in enumerate(loc):
        if isinstance(node, dict) and step in node:
            node = node[step]
            where.append(step)
        elif isinstance(node, list) and isinstance(step, int) and step < len(node):
            node = node[step]
            where.append(step)
        elif i == len(loc) - 1 and isinstance(node, dict) and step != node.get("kind"):
            where.append(step)
    return tuple(where), node


def _allowed_keys(loc: Sequence[str | int]) -> list[str]:
    """Keys of the block at pydantic's location `loc`, found in the schema."""
    schema = CONFIG.json_schema()
    node: dict[str, Any] = schema
    for step in loc:
        node = _resolve(schema, node)
        options = [_resolve(schema, option) for option in node.get("oneOf", []) + node.get("anyOf", [])]
        tagged = next(
            (
                o
                for o in options
                if step in (_tag(o), "custom" if _tag(o) is None and o.get("title") == "Custom" else None)
            ),
            None,
        )
        inner = next((o for o in [node, *options] if step in o.get("properties", {})), None)
        if tagged is not None:
            node = tagged
        elif inner is not None:
            node = inner["properties"][step]
        elif isinstance(node.get("additionalProperties"), dict):
            node = node["additionalProperties"]
        elif "items" in node:
            node = node["items"]
    node = _resolve(schema, node)
    options = [_resolve(schema, option) for option in node.get("anyOf", [])]
    return sorted({key for block in [node, *options] for key in block.get("properties", {})})


def _resolve(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    return schema["$defs"][node["$ref"].rsplit("/", 1)[-1]] if "$ref" in node else node


def _tag(block: dict[str, Any]) -> str | None:
    return block.get("properties", {}).get("kind", {}).get("const")


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known keys: {', '.join(known)}" if known else ""


def _short(value: Any) -> str:
    text = repr(str(value)) if isinstance(value, str) else repr(value)
    return f"{text if len(text) <= 80 else text[:77] + '...'} ({type(value).__name__.replace('SourcedStr', 'str')})"


__all__ = ["Block", "BaseModel", "as_written", "find_config", "load_config"]
