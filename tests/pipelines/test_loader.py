"""How a config file is read: every trap of YAML, parents, overrides and environment, each with its message."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from pipelines.config import ClosedBook, Retrieval
from pipelines.errors import ConfigError
from pipelines.loader import as_written, find_config, load_config

SMALL = "kind: retrieval\ncorpus: {path: passages.jsonl}\nretriever: {kind: bm25}\n"
CLOSED = {"kind": "closed_book", "lm": {"model": "some/model"}}


def write(folder: Path, text: str | bytes, name: str = "job.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def fault(source: Any, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(source, overrides=overrides)
    return str(caught.value)


def test_a_small_file_loads_and_paths_start_from_its_folder(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, SMALL, "deep/job.yaml"))
    assert isinstance(config, Retrieval)
    assert config.corpus is not None and config.corpus.path == tmp_path / "deep" / "passages.jsonl"
    assert config.retriever.kind == "bm25" and config.retriever.k1 == 0.9


def test_the_workspace_starts_from_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, SMALL + "workspace: built", "deep/job.yaml")
    monkeypatch.chdir(tmp_path)
    assert load_config(path).workspace_path == tmp_path / "built"


def test_duplicate_key_names_both_lines(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL + "seed: 1\nseed: 2\n")
    assert fault(path) == f"{path}:5: duplicate key 'seed', first at {path}:4; keep one"


def test_duplicate_key_inside_a_block_and_a_flow_mapping(tmp_path: Path) -> None:
    path = write(tmp_path, "kind: retrieval\nretriever:\n  kind: bm25\n  kind: bm25\ncorpus: {path: a, path: b}\n")
    message = fault(path)
    assert f"{path}:4: duplicate key 'kind'" in message and f"{path}:5: duplicate key 'path'" in message


@pytest.mark.parametrize(
    ("written", "value"),
    [("1e-3", 0.001), ("1E2", 100.0), ("1.5e+1", 15.0), (".5", 0.5), ("2.", 2.0), ("1", 1.0), ("1_000.5", 1000.5)],
)
def test_floats(tmp_path: Path, written: str, value: float) -> None:
    config = load_config(
        write(tmp_path, f"kind: retrieval\ncorpus: {{path: x}}\nretriever: {{kind: bm25, k1: {written}}}\n")
    )
    assert config.retriever.k1 == value


@pytest.mark.parametrize("word", ["yes", "no", "on", "off", "NO", "y", "12:30", "2024-01-31", "0x1F", "1e", "1.2.3"])
def test_plain_words_stay_words(tmp_path: Path, word: str) -> None:
    config = load_config(write(tmp_path, SMALL + f"workspace: {word}\n"))
    assert config.workspace == word


@pytest.mark.parametrize(("written", "value"), [("010", 10), ("1_000", 1000), ("+5", 5)])
def test_whole_numbers_are_decimal(tmp_path: Path, written: str, value: int) -> None:
    assert load_config(write(tmp_path, SMALL + f"seed: {written}\n")).seed == value


@pytest.mark.parametrize("written", ["'5'", "5.0", "true", "five", "null", "-1", "1" * 30, "9" * 5000])
def test_a_wrong_type_is_not_converted(tmp_path: Path, written: str) -> None:
    path = write(tmp_path, SMALL + f"seed: {written}\n")
    assert fault(path).startswith(f"{path}:4: seed: ")


def test_unknown_key_names_line_and_nearest(tmp_path: Path) -> None:
    path = write(tmp_path, "kind: retrieval\ncorpus: {path: x}\nretriever:\n  kind: bm25\n  stemer: porter\n")
    assert fault(path) == f"{path}:5: retriever.stemer: unknown key; did you mean 'stemmer'?"


def test_unknown_key_without_a_near_one_lists_the_known(tmp_path: Path) -> None:
    path = write(tmp_path, "kind: retrieval\ncorpus: {path: x, zzz: 1}\nretriever: {kind: bm25}\n")
    assert fault(path) == f"{path}:2: corpus.zzz: unknown key; known: format, limit, path"


@pytest.mark.parametrize(
    ("block", "wrong", "near"),
    [
        ("lm: {model: m, widnow: 5}", "lm.widnow", "window"),
        ("lm: {model: m}\nreranker: {kind: cross_encoder, model: m, chekpoint: a}", "reranker.chekpoint", "checkpoint"),
        ("lm: {model: m}\nreranker: {kind: lm_likelihood, promt: a}", "reranker.promt", "prompt"),
        ("lm: {model: m}\nprompt: {init: {kind: text, txt: a}}", "prompt.init.txt", "text"),
        ("lm: {model: m}\ntraining: {questions: [{path: a, fromat: auto}]}", "training.questions.0.fromat", "format"),
        ("lm: {model: m}\nevaluation: {questions: {path: a, limt: 5}}", "evaluation.questions.limt", "limit"),
        ("lm: {model: m}\npacking: {ordr: best_last}", "packing.ordr", "order"),
        ("lm: {model: m}\ngenration: {}", "genration", "generation"),
    ],
)
def test_the_nearest_key_is_found_in_every_sort_of_block(tmp_path: Path, block: str, wrong: str, near: str) -> None:
    path = write(tmp_path, SMALL.replace("retrieval", "frozen_reader", 1) + block)
    assert f"{wrong}: unknown key; did you mean '{near}'?" in fault(path)


def test_unknown_key_inside_hybrid_members(tmp_path: Path) -> None:
    members = "{bm25: {kind: bm25, k: 1}, dense: {kind: dense, encoder: {model: m, modell: m}}}"
    path = write(tmp_path, f"kind: retrieval\ncorpus: {{path: x}}\nretriever:\n  kind: hybrid\n  members: {members}\n")
    lines = fault(path).splitlines()
    assert f"{path}:5: retriever.members.bm25.k: unknown key; did you mean 'k1'?" in lines
    assert f"{path}:5: retriever.members.dense.encoder.modell: unknown key; did you mean 'model'?" in lines


def test_every_fault_of_a_file_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path, "kind: closed_book\nlm: {modl: x}\nseed: -1\ngeneration: {num_beams: 0, top_p: 2}\nwhat: 1\n"
    )
    places = [line.split(": ")[1] for line in fault(path).splitlines()]
    assert places == ["seed", "lm.model", "lm.modl", "generation.num_beams", "generation.top_p", "what"]


def test_very_many_faults_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL + "".join(f"wrong{i}: 1\n" for i in range(500)))
    assert fault(path).splitlines()[-1] == "... and 450 more"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "retriever: {kind: bm25}",
            "config: kind is nothing (null), expected one of classification, closed_book, frozen_reader",
        ),
        ("kind: retreival", "did you mean 'retrieval'?"),
        ("kind: [a]", "kind is a list of 1, expected one of classification"),
        ("kind: closed_book\nlm: {model: m}\nprompt: {init: {kind: tekst, text: a}}", "did you mean 'text'?"),
        ("kind: closed_book\nlm: m", "lm: expected a block of `key: value`, got 'm' (text)"),
        ("kind: closed_book\nlm:\n", "lm: expected a block of `key: value`, got nothing (null)"),
        ("kind: closed_book\nlm: {model: ''}", "lm.model: "),
        ("kind: retrieval\nretriever: bm25", "retriever: a retriever needs a kind: bm25, dense"),
        ("kind: retrieval\nretriever: {kind: bm25}", "a retriever of kind bm25 needs a corpus block"),
        (
            "kind: retrieval\ncorpus: {path: x}\nretriever: {kind: bm52}",
            "there is no retriever 'bm52'; did you mean 'bm25'?",
        ),
        ("kind: retrieval\ncorpus: {path: x}\nretriever: {kind: 'a b:c'}", "is not of the form module:Class"),
        (
            "kind: closed_book\nlm: {model: m}\npacking: {question: q}",
            "packing.question needs the slot {question}, got 'q'",
        ),
        ("kind: closed_book\nlm: {model: '~no_such_user_x/m'}", "lm.model: not a usable path"),
        (f"kind: closed_book\nlm: {{model: {'x' * 5000}}}", "lm.model: neither a folder nor a model's id"),
    ],
)
def test_messages(tmp_path: Path, text: str, says: str) -> None:
    assert says in fault(write(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the file is empty"),
        ("# only a comment\n", "the file is empty"),
        ("---\n", "the file is empty"),
        ("- a\n- b\n", "a config is a mapping of keys to values, got a list"),
        ("hello", "a config is a mapping of keys to values, got a single value"),
        ("a: b: c", ":1: not valid YAML: mapping values are not allowed here"),
        ("a: 'open", ":1: not valid YAML: while scanning a quoted scalar: found unexpected end of stream"),
        ("\ta: 1", ":1: not valid YAML"),
        ("a: 1\n---\nb: 2", "not valid YAML: expected a single document"),
        (b"\xff\xfe\x00a", "not UTF-8 text"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "not UTF-8 text"),
        (b"kind: \x00", "not valid YAML: unacceptable character"),
        ("a: !!python/object/apply:os.system ['true']", "the tag 'tag:yaml.org,2002:python/object/apply:os.system'"),
        ("a: !!int ''", "the tag 'tag:yaml.org,2002:int' is not read"),
        ("a: !mine {b: 1}", "the tag '!mine' is not read"),
        ("a: &x {b: 1}\nc: {<<: *x}", "the merge key '<<' is not read; use `extends`"),
        ("? [a]\n: 1", "a key must be a plain word"),
        ("a: &a [*a]", "more than 20,000 values or 40 levels once aliases are followed"),
        ("a: *nowhere", "found undefined alias"),
        ("[" * 60_000, "nested deeper than 40 levels"),
        ("a: " + "{b: " * 50 + "}" * 50, "nested deeper than 40 levels"),
        ("a" * 70_000, "70,000 characters, a config has at most 64,000"),
        ("#" * 300_000, "300,000 bytes, far more than any config has"),
    ],
)
def test_what_is_no_config_is_refused_fast(tmp_path: Path, text: str | bytes, says: str) -> None:
    path = write(tmp_path, text)
    start = time.process_time()
    message = fault(path)
    assert says in message and message.startswith(str(path)) and time.process_time() - start < 1.0


def test_billion_laughs_is_refused_fast(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    start = time.process_time()
    assert "once aliases are followed" in fault(write(tmp_path, "\n".join(lines)))
    assert time.process_time() - start < 1.0


def test_a_modest_alias_works(tmp_path: Path) -> None:
    text = "kind: closed_book\nlm: &lm {model: some/model}\ngeneration: {stop: [&stop x, *stop]}\n"
    assert load_config(write(tmp_path, text)).generation.stop == ["x", "x"]


def test_windows_line_ends_and_byte_order_mark(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, b"\xef\xbb\xbf" + SMALL.replace("\n", "\r\n").encode())).kind == "retrieval"


# extends


def test_extends_merges_blocks_and_the_child_wins(tmp_path: Path) -> None:
    write(tmp_path, SMALL + "seed: 1\nretrieve_k: 7\nevaluation: {chunk: 5, matcher: substring}\n", "base.yaml")
    child = load_config(write(tmp_path, "extends: base.yaml\nseed: 2\nevaluation: {chunk: 6}\n"))
    assert (child.seed, child.retrieve_k) == (2, 7)
    assert (child.evaluation.chunk, child.evaluation.matcher) == (6, "substring")


def test_a_chain_of_parents_and_paths_from_each_ones_own_folder(tmp_path: Path) -> None:
    write(tmp_path, SMALL, "far/grand.yaml")
    write(tmp_path, "extends: far/grand.yaml\nevaluation: {questions: {path: q.jsonl}}\n", "parent.yaml")
    config = load_config(write(tmp_path, "extends: ../parent.yaml\nseed: 3\n", "near/child.yaml"))
    assert config.corpus.path == tmp_path / "far" / "passages.jsonl"
    assert config.evaluation.questions.path == tmp_path / "q.jsonl"


def test_another_kind_replaces_the_parents_block(tmp_path: Path) -> None:
    write(tmp_path, SMALL.replace("{kind: bm25}", "{kind: bm25, k1: 2.0}"), "base.yaml")
    same = load_config(write(tmp_path, "extends: base.yaml\nretriever: {b: 0.5}\n"))
    assert (same.retriever.k1, same.retriever.b) == (2.0, 0.5)
    other = load_config(write(tmp_path, "extends: base.yaml\nretriever: {kind: dense, encoder: {model: m/m}}\n"))
    assert other.retriever.kind == "dense"


def test_null_clears_a_parents_block(tmp_path: Path) -> None:
    write(tmp_path, "kind: closed_book\nlm: {model: m/m}\nprompt: {length: 5}\n", "base.yaml")
    assert load_config(write(tmp_path, "extends: base.yaml\nprompt: null\n")).prompt is None


def test_a_fault_in_the_parent_names_the_parents_line(tmp_path: Path) -> None:
    parent = write(tmp_path, SMALL + "sead: 1\n", "base.yaml")
    assert fault(write(tmp_path, "extends: base.yaml\n")) == f"{parent}:4: sead: unknown key; did you mean 'seed'?"


def test_a_missing_key_is_not_blamed_on_a_line_that_was_replaced(tmp_path: Path) -> None:
    write(tmp_path, SMALL.replace("{kind: bm25}", "\n  kind: dense\n  encoder: {model: m/m}"), "base.yaml")
    child = write(tmp_path, "extends: base.yaml\nretriever: {kind: hybrid}\n")
    assert fault(child) == f"{child}:2: retriever.members: missing; this key is required"


def test_a_circle_a_missing_parent_and_a_long_chain(tmp_path: Path) -> None:
    write(tmp_path, "extends: b.yaml\n", "a.yaml")
    write(tmp_path, "extends: a.yaml\n", "b.yaml")
    assert "extends itself through a.yaml -> b.yaml -> a.yaml" in fault(tmp_path / "a.yaml")
    path = write(tmp_path, "kind: retrieval\nextends: nowhere.yaml\n")
    assert f"{path}:2: extends 'nowhere.yaml', but there is no file" in fault(path)
    assert "File name too long" in fault(write(tmp_path, f"extends: {'x' * 300}\n"))
    assert "extends names one file, got 5" in fault(write(tmp_path, "extends: 5\n"))
    assert "extends names one file" in fault(write(tmp_path, "extends: [a.yaml]\n"))
    for i in range(12):
        write(tmp_path, f"extends: c{i + 1}.yaml\n", f"c{i}.yaml")
    assert "more than 8 parents" in fault(tmp_path / "c0.yaml")


def test_a_packaged_config_can_be_a_parent(tmp_path: Path) -> None:
    child = load_config(write(tmp_path, "extends: closed_book.yaml\nseed: 77\n", "mine.yaml"))
    assert isinstance(child, ClosedBook) and child.seed == 77


# overrides


def test_overrides_come_last_and_are_yaml(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL)
    config = load_config(
        path, overrides=["retriever.k1=1.2", "seed=5", "workspace='7'", "evaluation={chunk: 3}", "seed=6"]
    )
    assert (config.retriever.k1, config.seed, config.workspace, config.evaluation.chunk) == (1.2, 6, "7", 3)


def test_override_inside_members_and_lists(tmp_path: Path) -> None:
    members = "{bm25: {kind: bm25}, dense: {kind: dense, encoder: {model: m/m}}}"
    text = f"kind: retrieval\ncorpus: {{path: x}}\nretriever: {{kind: hybrid, members: {members}}}\n"
    config = load_config(write(tmp_path, text + "evaluation: {recall_at: [1, 5]}\n"),
                         overrides=["retriever.members.bm25.k1=1.2", "evaluation.recall_at.1=20"])  # fmt: skip
    assert config.retriever.members["bm25"].k1 == 1.2 and config.evaluation.recall_at == [1, 20]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("seed", "override 'seed': expected a.b.c=value"),
        ("=1", "expected a.b.c=value"),
        ("a..b=1", "expected a.b.c=value"),
        ("seed=", "--set seed: no value; write seed=null to clear it"),
        ("sead=1", "--set sead: sead: unknown key; did you mean 'seed'?"),
        ("retriver.k1=1", "--set retriver.k1: retriver: unknown key; did you mean 'retriever'?"),
        ("retriever.k2=1", "--set retriever.k2: retriever.k2: unknown key; did you mean 'k1'?"),
        ("retriever.k1.x=1", "--set retriever.k1.x: retriever.k1: "),
        ("kind.x=1", "--set kind.x: kind is a single value, nothing can be set inside it"),
        ("retriever.k1=big", "--set retriever.k1: retriever.k1: input should be a valid number, got 'big' (text)"),
        ("evaluation.recall_at.9=1", "evaluation.recall_at has 2 entries, counted from 0; got index '9'"),
        ("evaluation.recall_at.²=1", "got index '²'"),
        ("evaluation.recall_at.0=x", "--set evaluation.recall_at.0: evaluation.recall_at.0: input should be"),
        ("seed=[1", "--set seed: not valid YAML"),
        ("seed=${env:NO_SUCH_VARIABLE}", "--set seed: environment variable NO_SUCH_VARIABLE is not set"),
        (".".join("a" * 100) + "=1", "100 levels, a config has at most 40"),
    ],
)
def test_a_wrong_override_says_so(tmp_path: Path, override: str, says: str) -> None:
    path = write(tmp_path, SMALL + "evaluation: {recall_at: [1, 5]}\n")
    assert says in fault(path, override)


def test_override_paths_start_from_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, SMALL, "deep/job.yaml")
    monkeypatch.chdir(tmp_path)
    assert load_config(path, overrides=["corpus.path=mine.jsonl"]).corpus.path == tmp_path / "mine.jsonl"


# environment variables


def test_environment_variables_fill_in_and_are_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLM_SEED", "12")
    monkeypatch.setenv("FLM_DIR", "data")
    monkeypatch.delenv("FLM_NONE", raising=False)
    text = SMALL.replace("passages.jsonl", '"${env:FLM_DIR}/p.jsonl"')
    config = load_config(write(tmp_path, text + "seed: ${env:FLM_SEED}\nretrieve_k: ${env:FLM_NONE:-9}\n"))
    assert (config.seed, config.retrieve_k) == (12, 9)
    assert config.corpus.path == tmp_path / "data" / "p.jsonl"


def test_a_quoted_variable_stays_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLM_WORKSPACE", "12")
    assert load_config(write(tmp_path, SMALL + 'workspace: "${env:FLM_WORKSPACE}"\n')).workspace == "12"


def test_every_unset_variable_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL + "seed: ${env:FLM_A}\nworkspace: ${env:FLM_B}\n")
    assert [line.split(";")[0] for line in fault(path).splitlines()] == [
        f"{path}:4: environment variable FLM_A is not set",
        f"{path}:5: environment variable FLM_B is not set",
    ]


def test_a_malformed_variable_is_an_error_and_other_dollars_are_text(tmp_path: Path) -> None:
    assert "write ${env:NAME} or ${env:NAME:-default}" in fault(write(tmp_path, SMALL + "workspace: ${env:A B}\n"))
    assert load_config(write(tmp_path, SMALL + "workspace: $HOME/${x}\n")).workspace == "$HOME/${x}"


def test_a_secret_is_never_written_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLM_SECRET", "hunter2")
    text = (
        "kind: closed_book\nlm: {model: m/m, revision: ${env:FLM_SECRET}}\n"
        "generation: {stop: [&s 'key ${env:FLM_SECRET}', *s]}\n"
    ).replace("revision: ${env:FLM_SECRET}", "revision: '${env:FLM_SECRET}'")
    config = load_config(write(tmp_path, text))
    assert config.lm.revision == "hunter2" and config.generation.stop == ["key hunter2"] * 2
    again = load_config(config, overrides=["seed=4"])
    third = load_config(config, overrides=["workspace='${env:FLM_SECRET}'"])
    changed = config.model_copy(update={"seed": 9})
    for job in (config, again, third, changed):
        record = json.dumps(as_written(job))
        assert "hunter2" not in record and "${env:FLM_SECRET}" in record
    assert again.lm.revision == "hunter2" and again.seed == 4 and as_written(changed)["seed"] == 9


def test_a_secret_is_not_in_an_error_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLM_SECRET", "hunter2")
    path = write(tmp_path, "kind: closed_book\nlm: {model: m/m, dtype: '${env:FLM_SECRET}'}\nseed: ${env:FLM_SECRET}\n"
                           "packing: {question: '${env:FLM_SECRET}'}\n")  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert "hunter2" not in str(caught.value) and "${env:FLM_SECRET}" in str(caught.value)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


# where a config comes from


def test_packaged_names_files_and_what_is_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    packaged = find_config("closed_book.yaml")
    assert packaged.is_file() and packaged.parent != tmp_path
    own = write(tmp_path, SMALL, "closed_book.yaml")
    assert find_config("closed_book.yaml").resolve() == own
    assert "closed_book.yaml" in fault("closed_bok.yaml")
    assert "is a folder" in fault(tmp_path)
    assert "no config file" in fault("../" * 3 + "nowhere.yaml")
    assert "no config file" in fault("x" * 5000)
    assert "no config file" in fault("a\0b")
    assert "no config file" in fault("~no_such_user_x/a.yaml")


def test_a_link_that_leads_to_itself(tmp_path: Path) -> None:
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    assert "no config file" in fault(tmp_path / "loop.yaml")


def test_a_mapping_and_a_config_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = {"kind": "retrieval", "corpus": {"path": Path("p.jsonl")}, "retriever": {"kind": "bm25"}}
    config = load_config(given, overrides=["seed=3"])
    assert config.corpus.path == tmp_path / "p.jsonl" and config.seed == 3 and "seed" not in given
    assert load_config(config) is config
    changed = load_config(config, overrides=["retriever.k1=2"])
    assert (changed.seed, changed.retriever.k1, config.retriever.k1) == (3, 2, 0.9)
    assert as_written(changed)["retriever"] == {"kind": "bm25", "k1": 2.0}


def test_a_mapping_may_extend_a_packaged_config() -> None:
    assert load_config({"extends": "closed_book.yaml", "seed": 5}).seed == 5


def test_json_escapes_of_rare_characters(tmp_path: Path) -> None:
    text = json.dumps({**CLOSED, "packing": {"question": "\U0001f389 {question}"}})
    assert "\\ud83c\\udf89" in text  # JSON writes one character as two surrogates
    assert load_config(write(tmp_path, text)).packing.question == "\U0001f389 {question}"
    assert "unicode" in fault(write(tmp_path, text.replace("\\udf89", "")))


def test_a_mapping_with_faults() -> None:
    assert fault({**CLOSED, "sead": 1}) == "config: sead: unknown key; did you mean 'seed'?"
    assert "config: " in fault({**CLOSED, 5: 1})
    assert "got an object of type object" in fault({**CLOSED, "seed": object()})
    circle: dict[str, Any] = dict(CLOSED)
    circle["packing"] = circle
    assert "40 levels" in fault(circle)
    assert "got int" in fault(5)


def test_as_written_loads_again(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, SMALL + "seed: 4\n"))
    assert load_config(as_written(config)).model_dump() == config.model_dump()
