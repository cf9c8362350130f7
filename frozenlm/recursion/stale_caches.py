"""Which pass-1 caches are still of use: those that the last start of some run has read.

Our choice: a run leaves an empty file `<run>.run` in the cache it reads. When its cache is complete and another one in
the same folder bears its mark too, that one is of other data or of another LM, and the mark is taken off. A cache that
has lost its last mark is removed. Caches that no run has marked, and files that are not a cache's, are never touched.
"""

import re
from pathlib import Path

from frozenlm.errors import CheckpointError, ConfigError
from frozenlm.tensor_file import clear_temporaries

SHARDS = "rows-*.safetensors"


def check_run(run: str) -> None:
    """Raises ConfigError for the name of a run that cannot be that of a file."""
    if not re.fullmatch(r"[\w][\w.-]*", run):
        raise ConfigError(f"the run of a pass-1 cache is called {run!r}; use letters, digits and . _ - only")


def mark(cache: Path, run: str) -> None:
    """Says that a run reads this cache; done before its first file is written, so that none is nobody's.

    Raises: CheckpointError when the folder cannot be written.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _mark(cache, run).touch()
    except OSError as error:
        raise CheckpointError(f"could not write {cache}: {error}; expected a writable folder") from error


def remove_others(cache: Path, run: str) -> list[Path]:
    """Takes the run's mark off the caches beside `cache`, which is complete. Returns the caches removed."""
    removed = []
    for other in sorted(cache.parent.iterdir()):
        ours = re.fullmatch(r"[0-9a-f]{32}", other.name) and not other.is_symlink() and _mark(other, run).is_file()
        if other == cache or not ours:
            continue
        if [path for path in other.glob("*.run") if path != _mark(other, run)]:
            _mark(other, run).unlink(missing_ok=True)
            continue
        clear_temporaries(other)
        for path in other.glob(SHARDS):
            path.unlink(missing_ok=True)
        _mark(other, run).unlink(missing_ok=True)  # last: a kill before leaves a mark to go on from
        if not any(other.iterdir()):
            other.rmdir()
        removed.append(other)
    return removed


def _mark(cache: Path, run: str) -> Path:
    return cache / f"{run}.run"
