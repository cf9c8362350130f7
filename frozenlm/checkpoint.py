"""Files that survive a crash and refuse to lie: safetensors and JSON only, no pickle anywhere.

A saved module is a folder of two files: `module.json` (kind, settings, fingerprint of the LM it was trained for,
SHA-256 of the tensor file, checksum of itself) and `module-<sha>.safetensors`. The JSON is replaced last and
atomically, so at any moment, a kill inside a save included, the folder holds either the old module or the new one,
whole. Loading trusts nothing: names are confined to the folder, links are refused, the header is limited, every value
must be finite.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as safetensors_load
from safetensors.torch import save as safetensors_save
from torch import Tensor

from frozenlm.errors import CheckpointError

MODULE_FILE = "module.json"
REMEDY = "save it again (a training run that is finished does so when it is started again), or fetch another copy"
FORMAT = "frozenlm.module"
VERSION = 1
MAX_JSON_BYTES = 4 * 2**20
MAX_HEADER_BYTES = 2**20
MAX_MAGNITUDE = 1e4  # our choice: embeddings and prompts are far below it, a diverged or hostile vector is above


@dataclass(frozen=True)
class ModuleInfo:
    """What `verify_module` found.

    Args:
        kind: what the module is.
        lm_fingerprint: the LM it was trained for; None for one that fits any LM.
        config: its settings.
        shapes: of its tensors, by name.
        nbytes: size of the tensor file.
    """

    kind: str
    lm_fingerprint: str | None
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    nbytes: int


def atomic_write_bytes(path: Path | str, data: bytes) -> None:
    """Write a file so that a reader, or a crash at any time, sees the old content or the new one, never a part.

    Raises:
        CheckpointError: the file cannot be written (read-only folder, disk full); the old content is still there.
    """
    path = Path(path)
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".tmp-{path.name}-")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)  # mkstemp makes 0600 files, which nobody else could load
        Path(temporary).replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise CheckpointError(f"cannot write {path}: {error}; the previous content, if any, is untouched") from error


def atomic_write_json(path: Path | str, value: Any) -> None:
    """`atomic_write_bytes` of a value as indented JSON.

    Raises:
        CheckpointError: the value is not plain JSON (NaN included), or the file cannot be written.
    """
    try:
        text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"cannot write {path}: not plain JSON: {error}") from error
    atomic_write_bytes(path, (text + "\n").encode())


def save_module(
    folder: Path | str,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    *,
    lm_fingerprint: str | None,
    kind: str,
    max_magnitude: float | None = MAX_MAGNITUDE,
) -> None:
    """Save a trained module; a module already in the folder is replaced atomically.

    Args:
        folder: made if absent.
        tensors: name -> tensor; copied to the CPU.
        config: plain JSON values, all that is needed to build the module again.
        lm_fingerprint: `FrozenLM.fingerprint` of the LM it was trained for; None if it fits any LM.
        kind: what the folder holds, e.g. "soft_prompt"; loading asks for the same kind.
        max_magnitude: the largest absolute value allowed; None for no cap (KV memories).

    Raises:
        CheckpointError: a value is not finite or too large, the settings are not JSON, the folder cannot be written.
    """
    folder = Path(folder)
    plain = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    for name, tensor in plain.items():
        _check_values(folder, name, tensor, max_magnitude)
    data = safetensors_save({name: tensor.clone() for name, tensor in plain.items()})
    digest = hashlib.sha256(data).hexdigest()
    name = f"module-{digest[:16]}.safetensors"
    body: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "kind": kind,
        "lm_fingerprint": lm_fingerprint,
        "config": dict(config),
        "file": {"name": name, "sha256": digest, "bytes": len(data)},
    }
    body["checksum"] = _checksum(body, folder / MODULE_FILE)
    atomic_write_bytes(folder / name, data)
    atomic_write_json(folder / MODULE_FILE, body)
    for stale in [*folder.glob("module-*.safetensors"), *folder.glob(".tmp-module*")]:
        if stale.name != name:
            stale.unlink(missing_ok=True)


def load_module(
    folder: Path | str,
    *,
    kind: str,
    lm_fingerprint: str | None = None,
    allow_other_lm: bool = False,
    max_magnitude: float | None = MAX_MAGNITUDE,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Load what `save_module` wrote, after checking all of it.

    Args:
        folder: the module's folder.
        kind: must be the saved kind.
        lm_fingerprint: the LM at hand; None skips the comparison.
        allow_other_lm: load a module that was trained for another LM (at one's own risk).
        max_magnitude: the largest absolute value allowed; None for no cap.

    Returns:
        (tensors by name, on the CPU; the settings).

    Raises:
        CheckpointError: missing, damaged, truncated, unsafe, of another kind, or trained for another LM.
    """
    folder = Path(folder)
    body = _read_body(folder)
    if body["kind"] != kind:
        raise CheckpointError(f"{folder} holds a module of kind {body['kind']!r}, expected {kind!r}")
    saved = body["lm_fingerprint"]
    if lm_fingerprint is not None and saved is not None and saved != lm_fingerprint and not allow_other_lm:
        raise CheckpointError(
            f"{folder} was trained for another LM: its LM fingerprint is {saved[:16]}..., this LM's is "
            f"{lm_fingerprint[:16]}...; load the LM it was trained for, or train it again (in Python "
            "allow_other_lm=True takes it all the same)"
        )
    return _read_tensors(folder, body, max_magnitude), body["config"]


