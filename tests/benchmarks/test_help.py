"""Every benchmark that takes arguments says what they are."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

WITH_ARGUMENTS = [
    path
    for path in sorted((Path(__file__).resolve().parents[2] / "benchmarks").glob("*.py"))
    if "ArgumentParser(" in path.read_text()
]


@pytest.mark.parametrize("path", WITH_ARGUMENTS, ids=lambda path: path.stem)
def test_help(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    assert ended.value.code == 0 and f"usage: {path.name}" in capsys.readouterr().out


def test_they_are_found() -> None:
    assert {"intrinsic_dimension", "prompt_length", "lm_size"} <= {path.stem for path in WITH_ARGUMENTS}
