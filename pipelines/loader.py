"""A YAML file, a packaged config's name, a mapping or a config object to one validated config, or to all of its faults.

Reading has no side effects: nothing is built, no folder made, no environment touched.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipelines.assets import config_folder, packaged_configs
from pipelines.config import CONFIG, Job
from pipelines.errors import ConfigError
from pipelines.explain import explain
from pipelines.yaml_source import MAX_CHARACTERS, MAX_DEPTH, MAX_VALUES, Source, Where, parse

MAX_PARENTS = 8


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
        secrets = source._source.secrets if source._source else {}
        tree = Source(source.model_dump(by_alias=True, exclude_unset=True), as_written(source), secrets=dict(secrets))
    elif isinstance(source, Mapping):
        tree = _from_mapping(source)
    elif isinstance(source, str | Path):
        tree = _read(find_config(source))
    else:
        raise ConfigError(
            f"a config is a path, a packaged config's name, a mapping or a config object, got {type(source).__name__}"
        )
    for override in overrides:
        _override(tree, override)
    try:
        config = CONFIG.validate_python(tree.values)
    except ValidationError as error:
        raise ConfigError(explain(tree, error)) from None  # its text would show what environment variables hold
    config._source = tree
    return config


def as_written(config: Job) -> dict[str, Any]:
    """The config for a result file: what was set, paths made absolute, `${env:NAME}` as written."""
    dumped = config.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return _unfill(dumped, config._source.values, config._source.raw) if config._source else dumped


def find_config(source: str | Path) -> Path:
    """The file that `source` names: a path, or else a packaged config.

    Raises:
        ConfigError: neither exists; the message lists the packaged names that come near.
    """
    packaged = _packaged(source)
    try:
        path = Path(source).expanduser()
        if path.is_file():
            return path
        is_folder = path.is_dir()
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"no config file {str(source)[:200]!r}: {error}") from error
    if packaged:
        return packaged
    if is_folder:
        raise ConfigError(f"{path} is a folder; name the YAML file in it")
    names = packaged_configs()
    near = difflib.get_close_matches(str(source), names, n=3) or names
    raise ConfigError(
        f"no config file {str(source)!r}: no such file from {Path.cwd()}, and the packaged ones are {', '.join(near)}"
    )


def _packaged(name: str | Path) -> Path | None:
    return config_folder() / name if str(name) in packaged_configs() else None


def _read(path: Path, seen: tuple[Path, ...] = ()) -> Source:
    """One file and its parents, merged."""
    try:
        path = path.resolve()
        if path in seen:
            chain = " -> ".join(p.name for p in (*seen, path))
            raise ConfigError(f"{path}: extends itself through {chain}; break the circle")
        if len(seen) > MAX_PARENTS:
            raise ConfigError(f"{path}: more than {MAX_PARENTS} parents; flatten the chain of extends")
        if (size := path.stat().st_size) > 4 * MAX_CHARACTERS:
            raise ConfigError(f"{path}: {size:,} bytes, far more than any config has; is this the right file?")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    own = parse(text, str(path), path.parent)
    if own.values is None:
        raise ConfigError(f"{path}: the file is empty; a config needs at least `kind:`")
    if not isinstance(own.values, dict):
        got = "a list" if isinstance(own.values, list) else "a single value"
        raise ConfigError(f"{path}:1: a config is a mapping of keys to values, got {got}")
    parent = own.values.get("extends")
    if parent is None:
        return own
    return _merged(_read(_parent_file(path, parent, own.lines[("extends",)]), (*seen, path)), own)


def _parent_file(path: Path, parent: Any, line: str) -> Path:
    """The file that `extends: parent` of `path` names: beside it, or else a packaged one."""
    if not isinstance(parent, str):
        raise ConfigError(f"{line}: extends names one file, got {parent!r}")
    target = path.parent / parent
    try:
        found = target if target.is_file() else _packaged(parent)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{line}: extends {str(parent)[:200]!r}: {error.args[-1]}") from error
    if found is None:
        raise ConfigError(
            f"{line}: extends {str(parent)!r}, but there is no file {target} and no packaged config of this name"
        )
    return found


def _from_mapping(mapping: Mapping[str, Any]) -> Source:
    """A mapping of the caller's; relative paths start from the current directory and `${env:...}` is not filled in."""
    count = 0

    def plain(value: Any, depth: int) -> Any:
        nonlocal count
        count += 1
        if count > MAX_VALUES or depth > MAX_DEPTH:
            raise ConfigError(f"the config has more than {MAX_VALUES:,} values or {MAX_DEPTH} levels; write it flat")
        if isinstance(value, Mapping):
            return {key: plain(inner, depth + 1) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [plain(inner, depth + 1) for inner in value]
        return value

    own = Source(plain(mapping, 0), plain(mapping, 0))
    if (parent := own.values.get("extends")) is None:
        return own
    if not isinstance(parent, str | Path):
        raise ConfigError(f"config: extends names one file, got {parent!r}")
    return _merged(_read(find_config(parent)), own)


def _merged(parent: Source, child: Source) -> Source:
    values, raw = _merge(parent.values, child.values), _merge(parent.raw, child.raw)
    return Source(values, raw, parent.lines | child.lines, parent.secrets | child.secrets)


def _merge(parent: dict[str, Any], child: dict[str, Any]) -> dict[str, Any]:
    """The child's keys win; mappings merge key by key, but where `kind` changes the child's block stands alone."""
    merged = dict(parent)
    for key, value in child.items():
        old = merged.get(key)
        merged[key] = value
        if isinstance(old, dict) and isinstance(value, dict) and value.get("kind", old.get("kind")) == old.get("kind"):
            merged[key] = _merge(old, value)
    return merged


def _override(tree: Source, override: str) -> None:
    """Set one `a.b=c` in place; the value is read as YAML."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"override {override[:200]!r}: expected a.b.c=value")
    label = f"--set {path.strip()[:200]}"
    if not text.strip():
        raise ConfigError(f"{label}: no value; write {path.strip()}=null to clear it")
    if len(keys) > MAX_DEPTH:
        raise ConfigError(f"{label}: {len(keys)} levels, a config has at most {MAX_DEPTH}")
    parsed = parse(text.strip(), label, None, numbered=False)
    _set(tree.values, keys, parsed.values, label)
    where = _set(tree.raw, keys, parsed.raw, label)
    tree.lines = {w: line for w, line in tree.lines.items() if w[: len(where)] != where}
    for n in range(1, len(where) + 1):
        tree.lines.setdefault(where[:n], label)
    tree.secrets |= parsed.secrets


def _set(node: Any, keys: Sequence[str], value: Any, label: str) -> Where:
    """Put `value` at `keys` below `node`, making blocks on the way; whether such a key may be, the validation says."""
    where: list[str | int] = []
    for depth, key in enumerate(keys):
        step: str | int = key
        name = ".".join(keys[:depth])
        if isinstance(node, list):
            if not (key.isascii() and key.isdigit() and int(key[:9]) < len(node)):
                raise ConfigError(f"{label}: {name} has {len(node)} entries, counted from 0; got index {key!r}")
            step = int(key)
        elif not isinstance(node, dict):
            raise ConfigError(f"{label}: {name} is a single value, nothing can be set inside it")
        where.append(step)
        if depth == len(keys) - 1:
            node[step] = value
        elif isinstance(node, dict) and node.get(key) is None:
            node[key] = {}
        node = node[step]
    return tuple(where)


def _unfill(dumped: Any, values: Any, raw: Any) -> Any:
    """`dumped` with the text of `raw` wherever `values` differs from it by a filled-in environment variable."""
    if isinstance(dumped, dict) and isinstance(values, dict) and isinstance(raw, dict):
        return {key: _unfill(value, values.get(key), raw.get(key)) for key, value in dumped.items()}
    if isinstance(dumped, list) and isinstance(values, list) and isinstance(raw, list) and len(dumped) == len(raw):
        return [_unfill(*three) for three in zip(dumped, values, raw, strict=True)]
    filled = isinstance(raw, str) and "${env:" in raw and raw != values
    return raw if filled else dumped


__all__ = ["as_written", "find_config", "load_config"]
