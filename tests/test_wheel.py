"""What a user installs: the wheel, alone in a folder, away from the checkout, runs a packaged config by its name."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.documents import CHECKOUT
from tests.patience import PATIENCE

pytestmark = pytest.mark.slow

ASK = """
import sys
# An editable install in this environment names the checkout too; a user's machine has none.
sys.path = [path for path in sys.path if path != {checkout!r}]
import pipelines
assert pipelines.__file__.startswith({site!r}), pipelines.__file__
from pipelines import Pipeline
with Pipeline.from_config("frozen_reader.yaml") as pipe:
    answer = pipe("who got the first nobel prize in physics")
    assert isinstance(answer.text, str) and answer.context and answer.passages, answer
    assert pipe.lm.verify().changed == 0
    print(answer.passages[0].title)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without the network."""
    if importlib.util.find_spec("hatchling") is None or importlib.util.find_spec("build") is None:
        pytest.skip("building a wheel offline needs the packages build and hatchling")
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(CHECKOUT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("frozenlm-*.whl"))


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel installed and nothing else."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(target)]
    done = subprocess.run([*command, str(wheel)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


def _run(site: Path, folder: Path, *command: str) -> str:
    variables = {key: value for key, value in os.environ.items() if key != "FROZENLM_HOME"}
    variables |= {"PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    done = subprocess.run(
        command, cwd=folder, env=variables, capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_carries_everything_and_nothing_more(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assets = [name for name in names if name.startswith("pipelines/_assets/")]
    for wanted in ("configs/demo.yaml", "configs/schema.json", "configs/demo/corpus.jsonl"):
        assert f"pipelines/_assets/{wanted}" in assets
    for wanted in ("model.safetensors", "tokenizer.json", "config.json"):
        assert f"pipelines/_assets/models/wiki-opt-22m/{wanted}" in assets
    assert {f"{package}/py.typed" for package in ("frozenlm", "retrievers", "pipelines")} <= set(names)
    packages = {name.partition("/")[0] for name in names if not name.partition("/")[0].endswith(".dist-info")}
    assert packages == {"frozenlm", "retrievers", "pipelines"}
    assert not [name for name in names if name.endswith((".pyc", ".pkl")) or "/tests/" in name]


def test_a_question_is_answered_from_an_empty_folder(site: Path, tmp_path: Path) -> None:
    code = ASK.format(checkout=str(CHECKOUT), site=str(site))
    assert "Nobel" in _run(site, tmp_path, sys.executable, "-c", code)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"], "everything that is built goes below the workspace"


def test_the_command_is_installed(site: Path, tmp_path: Path) -> None:
    shown = _run(site, tmp_path, sys.executable, str(site / "bin" / "frozenlm"), "config", "check", "demo.yaml")
    assert shown == "demo.yaml: OK\n"
