"""Plug-in distributions for tests: a wheel is a zip, so one is written by hand and installed with pip, offline."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path


def make_wheel(
    folder: Path, name: str, modules: dict[str, str], entry_points: dict[str, str], version: str = "1.0"
) -> Path:
    """A wheel with the given modules (name -> source) and retriever plug-ins (name -> module:object)."""
    stem = f"{name.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    files = {f"{module}.py": source for module, source in modules.items()}
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    files[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    lines = "".join(f"{plugin} = {target}\n" for plugin, target in entry_points.items())
    files[f"{info}/entry_points.txt"] = f"[frozenlm.retrievers]\n{lines}"
    files[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
    wheel = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
    return wheel


def install(wheel: Path, target: Path) -> Path:
    """Install a wheel into a folder of its own."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(target)]
    done = subprocess.run([*command, str(wheel)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target
