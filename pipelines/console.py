"""Where the command line's words go: results to standard output, all else to standard error, errors as one message."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable

from rich.console import Console

FAILED, WRONG_USE, BUG, INTERRUPTED = 1, 2, 70, 130
FILE_WIDTH = 120
_OUT_OF_MEMORY = re.compile("can't allocate memory|out of memory", re.IGNORECASE)  # torch's words for it


def report(error: Exception) -> int:
    """Say what went wrong in one message, and choose the exit code."""
    from pipelines.errors import ConfigError, FrozenLMError
    from retrievers.errors import RetrievalError

    if isinstance(error, FrozenLMError | RetrievalError):
        show_error(str(error))
        return WRONG_USE if isinstance(error, ConfigError) else FAILED
    if isinstance(error, OSError) and error.errno is not None:
        where = f": {error.filename}" if error.filename else ""
        hint = "; make room and run the same command again" if error.errno == errno.ENOSPC else ""
        show_error(f"{error.strerror}{where}{hint}")
        return FAILED
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error))):
        show_error("out of memory; use a smaller model or module, a smaller batch or a machine with more memory")
        return FAILED
    show_error(
        f"this is a bug of frozenlm's, please report it: {type(error).__name__}: {error}\n"
        "run again with --debug for the traceback"
    )
    return BUG


def interrupted() -> int:
    """Say that nothing is lost."""
    show_error("interrupted; run the same command again to resume")
    return INTERRUPTED


def show_error(message: str) -> None:
    """One red message on standard error."""
    Console(stderr=True, soft_wrap=True).print(f"error: {message}", style="red", markup=False, highlight=False)


def results() -> Console:
    """Standard output; a file or a pipe gets lines of `FILE_WIDTH` characters."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else FILE_WIDTH
    return Console(file=sys.stdout, width=width)


def logger(quiet: bool) -> Callable[[str], None]:
    """Tells on standard error what is done; silent where `quiet`."""
    console = Console(stderr=True, soft_wrap=True)
    return (lambda _: None) if quiet else lambda text: console.print(text, markup=False, highlight=False)


def hush(quiet: bool) -> None:
    """Keep the libraries' own progress bars out of logs; call it before they are imported."""
    if quiet or not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
