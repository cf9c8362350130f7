"""Runs the code blocks of a Markdown page as its reader would.

A block is used where an HTML comment stands on the line before it: `<!-- file: NAME -->` writes the block to a file,
`<!-- run -->` and `<!-- test -->` run it (Python blocks of one page share their names, like one session). Other
blocks are only read.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.patience import PATIENCE

CHECKOUT = Path(__file__).resolve().parents[1]
_BLOCK = re.compile(r"^<!-- *(?P<mark>[^\n]*?) *-->\n+```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class CodeBlock:
    """One marked block: `mark` is the comment's text, `line` where the comment stands."""

    mark: str
    language: str
    text: str
    line: int

    @property
    def runs(self) -> bool:
        return self.mark in ("run", "test")


def marked_blocks(page: Path) -> list[CodeBlock]:
    """The marked blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        CodeBlock(m["mark"], m["language"], m["text"], text.count("\n", 0, m.start()) + 1)
        for m in _BLOCK.finditer(text)
    ]


def environment(folder: Path, *extra: Path, **variables: str) -> dict[str, str]:
    """Variables for a subprocess that finds `frozenlm` on its path, whether it is installed or not."""
    tools = folder / ".tools"
    tools.mkdir(exist_ok=True)
    command = tools / "frozenlm"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pipelines.cli "$@"\n')
    command.chmod(0o755)
    paths = [str(path) for path in (*extra, CHECKOUT)]
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join(paths),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "NO_COLOR": "1",
        "COLUMNS": "200",
        **variables,
    }


def run_shell(command: str, folder: Path, variables: Mapping[str, str], timeout: float = PATIENCE) -> str:
    """Standard output of a shell script; fails with everything it printed where a command of it fails."""
    return _run(["bash", "-euo", "pipefail", "-c", command], folder, variables, timeout)


def run_python(code: str, folder: Path, variables: Mapping[str, str], timeout: float = PATIENCE) -> str:
    """Standard output of a Python script."""
    return _run([sys.executable, "-c", code], folder, variables, timeout)


def _run(command: Sequence[str], folder: Path, variables: Mapping[str, str], timeout: float) -> str:
    done = subprocess.run(
        command, cwd=folder, env=dict(variables), capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, f"{command[-1]}\nexit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout
