"""The most that one step of a run keeps for its backward pass, remembered beside the run, which may be interrupted."""

from __future__ import annotations

import json
from pathlib import Path

from frozenlm.checkpoint import atomic_write_json
from frozenlm.train_state import STATE_NAME

NAME = "saved_bytes.json"


class KeptBytes:
    """Told each step's bytes, it knows the most of all steps, those before an interruption among them.

    run: folder of the training state; without a state in it, or with `restart`, what is remembered there is forgotten
    """

    def __init__(self, run: Path, *, restart: bool) -> None:
        self._file = run / NAME
        self.most = None if restart or not (run / STATE_NAME).exists() else self._remembered()

    def add(self, count: int) -> None:
        """Count a step.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        if self.most is None or count > self.most:
            self.most = count
            atomic_write_json(self._file, {"most": count})

    def _remembered(self) -> int | None:
        try:
            most = json.loads(self._file.read_bytes())["most"]
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return most if type(most) is int else None
