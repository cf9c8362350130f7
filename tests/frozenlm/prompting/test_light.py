"""The package is a light door: names come when they are asked for."""

import subprocess
import sys

import frozenlm.prompting
from tests.patience import PATIENCE


def test_importing_it_needs_no_torch() -> None:
    code = (
        "import frozenlm.prompting, frozenlm.prompting.grammar, frozenlm.prompting.labels, sys; print([*sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert "'frozenlm.prompting'" in done.stdout and "'torch'" not in done.stdout


def test_every_name_is_there() -> None:
    for name in frozenlm.prompting.__all__:
        assert getattr(frozenlm.prompting, name).__name__ == name
