"""A user's own retriever: found by entry point or by module:Class, refused with a clear word, and run from YAML."""

from __future__ import annotations

import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest

from pipelines import plugins
from pipelines.cli import main
from pipelines.errors import ConfigError, RetrieverError
from pipelines.loader import load_config
from tests.documents import CHECKOUT, environment, marked_blocks, run_python, run_shell
from tests.wheels import install, make_wheel

SOURCE = '''
from retrievers.types import Hit

class Echo:
    """Finds the question itself."""
    def __init__(self, prefix="", times=1):
        if times < 0:
            raise ValueError("times is negative")
        self.prefix, self.times = prefix, times
    def retrieve(self, queries, k):
        return [[Hit(f"{self.prefix}{i}", 1.0 - i, q) for i in range(min(self.times, k))] for q in queries]

class Outer:
    Inner = Echo

def broken():
    return object()

not_callable = 5
'''


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a plug-in distribution, as pip installs it."""
    folder = tmp_path_factory.mktemp("plugin")
    points = {
        "echo": "echo_plugin:Echo",
        "bm25": "echo_plugin:Echo",
        "echo_broken": "echo_plugin:broken",
        "echo_value": "echo_plugin:not_callable",
        "echo_missing": "echo_plugin_that_is_not_there:Echo",
    }
    return install(make_wheel(folder, "echo-plugin", {"echo_plugin": SOURCE}, points), folder / "site")


@pytest.fixture
def plugged(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The distribution made visible to this process."""
    monkeypatch.syspath_prepend(str(installed))
    yield installed
    sys.modules.pop("echo_plugin", None)


def retrieval(kind: str, **params: Any) -> dict[str, Any]:
    return {"kind": "retrieval", "retriever": {"kind": kind, "params": params}}


def test_an_entry_point_is_found_and_called_with_the_params(plugged: Path) -> None:
    retriever = plugins.resolve_retriever("echo", {"prefix": "p", "times": 2})
    assert [hit.passage_id for hit in retriever.retrieve(["why"], 5)[0]] == ["p0", "p1"]


def test_known_names_hold_built_ins_and_plug_ins(plugged: Path) -> None:
    known = plugins.known_retrievers()
    assert known[:4] == ["bm25", "dense", "hybrid", "precomputed"] and "echo" in known and known.count("bm25") == 1


def test_an_unknown_name_is_refused_when_the_config_is_read(plugged: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"config: retriever.kind: there is no retriever 'ecko'; did you mean 'echo'\?"
    ):
        load_config(retrieval("ecko"))
    assert load_config(retrieval("echo")).retriever.kind == "echo"
    with pytest.raises(
        ConfigError, match="there is no retriever 'zzzzz'; known: bm25, dense, hybrid, precomputed, echo"
    ):
        plugins.resolve_retriever("zzzzz", {})


def test_reading_a_config_imports_no_plug_in(plugged: Path) -> None:
    start = time.process_time()
    load_config(retrieval("echo_missing"))
    assert time.process_time() - start < 1.0 and "echo_plugin" not in sys.modules


def test_module_and_class_only_where_allowed(plugged: Path) -> None:
    with pytest.raises(ConfigError, match=r"pass allow_import=True .* or --allow-import"):
        plugins.resolve_retriever("echo_plugin:Echo", {})
    assert "echo_plugin" not in sys.modules
    retriever = plugins.resolve_retriever("echo_plugin:Echo", {}, allow_import=True)
    assert retriever.retrieve(["why"], 5)[0][0].text == "why"
    assert plugins.resolve_retriever("echo_plugin:Outer.Inner", {}, allow_import=True).retrieve([], 1) == []


