"""Building a dense index folder: streamed, resumable, complete or not there.

One shard of passages and vectors is in memory at a time. A killed build goes on after the last whole shard and ends in
the same bits, since a shard is always encoded from the same batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from retrievers.compute import require
from retrievers.encoders import Encoder
from retrievers.errors import RetrieverError
from retrievers.faiss_index import KINDS, build_faiss, checked_parameters
from retrievers.files import FolderBuild, read_json, write_json
from retrievers.manifest import Manifest
from retrievers.passage_writer import save_array, store_in_shards
from retrievers.passages import PassageStore
from retrievers.types import Passage

KIND = "dense"
INDEXES = ("exact", *KINDS)
STORAGE_BYTES = {"float32": 4, "bfloat16": 2}
SHARD_SIZE = 32_768
FAISS_FILE = "index.faiss"
_ENCODE_ROWS = 4_096


@dataclass(frozen=True)
class DenseBuildReport:
    """What a build did.

    Attributes:
        passages: in the index.
        truncated: passages that the encoder cut to its window.
        shards: of vectors; `resumed_shards` of them were there from an interrupted build.
        bytes: of the whole folder.
        seconds: of this call.
    """

    passages: int
    truncated: int
    shards: int
    resumed_shards: int
    bytes: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.passages:,} passages in {self.shards} shards ({self.resumed_shards} from an earlier build), "
            f"{self.truncated:,} cut to the encoder's window, {self.bytes / 2**20:,.0f} MiB, {self.seconds:.0f} s"
        )


def build_dense(
    passages: Iterable[Passage],
    folder: str | Path,
    encoder: Encoder,
    *,
    index: str,
    dtype: str,
    shard_size: int,
    parameters: Mapping[str, int],
    expected: int | None,
    overwrite: bool,
    log: Callable[[str], None] | None,
    progress: Callable[[int], None] | None,
) -> DenseBuildReport:
    """What `DenseRetriever.build` documents."""
    started = time.perf_counter()
    require("torch")
    say = log or (lambda message: None)
    spec = _spec(encoder, index=index, dtype=dtype, shard_size=shard_size, parameters=parameters)
    count = expected if expected is not None else len(passages) if isinstance(passages, Sized) else None
    say(estimate(count, encoder.dim, index=index, dtype=dtype, shard_size=shard_size))
    with FolderBuild(folder, spec=spec, overwrite=overwrite) as build:
        vectors = build.folder / "vectors"
        vectors.mkdir(exist_ok=True)
        encoded = 0
        for number, shard in store_in_shards(build, passages, shard_rows=shard_size):
            if number and not encoded:
                say(f"continuing an interrupted build after {number} whole shards")
            _encode_shard(vectors, number, shard, encoder, dtype)
            encoded += 1
            if progress is not None:
                progress(number * shard_size + len(shard))
        store = PassageStore(build.folder)
        rows = len(store)
        store.close()
        shards = -(-rows // shard_size)
        _drop_beyond(vectors, shards)
        if index != "exact":
            say(f"building the faiss index {index!r} over {rows:,} vectors")
            build_faiss(
                build.folder / FAISS_FILE,
                index,
                lambda: float_shards(vectors, shards),
                rows=rows,
                dim=encoder.dim,
                parameters=spec["parameters"],
            )
        truncated = sum(int(read_json(sidecar_path(vectors, n))["truncated"]) for n in range(shards))
        manifest = Manifest.write(
            build.folder,
            kind=KIND,
            spec=spec,
            counts={"passages": rows, "shards": shards, "truncated": truncated},
        )
        build.finish()
    return DenseBuildReport(
        passages=rows,
        truncated=truncated,
        shards=shards,
        resumed_shards=shards - encoded,
        bytes=sum(entry.bytes for entry in manifest.files.values()),
        seconds=time.perf_counter() - started,
    )


def estimate(count: int | None, dim: int, *, index: str, dtype: str, shard_size: int) -> str:
    """One sentence on the disk and memory that a build takes; for a million passages where the number is unknown."""
    rows = count if count is not None else 1_000_000
    vectors = rows * dim * STORAGE_BYTES[dtype]
    faiss = 0 if index == "exact" else rows * dim * 4 + (rows * 32 * 8 if index == "hnsw" else 0)
    memory = min(rows, shard_size) * dim * 8 + rows * 64 + faiss
    head = f"{rows:,} passages" if count is not None else "the number of passages is unknown; each million"
    return (
        f"{head} x {dim} numbers: {(vectors + faiss) / 2**20:,.0f} MiB of disk for vectors beside the texts, "
        f"about {memory / 2**20:,.0f} MiB of memory beside the encoder (index {index!r}, {dtype})"
    )


def _spec(
    encoder: Encoder, *, index: str, dtype: str, shard_size: int, parameters: Mapping[str, int]
) -> dict[str, Any]:
    if index not in INDEXES:
        raise RetrieverError(f"index {index!r} is unknown; expected one of {', '.join(INDEXES)}.")
    if dtype not in STORAGE_BYTES:
        raise RetrieverError(f"dtype {dtype!r} is unknown; vectors are stored as {' or '.join(STORAGE_BYTES)}.")
    if shard_size < 1:
        raise RetrieverError(f"shard_size is {shard_size}; expected a positive number of passages.")
    if index == "exact" and parameters:
        raise RetrieverError(
            f"an exact index has no parameters, got {sorted(parameters)}; they belong to ivf and hnsw."
        )
    return {
        "encoder": encoder.fingerprint(),
        "encoder_precision": getattr(encoder, "precision", ""),
        "dim": encoder.dim,
        "index": index,
        "dtype": dtype,
        "shard_size": shard_size,
        "parameters": {} if index == "exact" else checked_parameters(index, parameters),
    }


def _encode_shard(folder: Path, number: int, shard: Sequence[Passage], encoder: Encoder, dtype: str) -> None:
    """Vectors first, their side file second: what a kill leaves between the two is written again."""
    from retrievers.search import bfloat16_bits, measure

    before = getattr(encoder, "truncated_passages", 0)
    pieces = [shard[i : i + _ENCODE_ROWS] for i in range(0, len(shard), _ENCODE_ROWS)]
    vectors = np.concatenate([checked_vectors(encoder.encode_passages(p), len(p), encoder.dim) for p in pieces])
    stored = bfloat16_bits(vectors) if dtype == "bfloat16" else vectors
    spread = measure(stored)
    save_array(array_path(folder, number), stored)
    truncated = getattr(encoder, "truncated_passages", 0) - before
    side = {"rows": len(shard), "truncated": truncated, "norm": spread.norm, "residual": spread.residual}
    write_json(sidecar_path(folder, number), side)


def checked_vectors(vectors: npt.NDArray[np.float32], rows: int, dim: int) -> npt.NDArray[np.float32]:
    vectors = np.asarray(vectors, dtype=np.float32)
    if vectors.shape != (rows, dim):
        raise RetrieverError(f"the encoder gave vectors of shape {vectors.shape}; expected ({rows}, {dim}).")
    if not np.isfinite(vectors).all():
        raise RetrieverError("the encoder gave NaN or infinite numbers; check its weights, or run it in float32.")
    return vectors


def array_path(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.npy"


def sidecar_path(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.json"


def _drop_beyond(folder: Path, shards: int) -> None:
    """Remove shards of an interrupted build over a longer corpus."""
    for path in folder.iterdir():
        if not path.stem.isdigit() or int(path.stem) >= shards:
            path.unlink()


def mapped(folder: Path, number: int) -> np.ndarray:
    """A shard, memory-mapped. Copy-on-write, since torch does not take read-only memory; nobody writes to it."""
    array: np.ndarray = np.load(array_path(folder, number), mmap_mode="c", allow_pickle=False)
    return array


def float_shards(folder: Path, shards: int) -> Iterator[npt.NDArray[np.float32]]:
    from retrievers.search import as_float32

    return (as_float32(mapped(folder, number)) for number in range(shards))
