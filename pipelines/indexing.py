"""`frozenlm index`: build every index that a config's retriever needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.build import Log, build_index, indexed_members
from pipelines.config import retrieves
from pipelines.errors import ConfigError


def build_indexes(config: Any, *, rebuild: bool = False, log: Log = lambda _: None) -> list[Path]:
    """Build what is missing, or everything with `rebuild`; an interrupted build goes on where it stopped.

    Returns:
        The index folders, one a retriever of kind bm25 or dense.

    Raises:
        ConfigError: the config has no retriever that is built from a corpus.
        CorpusError, RetrieverError: the corpus cannot be read, the index cannot be written.
    """
    members = indexed_members(config.retriever) if retrieves(config) else []
    if not members:
        has = "with this retriever" if retrieves(config) else "has no retriever and"
        raise ConfigError(f"a config of kind {config.kind} {has} needs no index; there is nothing to build")
    return [build_index(config, member, rebuild=rebuild, log=log) for member in members]