@pytest.mark.parametrize(
    ("kind", "params", "error", "says"),
    [
        ("echo", {"prefx": "a"}, ConfigError, r"unexpected keyword argument 'prefx'; it is echo\(prefix='', times=1\)"),
        ("echo", {"times": -1}, RetrieverError, "failed while it was made: ValueError: times is negative"),
        ("echo", {"times": "a"}, RetrieverError, "failed while it was made: TypeError"),
        ("echo_broken", {}, RetrieverError, r"made a object without a method retrieve\(queries, k\)"),
        ("echo_value", {}, ConfigError, "is 5; expected a class or a function"),
        ("echo_missing", {}, ConfigError, r"\(echo_plugin_that_is_not_there:Echo, echo-plugin 1.0\) cannot be loaded"),
        ("echo_plugin:Nothing", {}, ConfigError, "'echo_plugin:Nothing' cannot be imported: AttributeError"),
        ("no_such_module_x:C", {}, ConfigError, "cannot be imported: ModuleNotFoundError"),
        ("os.path:", {}, ConfigError, "not of the form module:Class"),
        ("..x:C", {}, ConfigError, "not of the form module:Class"),
        ("a:b:c", {}, ConfigError, "not of the form module:Class"),
    ],
)
def test_what_goes_wrong_names_the_plug_in(
    plugged: Path, kind: str, params: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        plugins.resolve_retriever(kind, params, allow_import=True)
    assert kind in str(caught.value)


def test_two_plug_ins_of_one_name_are_an_error(plugged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = make_wheel(tmp_path, "other-plugin", {"other_plugin": SOURCE}, {"echo": "other_plugin:Echo"})
    monkeypatch.syspath_prepend(str(install(other, tmp_path / "site")))
    with pytest.raises(
        ConfigError, match=r"echo_plugin:Echo of echo-plugin 1.0, other_plugin:Echo of other-plugin 1.0"
    ):
        plugins.resolve_retriever("echo", {})


def test_the_list_says_what_loads(plugged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    infos = {info.name: info for info in plugins.installed_plugins()}
    assert infos["echo"] == plugins.PluginInfo("echo", "echo_plugin:Echo", "echo-plugin 1.0", None)
    assert "built-in" in str(infos["bm25"].problem)
    assert "ModuleNotFoundError" in str(infos["echo_missing"].problem)
    assert main(["plugins", "list"]) == 0
    shown = capsys.readouterr().out
    assert "echo-plugin 1.0" in shown and "built in" in shown


def test_an_installed_plug_in_runs_from_yaml_in_a_fresh_process(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(
        "kind: retrieval\nretrieve_k: 2\nretriever:\n  kind: echo\n  params: {prefix: e, times: 3}\n"
    )
    code = (
        "from pipelines import Pipeline\n"
        "with Pipeline.from_config('job.yaml') as pipe:\n"
        "    print([hit.passage_id for hit in pipe('who').passages])\n"
    )
    assert run_python(code, tmp_path, environment(tmp_path, installed)).strip() == "['e0', 'e1']"


@pytest.mark.slow
def test_the_page_on_custom_retrievers_says_the_truth(tmp_path: Path) -> None:
    """Every marked block of docs/custom_retriever.md is written or run, in order."""
    blocks = marked_blocks(CHECKOUT / "docs" / "custom_retriever.md")
    files = {block.mark.removeprefix("file: "): block.text for block in blocks if block.mark.startswith("file: ")}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    project = tomllib.loads(files["pyproject.toml"])["project"]
    points = project["entry-points"]["frozenlm.retrievers"]
    wheel = make_wheel(tmp_path, project["name"], {"my_search": files["my_search.py"]}, points)
    variables = environment(tmp_path, install(wheel, tmp_path / "site"), FROZENLM_HOME=str(tmp_path / "home"))
    python = "\n".join(block.text for block in blocks if block.runs and block.language == "python")
    shell = [block.text for block in blocks if block.runs and block.language == "bash"]
    assert "Nobel Prize" in run_python(python, tmp_path, variables)
    shown = [run_shell(command, tmp_path, variables) for command in shell]
    assert len(shown) == 3 and all("Nobel Prize" in text for text in shown[:2])
    assert shown[2].count(": OK") == 3
