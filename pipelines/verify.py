"""`frozenlm verify`: is anything that frozenlm wrote damaged? Index, module, evaluation, training state, workspace.

What a folder holds is told by its marker file. An index or evaluation is checked against its SHA-256 list, a module or
training state against its own digest. Files without a checksum of ours are only read through; the finding says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import CheckpointError, ConfigError
from pipelines.evaluation.outputs import CHECKSUMS, METRICS, PREDICTIONS, RUN
from retrievers.errors import RetrievalError
from retrievers.files import sha256_file, sha256_json
from retrievers.manifest import MANIFEST, Manifest

MODULE, PARTS = "module.json", "tuned.json"
PART_NAMES = ("head", "slots", "verbalizer")  # one of them is in every folder of modules that were trained together


@dataclass(frozen=True)
class Finding:
    """One file or folder: what it is, and what is wrong with it (None: nothing)."""

    path: Path
    kind: str
    problem: str | None = None


def verify(path: Path | str) -> Iterator[Finding]:
    """Check an artefact, or every artefact below a folder.

    Raises:
        ConfigError: there is nothing at `path`, or nothing that frozenlm writes.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise ConfigError(f"there is nothing at {path}")
    found = False
    for finding in _folder(path.absolute()) if path.is_dir() else _file(path):
        found = True
        yield finding
    if not found:
        raise ConfigError(
            f"{path} holds nothing that frozenlm writes; name an index, a module, an evaluation or a workspace"
        )


def _folder(folder: Path) -> Iterator[Finding]:
    inside_index = folder.parent.name == "index"
    if folder.name.endswith(".building"):
        yield Finding(folder, "unfinished index, continued by the next build")
    elif folder.parent.name == "candidates" and (folder / RUN).exists():
        yield from _candidates(folder)
    elif (folder / MANIFEST).exists() or inside_index:
        yield from _index(folder)
    elif (folder / MODULE).exists():
        yield from _module(folder)
    elif (folder / PARTS).exists() or any((folder / name / MODULE).exists() for name in PART_NAMES):
        yield _parts(folder)
    elif (folder / RUN).exists() or (folder / METRICS).exists():
        yield from _evaluation(folder)
    elif folder.parent.name == "modules" and not folder.name.endswith(".run"):
        yield Finding(folder, "module", f"neither {MODULE} nor {MANIFEST} in it; train it again")
    else:
        for path in sorted(folder.iterdir()):
            if path.is_symlink():
                yield Finding(path, "link, not followed")
            elif path.is_dir():
                yield from _folder(path)
            else:
                yield from _file(path)


def _index(folder: Path) -> Iterator[Finding]:
    try:
        manifest = Manifest.verify(folder)
    except (RetrievalError, OSError) as error:
        yield Finding(folder, "index", str(error))
        return
    for name in manifest.files:
        yield Finding(folder / name, manifest.kind)
    yield Finding(folder / MANIFEST, f"{manifest.kind}, manifest")


def _module(folder: Path) -> Iterator[Finding]:
    from frozenlm.checkpoint import verify_module

    try:
        info = verify_module(folder)
    except (CheckpointError, OSError) as error:
        yield Finding(folder, "module", str(error))
    else:
        yield Finding(folder, info.kind)


def _parts(folder: Path) -> Finding:
    from frozenlm.saved_parts import verify_parts

    try:
        kinds = verify_parts(folder)
    except (CheckpointError, OSError) as error:
        return Finding(folder, "modules trained together", str(error))
    return Finding(folder, " and ".join(f"{name}: {kind}" for name, kind in kinds.items()))


def _candidates(folder: Path) -> Iterator[Finding]:
    from frozenlm.recursion.crossfit import read_candidates

    if not (folder / MANIFEST).exists():
        yield Finding(folder, "unfinished candidates, continued by the next training")
        return
    try:
        read_candidates(folder)
    except (CheckpointError, OSError) as error:
        yield Finding(folder, "candidates", str(error))
    else:
        yield Finding(folder, "candidates of a second pass")


def _evaluation(folder: Path) -> Iterator[Finding]:
    if not (folder / METRICS).exists():
        yield from _unfinished(folder)
        return
    kind = "evaluation"
    try:
        content = json.loads((folder / CHECKSUMS).read_bytes())
        hashes: dict[str, str] = dict(content["files"])
        whole = sha256_json(hashes) == content["sha256"] and not any(Path(name).name != name for name in hashes)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        yield Finding(folder / CHECKSUMS, kind, "missing or damaged; nothing can be said of the other files")
        return
    yield Finding(folder / CHECKSUMS, kind)
    for name, expected in hashes.items():
        path = folder / name
        if path.is_symlink() or not path.is_file():
            yield Finding(path, kind, "missing; evaluate again with --restart")
        elif sha256_file(path) != expected:
            yield Finding(path, kind, f"its SHA-256 is not the one in {CHECKSUMS}; evaluate again with --restart")
        else:
            yield Finding(path, kind)


def _unfinished(folder: Path) -> Iterator[Finding]:
    """A kill may leave a last line that is torn: the next run mends it."""
    kind = "unfinished evaluation"
    for name in (RUN, PREDICTIONS):
        for finding in _file(folder / name) if (folder / name).exists() else ():
            torn = finding.problem is not None and name == PREDICTIONS and _whole_but_for_its_end(finding.path)
            yield Finding(finding.path, f"{kind}, last line torn" if torn else kind, None if torn else finding.problem)


def _whole_but_for_its_end(path: Path) -> bool:
    *lines, end = path.read_bytes().split(b"\n")
    try:
        return end != b"" and all(isinstance(json.loads(line), dict) for line in lines)
    except (ValueError, RecursionError):
        return False


def _file(path: Path) -> Iterator[Finding]:
    check = _CHECKS.get(path.suffix)
    if check is None or path.name.startswith("."):
        return
    try:
        yield Finding(path, check(path))
    except (CheckpointError, OSError, ValueError, RecursionError) as error:
        yield Finding(path, path.suffix.removeprefix("."), f"{error}")


def _tensors(path: Path) -> str:
    from frozenlm.checkpoint import parse_safetensors
    from frozenlm.tensor_file import read_tensors

    if any((path.parent / name).exists() for name in ("config.json", "adapter_config.json")):
        parse_safetensors(path.read_bytes(), path)
        return "weights of a model folder, no checksum"
    read_tensors(path)
    return "tensors with digest"


def _json(path: Path) -> str:
    json.loads(path.read_bytes())
    return "JSON, no checksum"


def _json_lines(path: Path) -> str:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number} is no JSON: {error}") from error
    return "JSON lines, no checksum"


_CHECKS: dict[str, Callable[[Any], str]] = {".safetensors": _tensors, ".json": _json, ".jsonl": _json_lines}
