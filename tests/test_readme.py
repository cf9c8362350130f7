"""The commands of the README do what it says: every block marked `<!-- test -->` is run, in order, in one folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.documents import CHECKOUT, environment, marked_blocks, run_python, run_shell

README = CHECKOUT / "README.md"
CARRIED = ("configs", "models", "docs", "README.md", "Makefile", "pyproject.toml")


@pytest.mark.slow
def test_the_marked_blocks_of_the_readme_run(tmp_path: Path) -> None:
    if not README.exists():
        pytest.skip("there is no README.md in this checkout")
    blocks = [block for block in marked_blocks(README) if block.mark == "test"]
    assert blocks, "README.md marks no block with <!-- test -->"
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in CARRIED:
        source = CHECKOUT / name
        if source.is_dir():
            shutil.copytree(source, folder / name)
        elif source.exists():
            shutil.copy(source, folder / name)
    variables = environment(tmp_path, FROZENLM_HOME=str(tmp_path / "home"))
    python = ""
    for block in blocks:
        print(f"README.md:{block.line}")  # shown by pytest where the block fails
        if block.language in ("bash", "sh", "console"):
            commands = "\n".join(line.removeprefix("$ ") for line in block.text.splitlines())
            run_shell(commands, folder, variables)
        elif block.language == "python":
            python += block.text
            run_python(python, folder, variables)
        else:
            pytest.fail(f"README.md:{block.line}: a block of {block.language or 'no language'} cannot be run")
