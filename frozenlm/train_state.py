"""The folder of a training run: its state, and the best weights so far.

`state.safetensors` holds the module, the optimizer as tensors and numbers (no pickle) and a JSON record; it is replaced
in one rename. `best-<step>.safetensors` is written before a state points to it and removed after none does, so that a
kill at any moment leaves a state whose best weights are there.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from frozenlm.errors import CheckpointError, ConfigError
from frozenlm.optim import optimizer_state, restore_optimizer
from frozenlm.tensor_file import clear_temporaries, read_tensors, write_tensors
from frozenlm.train_settings import differences

STATE_NAME = "state.safetensors"


@dataclass
class Record:
    """What is saved beside the tensors; plain JSON values only.

    step: optimizer steps done
    bad_evaluations: evaluations in a row without a better score
    loss_sum, loss_steps: of the steps since the last history entry
    threads: torch's CPU threads when the run began; with another number sums end in other bits. 0: not known
    """

    step: int = 0
    finished: bool = False
    stopped_early: bool = False
    best_step: int = 0
    best_score: float | None = None
    bad_evaluations: int = 0
    loss_sum: float = 0.0
    loss_steps: int = 0
    seconds: float = 0.0
    step_seconds: float = 0.0
    threads: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


class RunFolder:
    """Saves and takes up one run.

    folder: where; holds one run only
    identity: JSON values that a resumed run must share with the saved one
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        # Through JSON once, so that a tuple equals the list it is read back as.
        self.identity: dict[str, Any] = json.loads(json.dumps(identity))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from training into the folder; the system ends it with this process.

        Raises: ConfigError when another one trains there; CheckpointError when the folder cannot be made or locked.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.folder, os.O_RDONLY)
        except OSError as error:
            raise CheckpointError(f"cannot train into {self.folder}: {error}; expected a writable folder") from error
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    f"another process trains into {self.folder}; wait for it, or train into another folder"
                ) from None
            except OSError as error:
                raise CheckpointError(
                    f"cannot lock {self.folder}: {error}; train into a file system with locks"
                ) from error
            yield
        finally:
            os.close(handle)

    @property
    def has_state(self) -> bool:
        """Whether a run was saved here."""
        return (self.folder / STATE_NAME).exists()

    def save(self, module: nn.Module, optimizer: torch.optim.Optimizer, record: Record) -> None:
        """Replaces the state. A finished run keeps its weights only: there is nothing left to step.

        Raises: CheckpointError when the folder cannot be written; the state before stays.
        """
        tensors = _prefixed("module", module.state_dict())
        numbers: dict[str, Any] = {}
        if not record.finished:
            moments, numbers = optimizer_state(module, optimizer)
            tensors |= _prefixed("optimizer", moments)
        content = {"identity": self.identity, "record": vars(record), "optimizer": numbers}
        write_tensors(self.folder / STATE_NAME, tensors, content)
        for path in self.folder.glob("best-*.safetensors"):
            if path != self._best(record.best_step):
                path.unlink()

    def load(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> Record | None:
        """Puts the saved state into module and optimizer; None when there is none.

        Raises: ConfigError when the saved run has another identity; CheckpointError when the state is damaged.
        """
        clear_temporaries(self.folder)
        if not self.has_state:
            return None
        path = self.folder / STATE_NAME
        tensors, content = read_tensors(path)
        changed = differences(content["identity"], self.identity)
        if changed:
            raise ConfigError(
                f"{self.folder} holds a run with other settings, at step {content['record']['step']}:\n  "
                + "\n  ".join(changed)
                + "\nset these back, train into another folder, or discard that run (restart=True, --restart)"
            )
        _load_module(module, tensors, path)
        restore_optimizer(module, optimizer, _under("optimizer", tensors), content["optimizer"])
        return Record(**content["record"])

    def save_best(self, module: nn.Module, step: int) -> None:
        """Keeps the module's weights as those of `step`.

        Raises: CheckpointError when the folder cannot be written.
        """
        write_tensors(self._best(step), _prefixed("module", module.state_dict()), {"identity": self.identity})

    def load_best(self, module: nn.Module, step: int) -> None:
        """Puts the weights of `step` into the module.

        Raises: CheckpointError when they are missing or damaged.
        """
        tensors, _ = read_tensors(self._best(step))
        _load_module(module, tensors, self._best(step))

    def discard(self) -> None:
        """Removes the run, and nothing else that lies in the folder."""
        for path in [self.folder / STATE_NAME, *self.folder.glob("best-*.safetensors")]:
            path.unlink(missing_ok=True)
        clear_temporaries(self.folder)

    def _best(self, step: int) -> Path:
        return self.folder / f"best-{step:08d}.safetensors"


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}/"): t for name, t in tensors.items() if name.startswith(f"{prefix}/")}


def _load_module(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    try:
        module.load_state_dict(_under("module", tensors))
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit {type(module).__name__}: {error}") from error
