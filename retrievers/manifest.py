"""The marker that makes an index folder whole: what it was built from and the SHA-256 of every file in it.

Why: an index is several files that only mean something together, and none of the libraries below us notices damage
(faiss has no checksum: of 40 single-bit flips 7 changed results in silence). The manifest is written last.

When is what checked (our choice)? `Manifest.open` always checks the manifest itself, that every file is there with
its exact size, and the spec; below `FULL_CHECK_BYTES` it also hashes every file, which takes less than a second
there. Larger folders are hashed by `verify`, which anybody may call at any time (`frozenlm verify FOLDER` does).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from retrievers.errors import IndexMismatchError
from retrievers.files import MAX_JSON_BYTES, SCRATCH, canonical_json, sha256_file, sha256_json, write_json

MANIFEST = "manifest.json"
VERSION = 1
FULL_CHECK_BYTES = 200_000_000


@dataclass(frozen=True)
class FileEntry:
    """One file of the folder: SHA-256 in hex and size in bytes."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """What an index folder holds.

    Attributes:
        kind: what sort of index, such as "bm25" or "dense".
        spec: everything that the index depends on besides the passages (analyzer, encoder, parameters); compared on
            opening.
        counts: sizes, such as {"passages": 12738}.
        files: POSIX path relative to the folder -> entry; every file but the manifest itself.
        version: of this layout.
    """

    kind: str
    spec: Mapping[str, Any]
    counts: Mapping[str, int]
    files: Mapping[str, FileEntry]
    version: int = VERSION

    def _content(self) -> dict[str, Any]:
        files = {name: asdict(entry) for name, entry in self.files.items()}
        return {
            "kind": self.kind,
            "version": self.version,
            "spec": dict(self.spec),
            "counts": dict(self.counts),
            "files": files,
        }

    @property
    def fingerprint(self) -> str:
        """SHA-256 in hex over kind, spec, counts and the hashes of all files: two equal ones give equal results."""
        return sha256_json(self._content())

    @classmethod
    def write(cls, folder: Path, *, kind: str, spec: Mapping[str, Any], counts: Mapping[str, int]) -> Manifest:
        """Hash every file below `folder`, but for `scratch`, and write the manifest. Call it last.

        Args:
            spec: JSON-serialisable, without NaN; it comes back from `open` as JSON gives it back (tuples become lists).

        Raises:
            RetrieverError: the manifest cannot be written.
        """
        files = {
            name: FileEntry(sha256_file(path), path.stat().st_size)
            for name, path in sorted(_files_below(folder))
            if name not in (MANIFEST, "progress.json", "build.json") and not name.startswith(f"{SCRATCH}/")
        }
        plain: dict[str, Any] = json.loads(canonical_json({"spec": dict(spec), "counts": dict(counts)}))
        manifest = cls(kind=kind, spec=plain["spec"], counts=plain["counts"], files=files)
        write_json(folder / MANIFEST, {**manifest._content(), "sha256": manifest.fingerprint})
        return manifest

    @classmethod
    def open(
        cls, folder: Path, *, kind: str, expected_spec: Mapping[str, Any] | None = None, full: bool | None = None
    ) -> Manifest:
        """Read and check a folder's manifest.

        Args:
            kind: the kind that the caller can read.
            expected_spec: fields that must be as given; fields that it leaves out are not compared.
            full: hash every file; None means only where the folder is below `FULL_CHECK_BYTES`.

        Raises:
            IndexMismatchError: incomplete build, damaged or missing file, other kind, version or spec; file or field
                is named.
        """
        manifest = _read(folder)
        if manifest.kind != kind:
            raise IndexMismatchError(f"{folder} holds an index of kind {manifest.kind!r}, expected {kind!r}")
        manifest._check_sizes(folder)
        manifest.check_spec(expected_spec or {}, folder)
        if full or (full is None and sum(entry.bytes for entry in manifest.files.values()) < FULL_CHECK_BYTES):
            manifest._check_hashes(folder)
        return manifest

    @classmethod
    def verify(cls, folder: Path) -> Manifest:
        """Check a folder wholly, whatever its kind and size: manifest, sizes and the hash of every file.

        Raises:
            IndexMismatchError: what does not hold, with the file's name.
        """
        manifest = _read(folder)
        manifest._check_sizes(folder)
        manifest._check_hashes(folder)
        return manifest

    def check_spec(self, expected: Mapping[str, Any], folder: Path) -> None:
        """Compare the fields of `expected` with the index's own.

        Raises:
            IndexMismatchError: every field that differs, with both values.
        """
        wanted = json.loads(canonical_json(dict(expected)))
        wrong = [
            f"{field} is {self.spec.get(field)!r}, expected {value!r}"
            for field, value in wanted.items()
            if self.spec.get(field) != value
        ]
        if wrong:
            raise IndexMismatchError(
                f"{folder} was built otherwise: {'; '.join(wrong)}; build it again or ask for what it holds"
            )

    def _check_sizes(self, folder: Path) -> None:
        for name, entry in self.files.items():
            path = _confined(folder, name)
            if not path.is_file():
                raise IndexMismatchError(f"{path} is missing; build the index again")
            if path.stat().st_size != entry.bytes:
                raise IndexMismatchError(
                    f"{path} is damaged: {path.stat().st_size:,} bytes, expected {entry.bytes:,}; build the index again"
                )

    def _check_hashes(self, folder: Path) -> None:
        for name, entry in self.files.items():
            path = _confined(folder, name)
            found = sha256_file(path)
            if found != entry.sha256:
                raise IndexMismatchError(
                    f"{path} is damaged: sha256 {found[:12]}..., expected {entry.sha256[:12]}...; build the index again"
                )


def _read(folder: Path) -> Manifest:
    path = folder / MANIFEST
    if not folder.is_dir():
        unfinished = folder.with_name(folder.name + ".building")
        hint = f"; {unfinished.name} is an unfinished build, run the build again" if unfinished.exists() else ""
        raise IndexMismatchError(f"there is no index folder {folder}{hint}")
    if not path.is_file():
        raise IndexMismatchError(f"{folder} has no {MANIFEST}: the index is incomplete; build it again")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise IndexMismatchError(f"{path} is too large for a manifest; build the index again")
    raw = path.read_bytes()
    try:
        content = json.loads(raw)
        declared = content.pop("sha256")
        files = {name: FileEntry(str(entry["sha256"]), int(entry["bytes"])) for name, entry in content["files"].items()}
        manifest = Manifest(str(content["kind"]), content["spec"], content["counts"], files, int(content["version"]))
        whole = canonical_json({**manifest._content(), "sha256": declared}).encode() == raw
        whole = whole and manifest.fingerprint == declared
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise IndexMismatchError(f"{path} is damaged; build the index again")
    if manifest.version != VERSION:
        raise IndexMismatchError(f"{path} has version {manifest.version}, this release reads {VERSION}; build it again")
    return manifest


def _confined(folder: Path, name: str) -> Path:
    """The file `name` of `folder`; links and paths that lead out of the folder are refused."""
    parts = PurePosixPath(name).parts
    path = folder / name
    if PurePosixPath(name).is_absolute() or ".." in parts or not parts:
        raise IndexMismatchError(f"{folder / MANIFEST} names {name!r}, which lies outside the folder")
    step = folder
    for part in parts:
        step = step / part
        if step.is_symlink():
            raise IndexMismatchError(f"{step} is a symbolic link; an index holds plain files only")
    return path


def _files_below(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in folder.rglob("*"):
        if path.is_symlink():
            raise IndexMismatchError(f"{path} is a symbolic link; an index holds plain files only")
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path
