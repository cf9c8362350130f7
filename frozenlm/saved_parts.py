"""Modules that were trained together, in one folder: a subfolder for each, and a file that ties them.

A kill between two of them, or a part from another training, leaves a folder that is refused.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from frozenlm.checkpoint import MODULE_FILE, REMEDY, atomic_write_json, verify_module
from frozenlm.errors import CheckpointError

PARTS_FILE = "tuned.json"


def save_parts(folder: Path | str, parts: Mapping[str, Any], host: Any) -> None:
    """Writes each part into its subfolder, and then what ties them.

    parts: name -> what saves itself by `save(folder, host)`

    Raises: CheckpointError when one holds non-finite or huge numbers, or the folder cannot be written.
    """
    folder = Path(folder)
    for name, part in parts.items():
        part.save(folder / name, host)
    atomic_write_json(folder / PARTS_FILE, _digests(folder, parts))


def verify_parts(folder: Path | str) -> dict[str, str]:
    """Checks all parts without using them. Returns name -> kind of module.

    Raises: CheckpointError when a part is missing, damaged or of another training.
    """
    folder = Path(folder)
    try:
        tied = json.loads((folder / PARTS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder / PARTS_FILE} cannot be read ({error}); {REMEDY}") from error
    if not isinstance(tied, dict) or not tied or not all(name.isidentifier() for name in tied):
        raise CheckpointError(f"{folder / PARTS_FILE} is damaged: expected the names of parts; {REMEDY}")
    kinds = {name: verify_module(folder / name).kind for name in tied}
    if tied != _digests(folder, tied):
        raise CheckpointError(f"{' and '.join(tied)} in {folder} are not of one training; {REMEDY}")
    return kinds


def check_parts(folder: Path | str, wanted: Iterable[str]) -> dict[str, str]:
    """`verify_parts`, where exactly these parts are to be there.

    Raises: CheckpointError when it holds others; as `verify_parts`.
    """
    kinds, wanted = verify_parts(folder), sorted(wanted)
    if sorted(kinds) != wanted:
        raise CheckpointError(
            f"{folder} holds {' and '.join(sorted(kinds))}, and {' and '.join(wanted)} was asked for; ask for what was "
            "saved, or train it again"
        )
    return kinds


def _digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of each part's own file of checksums."""
    return {name: hashlib.sha256((folder / name / MODULE_FILE).read_bytes()).hexdigest() for name in names}
