"""Every way an index folder can be wrong is found, and the file or field is named (R6)."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retrievers.errors import IndexMismatchError
from retrievers.manifest import Manifest

SPEC = {"k1": 0.9, "analyzer": {"stemmer": "porter"}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "deep").mkdir()
    (tmp_path / "data.bin").write_bytes(bytes(range(256)))
    (tmp_path / "deep" / "more.json").write_text('{"a": "é"}')
    Manifest.write(tmp_path, kind="toy", spec=SPEC, counts={"passages": 3})
    return tmp_path


def test_what_was_written_comes_back(folder: Path) -> None:
    manifest = Manifest.open(folder, kind="toy", expected_spec={"k1": 0.9})
    assert manifest.counts == {"passages": 3} and manifest.spec == SPEC
    assert sorted(manifest.files) == ["data.bin", "deep/more.json"]
    assert manifest.files["data.bin"].bytes == 256


def test_the_fingerprint_follows_content_and_spec(folder: Path) -> None:
    first = Manifest.verify(folder).fingerprint
    assert Manifest.write(folder, kind="toy", spec=SPEC, counts={"passages": 3}).fingerprint == first
    assert Manifest.write(folder, kind="toy", spec={"k1": 1.2}, counts={"passages": 3}).fingerprint != first
    (folder / "data.bin").write_bytes(b"x" * 256)
    assert Manifest.write(folder, kind="toy", spec=SPEC, counts={"passages": 3}).fingerprint != first


def test_every_field_that_differs_is_named(folder: Path) -> None:
    with pytest.raises(IndexMismatchError, match=r"b is None, expected 0\.4; k1 is 0\.9, expected 1\.2"):
        Manifest.open(folder, kind="toy", expected_spec={"k1": 1.2, "b": 0.4})
    with pytest.raises(IndexMismatchError, match="kind 'toy', expected 'bm25'"):
        Manifest.open(folder, kind="bm25")


def test_missing_things_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(IndexMismatchError, match="no index folder"):
        Manifest.open(tmp_path / "nothing", kind="toy")
    (folder / "data.bin").unlink()
    with pytest.raises(IndexMismatchError, match=r"data\.bin is missing"):
        Manifest.open(folder, kind="toy")
    (folder / "manifest.json").unlink()
    with pytest.raises(IndexMismatchError, match="incomplete"):
        Manifest.open(folder, kind="toy")


def test_an_unfinished_build_is_hinted_at(tmp_path: Path) -> None:
    (tmp_path / "index.building").mkdir()
    with pytest.raises(IndexMismatchError, match=r"index\.building is an unfinished build"):
        Manifest.open(tmp_path / "index", kind="toy")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_and_any_truncation_is_found_and_named(folder: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["data.bin", "deep/more.json", "manifest.json"]))
    path = folder / name
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        damaged = whole[:place]
    else:
        damaged = whole[:place] + bytes([whole[place] ^ (1 << data.draw(st.integers(0, 7)))]) + whole[place + 1 :]
    try:
        path.write_bytes(damaged)
        with pytest.raises(IndexMismatchError, match=path.name):
            Manifest.verify(folder)
        with pytest.raises(IndexMismatchError, match=path.name):
            Manifest.open(folder, kind="toy")
    finally:
        path.write_bytes(whole)
    Manifest.verify(folder)


def test_a_large_folder_is_hashed_on_demand_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrievers.manifest.FULL_CHECK_BYTES", 10)
    (folder / "data.bin").write_bytes(b"x" * 256)
    Manifest.open(folder, kind="toy")
    for look in (lambda: Manifest.open(folder, kind="toy", full=True), lambda: Manifest.verify(folder)):
        with pytest.raises(IndexMismatchError, match=r"data\.bin is damaged"):
            look()


def test_links_and_paths_out_of_the_folder_are_refused(folder: Path) -> None:
    secret = folder.parent / "secret"
    secret.write_bytes(bytes(range(256)))
    (folder / "data.bin").unlink()
    (folder / "data.bin").symlink_to(secret)
    with pytest.raises(IndexMismatchError, match="symbolic link"):
        Manifest.verify(folder)
    (folder / "data.bin").unlink()
    (folder / "data.bin").write_bytes(bytes(range(256)))
    content = json.loads((folder / "manifest.json").read_text())
    entry = content["files"].pop("data.bin")
    forged = Manifest(content["kind"], content["spec"], content["counts"], {})
    from retrievers.files import write_json
    from retrievers.manifest import FileEntry

    forged = Manifest(forged.kind, forged.spec, forged.counts, {"../secret": FileEntry(**entry)})
    write_json(folder / "manifest.json", {**forged._content(), "sha256": forged.fingerprint})
    with pytest.raises(IndexMismatchError, match="outside the folder"):
        Manifest.verify(folder)
