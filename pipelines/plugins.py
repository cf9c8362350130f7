"""Retrievers of a user's own, found by name: an entry point in the group `frozenlm.retrievers`, or `module:Class`.

A config file alone can never import code: an entry point was installed by somebody, `module:Class` needs
`allow_import=True` from the caller.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.errors import ConfigError, FrozenLMError, RetrieverError
from pipelines.suggest import did_you_mean

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from retrievers.types import Retriever

GROUP = "frozenlm.retrievers"
BUILT_IN_RETRIEVERS = ("bm25", "dense", "hybrid", "precomputed")


@dataclass(frozen=True)
class PluginInfo:
    """One installed plug-in: `distribution` is name and version, `problem` why it does not load, None where it does."""

    name: str
    target: str
    distribution: str
    problem: str | None


def known_retrievers() -> list[str]:
    """Every name that `retriever.kind` may hold: the built-in ones, then the installed plug-ins."""
    return [*BUILT_IN_RETRIEVERS, *sorted({entry.name for entry in _entry_points()} - set(BUILT_IN_RETRIEVERS))]


def check_kind(kind: str) -> None:
    """Say whether `kind` can name a retriever, importing nothing.

    Raises:
        ConfigError: neither a known name nor of the form `module:Class`.
    """
    if ":" in kind:
        _split(kind)
    elif kind not in (known := known_retrievers()):
        raise ConfigError(
            f"there is no retriever {kind[:100]!r}{did_you_mean(kind, known)} (one of your own is found by "
            f"its entry point's name in the group {GROUP!r} or as module:Class)"
        )


def resolve_retriever(kind: str, params: Mapping[str, Any], *, allow_import: bool = False) -> Retriever:
    """Find and make the retriever that a config names.

    Args:
        kind: an entry point's name, or `module:Class`.
        params: keyword arguments for the class or factory.
        allow_import: whether `module:Class` may be imported.

    Raises:
        ConfigError: unknown name, import not allowed or failed, or parameters that do not fit the signature.
        RetrieverError: the plug-in raised while it was made, or what it made has no `retrieve`.
    """
    check_kind(kind)
    factory = _import(kind, allow_import) if ":" in kind else _load(_find(kind))
    if not callable(factory):
        raise ConfigError(
            f"retriever plug-in {kind!r} is {factory!r}; expected a class or a function that makes a retriever"
        )
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # some classes written in C tell nothing
        signature = None
    if signature is not None:
        try:
            signature.bind(**params)
        except TypeError as error:
            shown = f"{kind}{signature}"
            raise ConfigError(
                f"retriever plug-in {kind!r} does not take these params: {error}; it is {shown}"
            ) from error
    try:
        retriever = factory(**params)
    except FrozenLMError:
        raise
    except Exception as error:
        message = f"retriever plug-in {kind!r} failed while it was made: {type(error).__name__}: {error}"
        raise RetrieverError(message) from error
    if not callable(getattr(retriever, "retrieve", None)):
        raise RetrieverError(
            f"retriever plug-in {kind!r} made a {type(retriever).__name__} without a method "
            "retrieve(queries, k); see docs/custom_retriever.md"
        )
    return retriever


def installed_plugins() -> list[PluginInfo]:
    """Every entry point of the group with its distribution, and whether it loads (each one is imported for that)."""
    infos = []
    for entry in sorted(_entry_points(), key=lambda entry: entry.name):
        problem: str | None = None
        try:
            if not callable(_load(entry)):
                problem = "is neither a class nor a function"
        except ConfigError as error:
            problem = str(error)
        if entry.name in BUILT_IN_RETRIEVERS:
            problem = "never used: a built-in retriever has this name"
        infos.append(PluginInfo(entry.name, entry.value, _distribution(entry), problem))
    return infos


def _entry_points() -> list[EntryPoint]:
    from importlib.metadata import entry_points

    return list(entry_points(group=GROUP))


def _distribution(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "unknown distribution"


def _find(name: str) -> EntryPoint:
    found = {(entry.value, _distribution(entry)): entry for entry in _entry_points() if entry.name == name}
    if len(found) > 1:
        owners = ", ".join(sorted(f"{value} of {owner}" for value, owner in found))
        raise ConfigError(f"several installed plug-ins are called {name!r}: {owners}; uninstall all but one")
    return next(iter(found.values()))


def _load(entry: EntryPoint) -> Any:
    try:
        return entry.load()
    except Exception as error:
        raise ConfigError(
            f"retriever plug-in {entry.name!r} ({entry.value}, {_distribution(entry)}) cannot be loaded: "
            f"{type(error).__name__}: {error}"
        ) from error


def _split(kind: str) -> tuple[str, str]:
    module, _, name = kind.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), *name.split("."))):
        raise ConfigError(f"{kind[:100]!r} is not of the form module:Class, such as my_package.search:MyRetriever")
    return module, name


def _import(kind: str, allowed: bool) -> Any:
    import importlib

    module, name = _split(kind)
    if not allowed:
        raise ConfigError(
            f"retriever {kind!r} would import code named by a config file; if you trust it, pass allow_import=True "
            "(Python) or --allow-import (command line)"
        )
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:
        raise ConfigError(f"retriever {kind!r} cannot be imported: {type(error).__name__}: {error}") from error
    return found
