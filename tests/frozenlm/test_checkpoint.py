"""A module folder is whole or refused: every truncation, every flipped bit, every trick."""

import hashlib
import json
import pickle
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from frozenlm import checkpoint
from frozenlm.checkpoint import (
    atomic_write_bytes,
    atomic_write_json,
    is_module,
    load_module,
    save_module,
    verify_module,
)
from frozenlm.errors import CheckpointError

LM = "a" * 64
TENSORS = {"prompt": torch.arange(6.0).view(2, 3), "ids": torch.tensor([3, 1])}


@pytest.fixture
def folder(tmp_path):
    save_module(tmp_path / "module", TENSORS, {"length": 2, "name": "qa"}, lm_fingerprint=LM, kind="soft_prompt")
    return tmp_path / "module"


def tensor_file(folder):
    (path,) = folder.glob("*.safetensors")
    return path


def forge(folder, data=None, **fields):
    """What an attacker would do: change the files and make all checksums right again."""
    body = json.loads((folder / "module.json").read_text())
    if data is not None:
        (folder / body["file"]["name"]).write_bytes(data)
        body["file"] |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    for key, value in fields.items():
        where = body["file"] if key == "name" else body
        where[key] = value
    body["checksum"] = checkpoint._checksum(body, folder)
    (folder / "module.json").write_text(json.dumps(body))


def load(folder, **options):
    return load_module(folder, kind="soft_prompt", lm_fingerprint=LM, **options)


def test_round_trip(folder):
    tensors, config = load(folder)
    assert {name: t.tolist() for name, t in tensors.items()} == {name: t.tolist() for name, t in TENSORS.items()}
    assert config == {"length": 2, "name": "qa"}
    info = verify_module(folder)
    assert (info.kind, info.lm_fingerprint, info.shapes["prompt"]) == ("soft_prompt", LM, (2, 3))
    assert is_module(folder) and not is_module(folder.parent)
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".safetensors"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.bool])
def test_dtypes_survive(tmp_path, dtype):
    save_module(tmp_path, {"x": torch.ones(3).to(dtype)}, {}, lm_fingerprint=None, kind="x")
    assert load_module(tmp_path, kind="x")[0]["x"].dtype == dtype


def test_saving_again_replaces_and_leaves_nothing_behind(folder):
    save_module(folder, {"prompt": torch.zeros(1, 3)}, {}, lm_fingerprint=LM, kind="soft_prompt")
    assert load(folder)[0]["prompt"].shape == (1, 3)
    assert len(list(folder.iterdir())) == 2


def test_a_kill_before_the_last_step_leaves_the_old_module(folder, monkeypatch):
    def killed(path, value):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "atomic_write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            save_module(folder, {"prompt": torch.zeros(1, 3)}, {}, lm_fingerprint=LM, kind="soft_prompt")
    assert load(folder)[0]["prompt"].shape == (2, 3)
    save_module(folder, {"prompt": torch.zeros(1, 3)}, {}, lm_fingerprint=LM, kind="soft_prompt")
    assert len(list(folder.iterdir())) == 2


def test_another_lm_or_kind_is_refused(folder):
    with pytest.raises(
        CheckpointError, match=r"trained for another LM.* or train it again \(in Python allow_other_lm=True"
    ):
        load_module(folder, kind="soft_prompt", lm_fingerprint="b" * 64)
    assert load_module(folder, kind="soft_prompt", lm_fingerprint="b" * 64, allow_other_lm=True)[1]["length"] == 2
    with pytest.raises(CheckpointError, match="kind 'soft_prompt', expected 'adapter'"):
        load_module(folder, kind="adapter")


def test_every_truncation_is_found_and_named(folder):
    for path in list(folder.iterdir()):
        whole = path.read_bytes()
        for length in range(0, len(whole), 7):
            path.write_bytes(whole[:length])
            with pytest.raises(CheckpointError, match=path.name.split(".")[0]):
                verify_module(folder)
        path.write_bytes(whole)
    verify_module(folder)


