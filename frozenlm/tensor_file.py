"""Tensors and a JSON record in one safetensors file, so that one rename replaces them together.

A training run saves often, and a kill at any moment must leave either the old state or the new one. A digest over
every tensor and the JSON is checked at load, since a flipped bit would otherwise be trained on in silence.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from frozenlm.errors import CheckpointError


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any], *, durable: bool = True
) -> None:
    """Writes tensors and a JSON record to `path` in one atomic replacement.

    durable: wait until the disk has it, so that it survives a power cut too; off for what can be computed again

    Raises: CheckpointError when the disk is full or the folder cannot be written; the file that was there stays.
    """
    # Clones: safetensors refuses tensors that share memory (tied weights).
    plain = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    text = json.dumps(record)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not safetensors' save_file: it writes into a hidden file of a random name, which a kill would leave for ever.
        data = save(plain, metadata={"record": text, "sha256": _digest(plain, text)})
        with temporary.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
        if durable:
            _fsync(path.parent)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise CheckpointError(
            f"could not write {path}: {error}; expected a writable folder with room for "
            f"{sum(t.nbytes for t in plain.values()):,} bytes; what was saved there before is intact, "
            "so make room and run again to go on from it"
        ) from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the JSON record of a file that `write_tensors` wrote.

    Raises: CheckpointError when the file is missing, cut, changed or not ours.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
        text = metadata["record"]
        record = json.loads(text)
        if _digest(tensors, text) != metadata["sha256"]:
            raise CheckpointError("its SHA-256 is not the one recorded in it")
    except (OSError, SafetensorError, KeyError, ValueError, CheckpointError) as error:
        raise CheckpointError(
            f"{path} is missing or damaged ({error}); expected a tensor file with its digest, written by frozenlm; "
            "restore it, or remove it and let it be made again (for a training run: restart=True)"
        ) from error
    return tensors, record


def clear_temporaries(folder: Path, *, older_than: float = 0.0) -> None:
    """Removes what killed saves left behind in a folder and below it.

    older_than: seconds; above 0 where other processes may be writing at this moment
    """
    newest = time.time() - older_than
    for leftover in folder.rglob(".*.safetensors.*.tmp"):
        with contextlib.suppress(OSError):
            if leftover.stat().st_mtime <= newest:
                leftover.unlink()


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
