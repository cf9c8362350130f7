"""Nothing that was stopped half-way bears a final name."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from retrievers.errors import IndexMismatchError, RetrieverError
from retrievers.files import FolderBuild, read_json, sha256_file, write_bytes, write_json, written_whole
from retrievers.manifest import Manifest


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def finish(build: FolderBuild) -> None:
    Manifest.write(build.folder, kind="toy", spec=build.spec, counts={})
    build.finish()


def test_sha256_of_known_bytes(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_file(tmp_path / "abc").startswith("ba7816bf8f01cfea")


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="stop"), written_whole(path) as stream:
        stream.write(b"half")
        raise ValueError("stop")
    assert read_json(path) == {"a": 1}
    assert names(tmp_path) == ["value.json"]


def test_what_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RetrieverError, match="cannot write"):
        write_bytes(tmp_path / "file" / "below", b"x")
    with pytest.raises(RetrieverError, match="cannot write"), FolderBuild(tmp_path / "file" / "index", spec={}):
        pass


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_a_clear_error_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    # The temporary file's name leads to a device that is always full.
    (tmp_path / f".value.json.tmp-{os.getpid()}").symlink_to("/dev/full")
    with pytest.raises(RetrieverError, match=r"cannot write .*value\.json.*No space left"):
        write_json(path, {"a": 2})
    assert read_json(path) == {"a": 1}


def test_unreadable_json_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(IndexMismatchError, match=r"gone\.json is missing"):
        read_json(tmp_path / "gone.json")
    (tmp_path / "bad.json").write_bytes(b"{")
    with pytest.raises(IndexMismatchError, match=r"bad\.json"):
        read_json(tmp_path / "bad.json")
    (tmp_path / "big.json").write_bytes(b" " * 100)
    with pytest.raises(IndexMismatchError, match="at most 10"):
        read_json(tmp_path / "big.json", max_bytes=10)


def test_the_folder_takes_its_name_at_the_end(tmp_path: Path) -> None:
    final = tmp_path / "index"
    with FolderBuild(final, spec={"a": 1}) as build:
        (build.folder / "data").write_bytes(b"x")
        assert not final.exists()
        finish(build)
    assert names(final) == ["data", "manifest.json"]
    assert names(tmp_path) == ["index"]


def test_an_interrupted_build_goes_on_only_with_the_same_spec(tmp_path: Path) -> None:
    final = tmp_path / "index"
    with FolderBuild(final, spec={"a": 1}) as build:
        (build.folder / "data").write_bytes(b"x")
        build.commit({"rows": 5})
    with FolderBuild(final, spec={"a": 1}) as build:
        assert build.resumed and build.progress == {"rows": 5}
        assert (build.folder / "data").exists()
    with FolderBuild(final, spec={"a": 2}) as build:
        assert not build.resumed and build.progress == {}
        assert not (build.folder / "data").exists()
    assert not final.exists()


def test_finishing_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with FolderBuild(tmp_path / "index", spec={}) as build, pytest.raises(RetrieverError, match=r"manifest\.json"):
        build.finish()


def test_an_index_is_replaced_only_on_demand_and_only_at_the_end(tmp_path: Path) -> None:
    final = tmp_path / "index"
    for content in (b"one", b"two"):
        with FolderBuild(final, spec={}, overwrite=content == b"two") as build:
            (build.folder / "data").write_bytes(content)
            if content == b"two":
                assert (final / "data").read_bytes() == b"one"
            finish(build)
        assert (final / "data").read_bytes() == content
    with pytest.raises(RetrieverError, match="overwrite=True"), FolderBuild(final, spec={}):
        pass


def test_a_kill_between_the_two_renames_of_a_replacement_gives_the_old_index_back(tmp_path: Path) -> None:
    final = tmp_path / "index"
    with FolderBuild(final, spec={}) as build:
        finish(build)
    final.rename(tmp_path / "index.replaced")
    with pytest.raises(RetrieverError, match="never mind"), FolderBuild(final, spec={}, overwrite=True):
        raise RetrieverError("never mind")
    assert Manifest.verify(final).kind == "toy"


def test_two_processes_never_build_the_same_folder(tmp_path: Path) -> None:
    code = (
        "import sys; from retrievers.files import FolderBuild\n"
        "try:\n"
        "    with FolderBuild(sys.argv[1], spec={}): print('built')\n"
        "except Exception as error: print(error)\n"
    )
    with FolderBuild(tmp_path / "index", spec={}):
        told = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "index")], capture_output=True, text=True, check=True
        )
    assert "being built by another process" in told.stdout
