"""How this package writes to disk, so that a kill, a full disk or a flipped bit never passes for a good artefact.

A file appears whole or not at all: temporary sibling, fsync, rename. A folder is built beside its final name, in
`<folder>.building`, and renamed once its manifest has been written. Whatever stopped half-way never bears the final
name.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from retrievers.errors import IndexMismatchError, RetrieverError

MAX_JSON_BYTES = 64 * 2**20
_CHUNK = 2**20
_BUILD_FILE = "build.json"
_PROGRESS_FILE = "progress.json"
SCRATCH = "scratch"


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def canonical_json(value: Any) -> str:
    """JSON with sorted keys: equal values give equal text, so that the text can be hashed."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, indent=1, allow_nan=False)


def sha256_json(value: Any) -> str:
    """SHA-256 in hex of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def clear_write_errors(target: Path) -> Iterator[None]:
    """Turn what the operating system says about writing `target` into one of our errors.

    Raises:
        RetrieverError: disk full, read-only folder, no permission.
    """
    try:
        yield
    except OSError as error:
        raise RetrieverError(
            f"cannot write {target}: {error.strerror or error}; free some space or choose a writable folder; "
            "what was complete before is untouched"
        ) from error


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[IO[bytes]]:
    """A stream into a file that takes its name only when the block has ended well; what was there before stays till
    then.

    Raises:
        RetrieverError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with clear_write_errors(path):
            with temporary.open("wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        RetrieverError: the file cannot be written.
    """
    with written_whole(path) as stream:
        stream.write(data)


def write_json(path: Path, value: Any) -> None:
    """Write canonical JSON whole or not at all."""
    write_bytes(path, canonical_json(value).encode())


def read_json(path: Path, *, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Read a JSON file that we wrote.

    Raises:
        IndexMismatchError: missing, too large or not JSON; the file is named.
    """
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise IndexMismatchError(
                f"{path} has {size:,} bytes, at most {max_bytes:,} are read; it is not one of ours"
            )
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise IndexMismatchError(f"{path} is missing; build the index again") from None
    except (OSError, ValueError) as error:
        raise IndexMismatchError(f"{path} cannot be read as JSON ({error}); build the index again") from error


class FolderBuild:
    """A folder under construction: `<folder>.building`, locked by one process, renamed to `<folder>` by `finish`.

    An interrupted build is taken up again where it was committed last, if it was begun with the same `spec`; otherwise
    its remains are deleted and the build starts anew. The commit record is `progress`, any small JSON mapping. What
    only the build itself needs goes below `scratch`, which is not part of the result; it is deleted after the folder
    has its name, not before, so that a kill in the last moment does not cost the whole work.

        with FolderBuild(folder, spec=spec) as build:
            start = build.progress.get("rows", 0)
            ...write files below build.folder...; build.commit({"rows": n})
            Manifest.write(build.folder, ...)
            build.finish()

    Args:
        folder: final name. It must not exist, unless `overwrite`; with `overwrite` it is replaced at `finish`, not
            before.
        spec: what is being built, JSON-serialisable; a build of another spec is never continued.

    Raises:
        RetrieverError: `folder` exists, is being built by another process, or cannot be written.
    """

    def __init__(self, folder: Path | str, *, spec: Mapping[str, Any], overwrite: bool = False) -> None:
        self.final = Path(folder)
        self.folder = self.final.with_name(self.final.name + ".building")
        self._replaced = self.final.with_name(self.final.name + ".replaced")
        self.scratch = self.folder / SCRATCH
        self.spec = dict(spec)
        self.overwrite = overwrite
        self.resumed = False
        self.progress: dict[str, Any] = {}
        self._lock: int | None = None

    def __enter__(self) -> FolderBuild:
        if self.final.exists() and not self.overwrite:
            raise RetrieverError(f"{self.final} exists already; open it, delete it, or pass overwrite=True")
        with clear_write_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.folder, os.O_RDONLY)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self._lock)
                self._lock = None
                raise RetrieverError(f"{self.folder} is being built by another process; wait for it to end") from None
        with clear_write_errors(self.folder):
            if self._replaced.exists() and not self.final.exists():
                self._replaced.rename(self.final)
            (self.folder / "manifest.json").unlink(missing_ok=True)
        if self._begun_with_the_same_spec():
            self.resumed = True
            with clear_write_errors(self.folder):
                for torn in self.folder.rglob(".*.tmp-*"):
                    torn.unlink()
        else:
            self._clear()
            write_json(self.folder / _BUILD_FILE, self.spec)
        with clear_write_errors(self.folder):
            self.scratch.mkdir(exist_ok=True)
        return self

    def _begun_with_the_same_spec(self) -> bool:
        try:
            if canonical_json(read_json(self.folder / _BUILD_FILE)) != canonical_json(self.spec):
                return False
            self.progress = dict(read_json(self.folder / _PROGRESS_FILE))
        except (IndexMismatchError, TypeError, ValueError):
            return False
        return bool(self.progress)

    def _clear(self) -> None:
        self.progress = {}
        with clear_write_errors(self.folder):
            for path in self.folder.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()

    def commit(self, progress: Mapping[str, Any]) -> None:
        """Record how far the build has come. Files that it speaks of must be on disk (fsync) before."""
        write_json(self.folder / _PROGRESS_FILE, dict(progress))
        self.progress = dict(progress)

    def finish(self) -> Path:
        """Give the complete folder its final name. The manifest must have been written before.

        Raises:
            RetrieverError: there is no manifest, or the folder cannot be renamed.
        """
        if not (self.folder / "manifest.json").is_file():
            raise RetrieverError(f"{self.folder} has no manifest.json; write the manifest before finishing the build")
        with clear_write_errors(self.final):
            sync_tree(self.folder)
            if self.final.exists():
                self.final.rename(self._replaced)
            self.folder.rename(self.final)
            sync_folder(self.final.parent)
            for name in (_PROGRESS_FILE, _BUILD_FILE):
                (self.final / name).unlink(missing_ok=True)
            if (self.final / SCRATCH).exists():
                shutil.rmtree(self.final / SCRATCH)
            if self._replaced.exists():
                shutil.rmtree(self._replaced)
        return self.final

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def sync_tree(folder: Path) -> None:
    """fsync every file and folder below `folder`."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        elif path.is_dir():
            sync_folder(path)
    sync_folder(folder)
