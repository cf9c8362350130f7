"""A run and its user: a bar on a terminal, a line now and then elsewhere, trackers, and Ctrl-C."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frozenlm.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from accelerate import Accelerator

LINE_SECONDS = 30.0


class TrainProgress:
    """Shows steps done, loss and time left.

    total: steps of the whole run
    start: steps already done when this process began
    log: gets the lines where there is no terminal
    """

    def __init__(self, total: int, start: int, *, enabled: bool, log: Callable[[str], None]) -> None:
        self.total, self.start, self.log = total, start, log
        self.began = self.last_line = time.monotonic()
        self.enabled = enabled
        self.bar: Any = None
        if enabled and sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            self.bar = progress.Progress(
                progress.TextColumn("training"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TextColumn("loss {task.fields[loss]:.4f}"),
                progress.TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self.task = self.bar.add_task("training", total=total, completed=start, loss=float("nan"))
            self.bar.start()

    def update(self, step: int, loss: float, rate: float) -> None:
        """Shows the state after `step` steps; loss in nats per answer token."""
        if self.bar is not None:
            self.bar.update(self.task, completed=step, loss=loss)
            return
        now = time.monotonic()
        tenth = max(1, self.total // 10)
        if self.enabled and (now - self.last_line > LINE_SECONDS or step % tenth == 0 or step == self.total):
            self.last_line = now
            left = (now - self.began) / max(1, step - self.start) * (self.total - step)
            eta = timedelta(seconds=round(left))
            self.log(f"step {step}/{self.total}  loss {loss:.4f}  rate {rate:.3g}  time left {eta}")

    def close(self) -> None:
        """Takes the bar off the terminal."""
        if self.bar is not None:
            self.bar.stop()


def make_accelerator(trackers: Sequence[str], out: Path, settings: dict[str, Any]) -> "Accelerator":
    """accelerate's handle on processes, devices and trackers, with the trackers started.

    Raises: MissingExtraError when a tracker's package is not installed; ConfigError for a tracker accelerate lacks.
    """
    if "tensorboard" in trackers and not (find_spec("tensorboard") or find_spec("tensorboardX")):
        raise MissingExtraError(
            'the tracker "tensorboard" needs the package tensorboard, which is not installed; '
            'run: pip install "frozenlm[tensorboard]", or leave the tracker out'
        )
    from accelerate import Accelerator
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    for name in trackers:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise ConfigError(f"unknown tracker {name!r}; expected one of {sorted(LOGGER_TYPE_TO_CLASS)}")
    accelerator = Accelerator(log_with=list(trackers) or None, project_dir=out)
    if trackers:
        plain = {key: value for key, value in settings.items() if isinstance(value, int | float | str)}
        accelerator.init_trackers("frozenlm", config=plain)
    return accelerator


@dataclass
class StopRequest:
    """Whether the user has asked the run to stop after its step."""

    requested: bool = False


@contextmanager
def delayed_interrupt(log: Callable[[str], None], *, enabled: bool) -> Iterator[StopRequest]:
    """Turns the first Ctrl-C into a request, since an optimizer that is interrupted is half updated.

    enabled: off where several processes run, which would stop at different steps and wait for each other for ever
    """
    stop = StopRequest()
    if not enabled or threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.getsignal(signal.SIGINT)

    def request(signum: int, frame: object) -> None:
        stop.requested = True
        signal.signal(signal.SIGINT, before)
        log("Ctrl-C: finishing this step, then saving; press it again to stop at once without saving")

    signal.signal(signal.SIGINT, request)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