def verify_module(folder: Path | str, *, max_magnitude: float | None = MAX_MAGNITUDE) -> ModuleInfo:
    """Check a saved module without using it.

    Raises:
        CheckpointError: as `load_module`, naming the file.
    """
    folder = Path(folder)
    body = _read_body(folder)
    tensors = _read_tensors(folder, body, max_magnitude)
    return ModuleInfo(
        kind=body["kind"],
        lm_fingerprint=body["lm_fingerprint"],
        config=body["config"],
        shapes={name: tuple(tensor.shape) for name, tensor in tensors.items()},
        nbytes=int(body["file"]["bytes"]),
    )


def is_module(folder: Path | str) -> bool:
    """Whether a complete module lies in the folder (it may still be damaged: `verify_module` tells)."""
    return (Path(folder) / MODULE_FILE).is_file()


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file of unknown origin, read once, with its header limited to 1 MB.

    Raises:
        CheckpointError: missing, a link, truncated, not safetensors, or with too large a header.
    """
    return parse_safetensors(_read_plain_file(path, None), path)


def parse_safetensors(data: bytes, path: Path) -> dict[str, Tensor]:
    """Tensors from the bytes of a safetensors file; `path` is for messages only.

    Raises:
        CheckpointError: truncated, not safetensors, or with too large a header.
    """
    header = int.from_bytes(data[:8], "little") if len(data) >= 8 else -1
    if not 0 <= header <= MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{path} is not a safetensors file we accept: header of {header} bytes, limit {MAX_HEADER_BYTES}"
        )
    try:
        return safetensors_load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged or not a safetensors file: {error}") from error


def _read_body(folder: Path) -> dict[str, Any]:
    path = folder / MODULE_FILE
    data = _read_plain_file(path, MAX_JSON_BYTES)
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: not JSON ({error}); {REMEDY}") from error
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a module of this project: expected format {FORMAT!r}")
    if body.get("version") != VERSION:
        raise CheckpointError(f"{path} has version {body.get('version')!r}, this code reads {VERSION}; update frozenlm")
    if body.get("checksum") != _checksum(body, path):
        raise CheckpointError(f"{path} is damaged: its content does not match its checksum; {REMEDY}")
    file, saved = body.get("file"), body.get("lm_fingerprint")
    shaped = (
        isinstance(body.get("kind"), str)
        and isinstance(body.get("config"), dict)
        and (saved is None or isinstance(saved, str))
        and isinstance(file, dict)
        and all(isinstance(file.get(key), kind) for key, kind in (("name", str), ("sha256", str), ("bytes", int)))
    )
    if not shaped:
        raise CheckpointError(f"{path} is damaged: a field is missing or of the wrong type")
    return body


def _read_tensors(folder: Path, body: Mapping[str, Any], max_magnitude: float | None) -> dict[str, Tensor]:
    name = body["file"]["name"]
    if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise CheckpointError(
            f"{folder / MODULE_FILE} names a file outside its folder: {name!r}; the module is refused"
        )
    path = folder / name
    data = _read_plain_file(path, None)
    if len(data) != body["file"]["bytes"]:
        raise CheckpointError(
            f"{path} is truncated or padded: {len(data)} bytes, expected {body['file']['bytes']}; {REMEDY}"
        )
    if hashlib.sha256(data).hexdigest() != body["file"]["sha256"]:
        raise CheckpointError(f"{path} is damaged: its SHA-256 differs from the one in {MODULE_FILE}; {REMEDY}")
    tensors = parse_safetensors(data, path)
    for key, tensor in tensors.items():
        _check_values(path, key, tensor, max_magnitude)
    return tensors


def _check_values(where: Path, name: str, tensor: Tensor, max_magnitude: float | None) -> None:
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return
    if not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(
            f"{where}: tensor {name!r} holds NaN or Inf; the training diverged or the file is hostile"
        )
    largest = float(tensor.abs().max())
    if max_magnitude is not None and largest > max_magnitude:
        raise CheckpointError(f"{where}: tensor {name!r} holds a value of size {largest:.3g}, limit {max_magnitude:g}")


def _checksum(body: Mapping[str, Any], path: Path) -> str:
    content = {key: value for key, value in body.items() if key != "checksum"}
    try:
        text = json.dumps(content, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: the settings are not plain JSON: {error}") from error
    return hashlib.sha256(text.encode()).hexdigest()


def _read_plain_file(path: Path, limit: int | None) -> bytes:
    try:
        if path.is_symlink():
            raise CheckpointError(f"{path} is a symbolic link; modules are loaded from plain files only")
        if not path.is_file():
            raise CheckpointError(
                f"{path} does not exist; a module folder holds {MODULE_FILE} and its tensor file; {REMEDY}"
            )
        if limit is not None and path.stat().st_size > limit:
            raise CheckpointError(f"{path} is {path.stat().st_size} bytes, limit {limit}")
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
