"""R6: every artefact, cut short or with one bit turned, is found out, and the finding names it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from frozenlm.checkpoint import save_module
from frozenlm.deltas.bitfit import BitFit
from frozenlm.encoder_tasks import TunedEncoder
from frozenlm.task_heads import ClassificationHead
from frozenlm.tensor_file import write_tensors
from pipelines.errors import ConfigError
from pipelines.evaluation.outputs import ResultFolder
from pipelines.verify import Finding, verify
from retrievers.bm25 import BM25Retriever
from retrievers.types import Passage
from tests.toys import toy_encoder


def make_index(folder: Path) -> Path:
    passages = [Passage(f"p{i}", f"the word number {i}", f"title {i}") for i in range(5)]
    BM25Retriever.build(passages, folder / "index" / "bm25-0")
    return folder / "index" / "bm25-0"


def make_module(folder: Path) -> Path:
    target = folder / "modules" / "prompt"
    save_module(target, {"vectors": torch.ones(2, 3)}, {"length": 2}, lm_fingerprint="a" * 64, kind="soft_prompt")
    return target


def make_tuned(folder: Path) -> Path:
    encoder = toy_encoder("bert")
    target = folder / "modules" / "tuned"
    TunedEncoder(ClassificationHead.create(encoder, ["no", "yes"]), BitFit.create(encoder)).save(target, encoder)
    return target


def make_training_state(folder: Path) -> Path:
    target = folder / "modules" / "prompt.run"
    target.mkdir(parents=True)
    write_tensors(target / "state.safetensors", {"module.vectors": torch.ones(2, 3)}, {"step": 5})
    write_tensors(target / "best-5.safetensors", {"module.vectors": torch.ones(2, 3)}, {"step": 5})
    return target


def make_evaluation(folder: Path) -> Path:
    results = ResultFolder(folder / "evaluation" / "first")
    with results.locked():
        results.begin({"questions_sha256": "0"}, {"config": None}, restart=False)
        hit = {"id": "p1", "title": "t", "text": "x", "score": 1.0}
        results.append([{"id": "q1", "em": 1.0}], [{"id": "q1", "question": "who", "answers": ["x"], "ctxs": [hit]}])
        results.finish({"n": 1, "em": 1.0}, retrieval=True)
    return results.path


MAKERS: dict[str, Callable[[Path], Path]] = {
    "index": make_index,
    "module": make_module,
    "modules trained together": make_tuned,
    "training state": make_training_state,
    "evaluation": make_evaluation,
}


@pytest.fixture(scope="module", params=MAKERS)
def artefact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whole artefact in a workspace; tests work on copies."""
    folder = tmp_path_factory.mktemp("whole")
    return MAKERS[request.param](folder)


def copied(artefact: Path, tmp_path: Path) -> Path:
    """A copy under the same parent's name, as it would lie in a workspace."""
    return Path(shutil.copytree(artefact, tmp_path / artefact.parent.name / artefact.name))


def damaged(path: Path) -> list[Finding]:
    return [finding for finding in verify(path) if finding.problem is not None]


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_whole_artefact_is_fine(artefact: Path, tmp_path: Path) -> None:
    copy = copied(artefact, tmp_path)
    assert damaged(copy) == [] and damaged(tmp_path) == []
    assert len(list(verify(copy))) >= 1


def test_every_file_cut_short_is_found(artefact: Path, tmp_path: Path) -> None:
    copy = copied(artefact, tmp_path)
    for path in files(copy):
        content = path.read_bytes()
        # Two bytes: a last line break alone holds no information, JSON without it is whole.
        for length in {0, len(content) // 2, len(content) - 2}:
            path.write_bytes(content[:length])
            assert damaged(copy), f"{path.name} cut to {length} of {len(content)} bytes"
        path.write_bytes(content)
    assert damaged(copy) == []


def test_every_turned_bit_is_found_and_the_file_named(artefact: Path, tmp_path: Path) -> None:
    copy = copied(artefact, tmp_path)
    for path in files(copy):
        content = path.read_bytes()
        step = max(1, len(content) // 25)
        for place in range(0, len(content), step):
            turned = bytearray(content)
            turned[place] ^= 1 << (place % 8)
            path.write_bytes(turned)
            found = damaged(copy)
            assert found, f"bit {place % 8} of byte {place} of {path.name}"
            assert any(copy.name in f"{finding.path} {finding.problem}" for finding in found)
        path.write_bytes(content)
    assert damaged(copy) == []


def test_every_missing_file_is_found(artefact: Path, tmp_path: Path) -> None:
    if artefact.name.endswith(".run"):
        pytest.skip("a training run is what is there: nothing lists its files")
    copy = copied(artefact, tmp_path)
    for path in files(copy):
        if path.name == "run.json":
            continue
        content = path.read_bytes()
        path.unlink()
        # Without metrics.json an evaluation is unfinished, which is no damage.
        unfinished = any(finding.kind == "unfinished evaluation" for finding in verify(copy))
        assert damaged(copy) or unfinished, path.name
        path.write_bytes(content)


def test_a_workspace_is_walked_and_only_the_damaged_one_is_named(tmp_path: Path) -> None:
    made = {name: make(tmp_path) for name, make in MAKERS.items()}
    kinds = {finding.kind for finding in verify(tmp_path)}
    assert {"bm25", "soft_prompt", "tensors with digest", "evaluation"} <= kinds
    (made["module"] / "module.json").write_text("{}")
    assert [finding.path for finding in damaged(tmp_path)] == [made["module"]]


def test_unfinished_things_are_no_damage(tmp_path: Path) -> None:
    (tmp_path / "index" / "bm25-1.building").mkdir(parents=True)
    results = ResultFolder(tmp_path / "evaluation")
    with results.locked():
        results.begin({}, {}, restart=False)
        results.append([{"id": "q1"}], [{"id": "q1", "ctxs": []}])
    findings = list(verify(tmp_path))
    assert all(finding.problem is None and "unfinished" in finding.kind for finding in findings) and len(findings) == 3


def test_an_index_or_module_folder_without_its_marker(tmp_path: Path) -> None:
    for name in ("index/bm25-0", "modules/prompt"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "some.json").write_text("{}")
    assert len(damaged(tmp_path)) == 2


def test_single_files(tmp_path: Path) -> None:
    (tmp_path / "good.json").write_text("{}")
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n{"a":\n')
    (tmp_path / "deep.json").write_text("[" * 100_000)
    assert damaged(tmp_path / "good.json") == []
    assert "line 2 is no JSON" in str(damaged(tmp_path / "rows.jsonl")[0].problem)
    assert damaged(tmp_path / "deep.json")


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path)
    assert [finding.kind for finding in verify(tmp_path)] == ["link, not followed"]


def test_a_hostile_list_of_files_stays_in_its_folder(tmp_path: Path) -> None:
    folder = make_evaluation(tmp_path)
    checksums = json.loads((folder / "checksums.json").read_text())
    checksums["files"]["../../secret"] = "0" * 64
    (folder / "checksums.json").write_text(json.dumps(checksums))
    assert [finding.path.name for finding in damaged(folder)] == ["checksums.json"]


def test_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds nothing that frozenlm writes"):
        list(verify(tmp_path))
    with pytest.raises(ConfigError, match="there is nothing at"):
        list(verify(tmp_path / "nowhere"))
