"""What a folder of results is of: one comparison, to which methods, tasks and seeds may be added, around one model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.build import frozen_encoder, frozen_lm
from pipelines.comparison.results import Result, read_results
from pipelines.config import ComparedMethod, MethodComparison, TaskBlock
from pipelines.config_tasks import Records
from pipelines.errors import ConfigError
from pipelines.tasks.spec import SPLITS
from retrievers.files import sha256_file, sha256_json

COMPARISON = "comparison.json"
_SHARED = ("lm", "encoder", "input", "generation", "training", "evaluation")  # by all runs
_ENCODER = "encoder"


def check_identity(config: MethodComparison, out: Path) -> None:
    """Hold a comparison against what the folder has results of, and remember it there.

    Raises:
        ConfigError: a task's file is missing, which is said before anything is written; the folder is a file, holds
            results of other settings or of other weights, or a damaged file.
    """
    from frozenlm.checkpoint import atomic_write_json

    parts = _parts(config)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; the results need a folder")
    out.mkdir(parents=True, exist_ok=True)
    path, settings = out / COMPARISON, config.model_dump(mode="json", include=set(_SHARED))
    if config.lm is not None:
        settings[_ENCODER] = None  # beside an LM it is a part: methods that need one may come later
    now, results = sha256_json(settings), read_results(out)
    there = _identity_in(path) if path.exists() else None
    if there is not None:
        if there["settings_sha256"] != now:
            raise ConfigError(
                f"{out} holds a comparison with another LM, input, training or evaluation; use another folder, or "
                "delete it"
            )
        before, used = there.get("parts", {}), _used(results)
        if changed := [name for name in parts if name in used and before.get(name, parts[name]) != parts[name]]:
            raise ConfigError(
                f"{out} holds results of another {changed[0]}; set it back, give it another name, or use another folder"
            )
        parts = before | parts
    _check_weights(config, results, out)
    if there is None or parts != there.get("parts"):
        atomic_write_json(path, {"settings_sha256": now, "settings": settings, "parts": parts})


def _check_weights(config: MethodComparison, results: Sequence[Result], out: Path) -> None:
    """A path says nothing about the weights that lie there. Lines of earlier versions do not either, and are let be."""
    there = {result["lm_fingerprint"] for result in results if result.get("lm_fingerprint") is not None}
    if not there:
        return
    host: Any = frozen_encoder(config.encoder) if config.lm is None else frozen_lm(config.lm)  # type: ignore[arg-type]
    if others := sorted(there - {host.fingerprint}):
        what = "encoder" if config.lm is None else "LM"
        raise ConfigError(
            f"{out} holds results of other weights: there the {what}'s fingerprint is {others[0][:16]}..., the one at "
            f"hand has {host.fingerprint[:16]}...; put the weights back, or use another folder"
        )


def _used(results: Sequence[Result]) -> set[str]:
    """The parts that there are results of, by the names of `_parts`."""
    of_each = [(f"method {one['method']!r}", f"task {one['task']!r}") for one in results]
    common = {"seed", "surface", "transfer", _ENCODER}
    return {name for names in of_each for name in names} | (common if results else set())


def _parts(config: MethodComparison) -> dict[str, str]:
    """What may be added to a comparison, and what else its runs depend on: "what it is" -> digest of its settings."""
    found = {f"method {one.name!r}": _method_digest(one) for one in config.methods}
    if config.lm is not None and config.encoder is not None:
        found[_ENCODER] = sha256_json(config.encoder.model_dump(mode="json"))
    for task in config.tasks:
        files = {split: _file_digest(task, split) for split in SPLITS}
        about = task.model_dump(mode="json", exclude=set(SPLITS)) | {"files": files}
        found[f"task {task.name!r}"] = sha256_json(about | {"pair": config.pairs.get(task.name)})
    return found | {
        "seed": sha256_json(config.seed),
        "surface": sha256_json(config.surface.model_dump(mode="json")),
        "transfer": sha256_json(config.transfer),
    }


def _method_digest(method: ComparedMethod) -> str:
    """Of a method the one that it had before there were settings that it does not use, so that its results stay."""
    unused: Any = {"prompting"}
    if method.prompting is not None:
        unused = {"prompting": {"verbalizer"}} if method.prompting.verbalizer == "words" else None
    return sha256_json(method.model_dump(mode="json", exclude=unused))


def _file_digest(task: TaskBlock, split: str) -> Any:
    """Of a split: its settings, with the content of a file in the place of its path, which may move."""
    records: Records | None = getattr(task, split)
    if records is None:
        return None
    if records.path is None:
        return records.model_dump(mode="json", exclude={"path"}) | {"content": None}
    path = Path(records.path)
    if not path.is_file():
        raise ConfigError(
            f"task {task.name!r}, {split}: {path} is no file; expected records, one a line; mend the path"
        )
    return records.model_dump(mode="json", exclude={"path"}) | {"content": sha256_file(path)}


def _identity_in(path: Path) -> dict[str, Any]:
    try:
        there = json.loads(path.read_bytes())
        whole = isinstance(there["settings_sha256"], str) and isinstance(there.get("parts", {}), dict)
    except (ValueError, TypeError, KeyError, RecursionError):
        whole = False
    if not whole:
        raise ConfigError(f"{path} is damaged; use another folder, or delete it if its results are of this config")
    return there
