"""The house's rule: two pillars that know only themselves, a roof that knows both, no cycle, and light doors."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.patience import PATIENCE

CHECKOUT = Path(__file__).resolve().parents[1]
PACKAGES = ("frozenlm", "retrievers", "pipelines")
HEAVY = ("torch", "faiss", "transformers", "sentence_transformers", "datasets", "scipy", "numba")


def _modules() -> dict[str, Path]:
    """Every module of the three packages by name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((CHECKOUT / package).rglob("*.py")):
            parts = path.relative_to(CHECKOUT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = _modules()


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def _imports(node: ast.AST, *, lazy: bool, typing: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements below `node`; `lazy`: those inside functions too, `typing`: those for annotations too."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif not (_is_type_checking(child) and not typing) and (
            lazy or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        ):
            yield from _imports(child, lazy=lazy, typing=typing)


def _targets(name: str, *, lazy: bool, typing: bool = False) -> set[str]:
    """The modules, ours or not, that module `name` imports."""
    found: set[str] = set()
    for statement in _imports(ast.parse(MODULES[name].read_text()), lazy=lazy, typing=typing):
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names}
        else:
            assert statement.level == 0, f"{name}: imports are absolute, line {statement.lineno} is not"
            module = statement.module or ""
            inner = {f"{module}.{alias.name}" for alias in statement.names}
            found |= {target if target in MODULES else module for target in inner}
    return found


@pytest.mark.parametrize("name", MODULES)
def test_a_pillar_imports_no_other_package_of_ours(name: str) -> None:
    home = name.partition(".")[0]
    used = {target.partition(".")[0] for target in _targets(name, lazy=True, typing=True)} & set(PACKAGES)
    assert used <= ({home} if home != "pipelines" else set(PACKAGES))
    assert "tests" not in {target.partition(".")[0] for target in _targets(name, lazy=True)}


@pytest.mark.parametrize("lazy", [False, True], ids=["when imported", "in functions too"])
def test_no_cycle_between_modules(lazy: bool) -> None:
    graph = {name: _targets(name, lazy=lazy) & set(MODULES) - {name} for name in MODULES}
    done: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for target in sorted(graph[name]):
                walk(target, (*path, name))
            done.add(name)

    for name in graph:
        walk(name, ())


@pytest.mark.parametrize("name", MODULES)
def test_every_module_imports(name: str) -> None:
    importlib.import_module(name)


def _loaded(code: str) -> set[str]:
    """Top-level modules in a fresh process after `code`."""
    script = (
        f"{code}\nimport sys\nprint('\\n'.join({{name.partition('.')[0] for name in sys.modules}}), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


@pytest.mark.parametrize(
    "code",
    [
        "import retrievers, retrievers.types, retrievers.errors, retrievers.manifest, retrievers.files",
        "import retrievers.corpus, retrievers.check, retrievers.metrics, retrievers.bm25, retrievers.hybrid",
        "import retrievers.dense, retrievers.encoders, retrievers.rerank, retrievers.cache",
    ],
)
def test_importing_retrievers_needs_neither_torch_nor_faiss(code: str) -> None:
    assert not _loaded(code) & {"torch", "faiss", "transformers", "sentence_transformers"}


@pytest.mark.parametrize("arguments", [["--help"], ["ask", "--help"], ["config", "check", "closed_book.yaml"]])
def test_the_command_answers_without_loading_anything_heavy(arguments: list[str]) -> None:
    loaded = _loaded(f"from pipelines.cli import main\nassert main({arguments!r}) == 0")
    assert "typer" in loaded and not loaded & {*HEAVY, "numpy"}


def test_import_pipelines_is_light() -> None:
    assert not _loaded("import pipelines, pipelines.config, pipelines.loader") & {*HEAVY, "numpy"}
