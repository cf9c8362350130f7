"""One YAML text to plain values with their lines, and to the same values with `${env:NAME}` left as written.

Our YAML is smaller than YAML 1.1: `1e-3` is a float, `yes`, `no`, `on`, `off`, `12:30` and dates are plain words, `010`
is ten, tags and merge keys are refused, a key stands once. A text is limited in size, depth and number of values, so
that no file can hang the reader.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipelines.assets import SourcedStr
from pipelines.errors import ConfigError

Where = tuple[str | int, ...]
MAX_CHARACTERS = 64_000
MAX_DEPTH = 40
MAX_VALUES = 20_000

_ENV = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
_WORDS: dict[str, Any] = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
_WORDS |= dict.fromkeys(("true", "True", "TRUE"), True) | dict.fromkeys(("false", "False", "FALSE"), False)
_WORDS |= {f"{sign}.inf": float(f"{sign}inf") for sign in ("", "+", "-")} | {".nan": float("nan")}
_INT = re.compile(r"[-+]?\d+(?:_\d+)*", re.ASCII)
_FLOAT = re.compile(r"[-+]?(?:\d+(?:_\d+)*\.?(?:\d+(?:_\d+)*)?|\.\d+(?:_\d+)*)(?:[eE][-+]?\d+)?", re.ASCII)
_MAX_DIGITS = 400
_STRUCTURE_TAGS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


class _Loader(yaml.SafeLoader):
    """PyYAML's parser without its guesses at types: a plain word's type is found by `_plain` below.

    The pure-Python parser is used on purpose: libyaml's overruns the stack on a text of many opening brackets.
    """

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 (overrides PyYAML's own attribute)
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(
                problem=f"nested deeper than {MAX_DEPTH} levels; write it flat", problem_mark=mark
            )
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


@dataclass
class Source:
    """One parsed text.

    Attributes:
        values: what the config is validated from.
        raw: the same tree before environment variables were filled in.
        lines: `file:line` of every key and list entry.
        secrets: value of each environment variable that was filled in -> the `${env:NAME}` that it stands for.
    """

    values: Any
    raw: Any
    lines: dict[Where, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)

    def hide(self, text: str) -> str:
        """`text` with every environment variable's value replaced by the variable's name."""
        for value in sorted(self.secrets, key=len, reverse=True):
            text = text.replace(value, self.secrets[value])
        return text


class _Tree:
    """Walks one YAML document to plain values, noting lines and collecting faults."""

    def __init__(self, name: str, base: Path | None, numbered: bool) -> None:
        self.name, self.base, self.numbered = name, base, numbered
        self.faults: list[str] = []
        self.lines: dict[Where, str] = {}
        self.secrets: dict[str, str] = {}
        self.visited = 0

    def at(self, node: yaml.Node) -> str:
        return f"{self.name}:{node.start_mark.line + 1}" if self.numbered else self.name

    def walk(self, node: yaml.Node, where: Where = ()) -> tuple[Any, Any]:
        """The value of `node` and the same value with `${env:...}` left as written."""
        self.visited += 1
        self.lines.setdefault(where, self.at(node))
        # Aliases make a small file a huge tree ("billion laughs") or a tree that holds itself; both end here.
        if self.visited > MAX_VALUES or len(where) > MAX_DEPTH:
            raise ConfigError(
                f"{self.at(node)}: more than {MAX_VALUES:,} values or {MAX_DEPTH} levels once aliases are followed; "
                "a config is far smaller"
            )
        if node.tag not in _STRUCTURE_TAGS or (isinstance(node, yaml.ScalarNode) and node.tag != _STRUCTURE_TAGS[0]):
            self.faults.append(
                f"{self.at(node)}: the tag {node.tag[:60]!r} is not read in a config; write a plain value"
            )
            return None, None
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, where)
        if isinstance(node, yaml.SequenceNode):
            pairs = [self.walk(item, (*where, i)) for i, item in enumerate(node.value)]
            return [value for value, _ in pairs], [raw for _, raw in pairs]
        return self.scalar(node)

    def mapping(self, node: yaml.MappingNode, where: Where) -> tuple[dict[str, Any], dict[str, Any]]:
        values: dict[str, Any] = {}
        raws: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = _joined(key_node.value) if isinstance(key_node, yaml.ScalarNode) else None
            if key is None:
                self.faults.append(f"{self.at(key_node)}: a key must be a plain word")
            elif key == "<<":
                self.faults.append(
                    f"{self.at(key_node)}: the merge key '<<' is not read; use `extends` or write it out"
                )
            elif key in values:
                first = self.lines[(*where, key)]
                self.faults.append(f"{self.at(key_node)}: duplicate key {key[:80]!r}, first at {first}; keep one")
            else:
                self.lines[(*where, key)] = self.at(key_node)
                values[key], raws[key] = self.walk(value_node, (*where, key))
        return values, raws

    def scalar(self, node: yaml.Node) -> tuple[Any, Any]:
        text = _joined(node.value)

        def fill(match: re.Match[str]) -> str:
            value = os.environ.get(match[1])
            if value:
                self.secrets[value] = f"${{env:{match[1]}}}"
            elif value is None and match[2] is None:
                hint = f"set it or write ${{env:{match[1]}:-default}}"
                self.faults.append(f"{self.at(node)}: environment variable {match[1]} is not set; {hint}")
            return (match[2] or "") if value is None else value

        if "${env:" in _ENV.sub("", text):
            self.faults.append(f"{self.at(node)}: {text[:80]!r}: write ${{env:NAME}} or ${{env:NAME:-default}}")
        filled = _ENV.sub(fill, text)
        value = _plain(filled) if getattr(node, "style", None) is None else filled
        if isinstance(value, str):
            value = SourcedStr.of(value, self.base)
        return value, (text if filled != text else value)


def _joined(text: str) -> str:
    """Text with each pair of surrogates as the one character that JSON writes so; a lone one stays, and is refused."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def _plain(text: str) -> Any:
    """The value of an unquoted word."""
    if text in _WORDS:
        return _WORDS[text]
    if len(text) <= _MAX_DIGITS and _INT.fullmatch(text):
        return int(text)
    if len(text) <= _MAX_DIGITS and _FLOAT.fullmatch(text):
        return float(text)
    return text


def parse(text: str, name: str, base: Path | None, *, numbered: bool = True) -> Source:
    """Parse one YAML text.

    Args:
        name: what errors call the text: a file's path.
        base: folder that its relative paths start from; None for the current directory.
        numbered: whether errors give the line too.

    Raises:
        ConfigError: not YAML, or with every duplicate key, tag and unset variable, one a line.
    """
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(
            f"{name}: {len(text):,} characters, a config has at most {MAX_CHARACTERS:,}; is this the right file?"
        )
    tree = _Tree(name, base, numbered)
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        values, raw = tree.walk(node) if node is not None else (None, None)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark and numbered else ""
        what = ": ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"{name}{line}: not valid YAML: {what}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not valid YAML: {str(error).splitlines()[0]}") from error
    if tree.faults:
        raise ConfigError("\n".join(tree.faults))
    return Source(values, raw, tree.lines, tree.secrets)
