"""What every config file has, whatever its kind."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PrivateAttr

from pipelines.config_values import Block, Count


class Job(Block):
    """What every config has."""

    extends: str | None = None
    seed: Count = 0
    workspace: Annotated[str, Field(min_length=1)] = "runs/default"
    _source: Any = PrivateAttr(
        default=None
    )  # what `loader.py` read; `as_written` needs it to keep secrets out of results

    @property
    def workspace_path(self) -> Path:
        """The folder below which everything that is built goes, absolute."""
        return Path(self.workspace).expanduser().absolute()