def test_every_flipped_bit_is_found_and_named(folder):
    chance = random.Random(0)
    for path in list(folder.iterdir()):
        whole = path.read_bytes()
        for place in range(len(whole)):
            bit = 1 << chance.randrange(8)
            path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
            try:
                verify_module(folder)
            except CheckpointError as error:
                assert path.name.split("-")[0].split(".")[0] in str(error)
            else:  # white space of the JSON is the only thing without a meaning
                assert whole[place : place + 1] in b" \n" and path.suffix == ".json"
        path.write_bytes(whole)


@pytest.mark.parametrize("name", ["../evil.safetensors", "/etc/passwd", "..", "", "a/b", "a\\b", "a\0b"])
def test_a_name_outside_the_folder_is_refused(folder, name):
    forge(folder, name=name)
    with pytest.raises(CheckpointError, match="outside its folder"):
        load(folder)


@pytest.mark.parametrize("which", ["module.json", "tensors"])
def test_links_are_refused(folder, tmp_path, which):
    path = folder / "module.json" if which == "module.json" else tensor_file(folder)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="symbolic link"):
        load(folder)


class Evil:
    def __reduce__(self):
        return (Path("/tmp/frozenlm-pwned").touch, ())


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps(Evil()),
        (2**40).to_bytes(8, "little") + b"{}",
        b"",
        b"\0" * 40,
        (5).to_bytes(8, "little") + b"[1,2]",
    ],
    ids=["pickle", "huge header", "empty", "zeros", "not a header"],
)
def test_what_is_not_safetensors_is_refused(folder, data):
    forge(folder, data=data)
    with pytest.raises(CheckpointError, match="safetensors"):
        load(folder)
    assert not Path("/tmp/frozenlm-pwned").exists()


@pytest.mark.parametrize(("value", "message"), [("nan", "NaN or Inf"), ("inf", "NaN or Inf"), ("1e5", "limit 10000")])
def test_poison_is_refused_at_save_and_at_load(folder, value, message):
    poison = {"prompt": torch.tensor([[1.0, float(value)]])}
    with pytest.raises(CheckpointError, match=message):
        save_module(folder, poison, {}, lm_fingerprint=LM, kind="soft_prompt")
    assert load(folder)[0]["prompt"].shape == (2, 3)
    forge(folder, data=save(poison))
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_the_cap_is_lifted_by_the_caller_only(folder):
    forge(folder, data=save({"prompt": torch.tensor([[1e5]])}), max_magnitude=None)
    with pytest.raises(CheckpointError, match="limit 10000"):
        load(folder)
    assert float(load(folder, max_magnitude=None)[0]["prompt"]) == 1e5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[]", "not a module"),
        (b'{"format": "x"}', "not a module"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"format": "frozenlm.module", "version": 99}', "version 99"),
        (b" " * (checkpoint.MAX_JSON_BYTES + 1), "limit"),
    ],
)
def test_a_bad_json_is_refused(folder, content, message):
    (folder / "module.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


@pytest.mark.parametrize("fields", [{"kind": 3}, {"config": []}, {"file": {}}, {"lm_fingerprint": 1}])
def test_a_field_of_the_wrong_type_is_refused(folder, fields):
    forge(folder, **fields)
    with pytest.raises(CheckpointError, match="wrong type"):
        load(folder)


def test_a_missing_folder(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        load(tmp_path / "nowhere")


def test_settings_must_be_plain_json(tmp_path):
    for config in ({"x": object()}, {"x": float("nan")}):
        with pytest.raises(CheckpointError, match="not plain JSON"):
            save_module(tmp_path, {}, config, lm_fingerprint=None, kind="x")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_gives_one_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot write"):
        atomic_write_bytes(tmp_path / "file" / "x.bin", b"1")
    with pytest.raises(CheckpointError, match="cannot write"):
        save_module(tmp_path / "file", {}, {}, lm_fingerprint=None, kind="x")


def test_a_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
    atomic_write_json(tmp_path / "x.json", {"a": 1})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        atomic_write_json(tmp_path / "x.json", {"a": 2})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
