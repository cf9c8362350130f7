"""A tour of what can go wrong with a mixture of tasks, through the command line: one clear message each, the right exit
code, nothing lost. `test_bad_input.py` has the other kinds of config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import CLIPTextConfig, CLIPTextModel

from pipelines.cli import main
from tests.pipelines.test_bad_input import Shell, damage
from tests.pipelines.toy_multitask import COLOURS, PROMPTS, make_world, settings
from tests.toys import VOCAB_SIZE, toy_encoder_model, toy_encoder_tokenizer, toy_folder

SHORT = ("--set", "training.steps=2", "--set", "training.dev_limit=2")
ASKED = "text the cat is red answer"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy world with ID-PT trained in its workspace, and the config as a file."""
    world = make_world(tmp_path_factory.mktemp("world"))
    write(world / "job.yaml", world)
    assert main(["train", str(world / "job.yaml"), "-q", *SHORT]) == 0
    return world


def write(path: Path, world: Path, **changes: Any) -> Path:
    path.write_text(json.dumps(settings(world, **changes), indent=1))  # JSON is YAML
    return path


def first_task(world: Path, **changes: Any) -> list[dict[str, Any]]:
    """The tasks, the first of them otherwise; None takes a key away."""
    first, second = settings(world)["tasks"]
    return [{key: value for key, value in (first | changes).items() if value is not None}, second]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"template": None}, "task 'colours': expected either a template or a promptsource file"),
        ({"template": "text {text"}, "template of task 'colours' has a lone '{' at character 6"),
        ({"template": "text"}, "has no {field}, so every record would read the same"),
        ({"target": "{label}"}, "expected either a verbalizer (classification), or a target or references"),
        ({"metric": "rouge"}, "the metric rouge does not fit; a verbalizer goes with accuracy"),
        ({"metric": "rogue"}, "metric: input should be 'accuracy', 'rouge', 'bleu', 'em_f1' or 'auto', got 'rogue'"),
        ({"verbalizer": {"red": "red"}}, "1 labels; expected at least two to choose among"),
        ({"verbalizer": {"red": "x", "blue": "x"}}, "labels 'red' and 'blue' share the word 'x'"),
        ({"weight": -1.0}, "weight: input should be greater than or equal to 0, got -1.0"),
        ({"train": {"limit": 3}}, "train: records come from either a path or a dataset"),
        ({"name": "places"}, "two tasks are called 'places'; give each a name of its own"),
        ({"name": "a/b"}, "name: string should match pattern"),
        ({"templat": "x"}, "templat: unknown key; did you mean 'template'?"),
    ],
)
def test_tasks_that_a_config_check_finds(
    world: Path, tmp_path: Path, run: Shell, changes: dict[str, Any], says: str
) -> None:
    file = write(tmp_path / "wrong.yaml", world, tasks=first_task(world, **changes))
    for command in (["config", "check", file], ["train", file]):
        code, out, err = run(*command)
        assert (code, out) == (2, "") and says in err and err.startswith(f"error: {file}:"), err
        assert err.count(str(file)) == 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"encoder": None}, "prompt 'p' of kind input_dependent needs an encoder block"),
        ({"modules": [PROMPTS["soft_prompt"]]}, "two prompts are called 'p'"),
        ({"routes": [{"starts_with": "x", "module": "y"}]}, "a route leads to the module 'y'; the prompts here are"),
        ({"routes": [{"starts_with": "", "module": "p"}]}, "routes.0.starts_with: string should have at least 1"),
        ({"prompt": PROMPTS["input_dependent"] | {"width": 9}}, "width is 9; expected a multiple of the 2 heads"),
        ({"prompt": {"kind": "prefix_tuning", "name": "p"}}, "prompt: kind is 'prefix_tuning' (text), expected one of"),
        ({"prompt": PROMPTS["attempt"] | {"sources": []}}, "sources: list should have at least 1 item"),
        ({"mixture": {"temperature": 0.0}}, "mixture.temperature: input should be greater than 0"),
        ({"mixture": {"cap": 0}}, "mixture.cap: input should be greater than or equal to 1"),
    ],
)
def test_configs_that_cannot_be_meant(world: Path, tmp_path: Path, run: Shell, changes: Any, says: str) -> None:
    file = write(tmp_path / "wrong.yaml", world, **changes)
    run.fails(2, says, "train", file)
    assert run("config", "check", file)[0] == 2


def test_weights_that_are_all_zero(world: Path, tmp_path: Path, run: Shell) -> None:
    nothing = [task | {"weight": 0.0} for task in settings(world)["tasks"]]
    run.fails(
        2, "no task of the mixture has a weight above 0", "train", write(tmp_path / "w.yaml", world, tasks=nothing)
    )


@pytest.mark.parametrize(
    ("record", "changes", "says"),
    [
        (
            {"txt": "a", "label": "red"},
            {},
            ":1: template of task 'colours' reads {text}, the record has only label, txt",
        ),
        (
            {"text": "a", "label": "green"},
            {},
            ":1: task 'colours' has no word for the label 'green'; its verbalizer has",
        ),
        ({"text": "a"}, {}, ":1: task 'colours' needs the field 'label'"),
        ({"text": None, "label": "red"}, {}, ":1: template of task 'colours' reads {text}, which is null"),
        (None, {}, "task 'colours', split train: "),
        ([1], {}, ":1: expected a JSON object, got list"),
        ({"text": "a", "label": "red"}, {"dev": None}, "task 'colours' has no dev records"),
        ({"text": "a", "label": "red"}, {"train": "./none.jsonl"}, "none.jsonl does not exist"),
        ({"text": "a", "label": "red"}, {"train": {"path": "train.jsonl", "skip": 4}}, "no more than 4 records"),
    ],
)
def test_records_that_do_not_fit(
    world: Path, tmp_path: Path, run: Shell, record: Any, changes: dict[str, Any], says: str
) -> None:
    (tmp_path / "train.jsonl").write_text("" if record is None else json.dumps(record))
    tasks = first_task(world, **{"train": "train.jsonl", **changes})
    file = write(tmp_path / "job.yaml", world, tasks=tasks)
    run.fails(2, says, "train", file, "--workspace", tmp_path / "work", "--set", "lm.model=./not_loaded")
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("encoder.max_length=1", "max_length is 1; expected more than the 2 tokens around a text"),
        ("encoder.max_length=1000", "at most 96, the encoder's positions"),
        ("prompt.encoder_prompt=95", "an encoder prompt of 95 leaves 1 of the encoder's 96 positions"),
        ("prompt.length=95", "tokens leaves -5 for an input beside 95 soft tokens and an answer of 6"),
        ("lm.window=5", "the LM's window of 5 tokens leaves -4 for an input"),
        ("input.answer=x", "input.answer needs the slot {answer}"),
        ("input.keep_end=24", "input.max_tokens is 24, but input.keep_end alone is 24"),
        ("generation.max_new_tokens=9", "input.answer_tokens keeps only 6 tokens of the window for the answer"),
        ("prompt.init={kind: text, text: ' '}", "' ' has no token; give at least one word"),
    ],
)
def test_settings_without_room(world: Path, tmp_path: Path, run: Shell, setting: str, says: str) -> None:
    run.fails(2, says, "train", world / "job.yaml", "--workspace", tmp_path, "--set", setting)


def test_encoders(world: Path, tmp_path: Path, run: Shell) -> None:
    sizes = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    CLIPTextModel(CLIPTextConfig(vocab_size=VOCAB_SIZE, max_position_embeddings=32, **sizes)).save_pretrained(tmp_path)
    toy_encoder_tokenizer("bert").save_pretrained(tmp_path)
    training = ("train", world / "job.yaml", "--workspace", tmp_path / "work", "--set")
    run.fails(2, "CLIPTextModel takes no inputs_embeds", *training, f"encoder.model={tmp_path}")
    run.fails(1, "no encoder folder at", *training, "encoder.model=./nowhere")
    assert run(*training[:-1], "--set", f"encoder.model={world}/encoder", *SHORT)[0] == 0


def test_modules_of_another_lm_or_encoder_or_config(world: Path, tmp_path: Path, run: Shell) -> None:
    other_lm = toy_folder("gpt2", tmp_path, seed=7)
    toy_encoder_model("bert", seed=7).save_pretrained(tmp_path / "encoder")
    toy_encoder_tokenizer("bert").save_pretrained(tmp_path / "encoder")
    asked, training = ("ask", world / "job.yaml", ASKED, "--set"), ("train", world / "job.yaml", *SHORT, "--set")
    run.fails(1, "was trained for another LM", *asked, f"lm.model={other_lm}")
    run.fails(1, "was trained on another encoder", *asked, f"encoder.model={tmp_path}/encoder")
    run.fails(2, "holds a run with other settings", *training, f"lm.model={other_lm}")
    run.fails(2, "task.encoder: stored", *training, f"encoder.model={tmp_path}/encoder")
    run.fails(1, "holds a prompt of 3 tokens in suffix position, the config asks for 4", *asked, "prompt.length=4")
    run.fails(1, "was trained with width 8, the config asks for 16", *asked, "prompt.width=16")
    run.fails(1, "a module of kind 'input_dependent_prompt', expected", *asked, "prompt={kind: soft_prompt, name: p}")
    run.fails(1, "no trained prompt at", *asked, "prompt.name=other")
    source = "prompt={kind: attempt, name: a, length: 3, sources: [p]}"
    run.fails(1, "a module of kind 'input_dependent_prompt', expected", *training, source)
    run.fails(1, "no source prompt at", *training, source.replace("[p]", "[a]"))


def test_a_damaged_module_is_named_and_saved_again(world: Path, tmp_path: Path, run: Shell) -> None:
    job = (world / "job.yaml", "--workspace", tmp_path)
    assert run("train", *job, *SHORT)[0] == 0
    answer = run("ask", job[0], ASKED, *job[1:])[1]
    assert run("verify", tmp_path)[0] == 0
    for path in (tmp_path / "modules" / "p").iterdir():
        whole = path.read_bytes()
        for how in ("flip", "cut", "gone"):
            damage(path, how)
            run.fails(1, path.name, "ask", job[0], ASKED, *job[1:])
            assert run("verify", tmp_path)[0] == 1
            path.write_bytes(whole)
    damage(tmp_path / "modules" / "p" / "module.json", "gone")
    assert run("train", *job, *SHORT)[0] == 0  # a finished run only saves again
    assert run("ask", job[0], ASKED, *job[1:])[1] == answer
    damage(tmp_path / "modules" / "p.run" / "state.safetensors", "cut")
    run.fails(1, "state.safetensors is missing or damaged", "train", *job, *SHORT)


def test_questions_are_not_for_tasks_and_a_folder_is_for_one_evaluation(
    world: Path, tmp_path: Path, run: Shell
) -> None:
    command = ("evaluate", world / "job.yaml", "--out", tmp_path / "out")
    for words in (["--questions", world / "colours.jsonl"], ["--oracle"], ["--qrels", world / "colours.jsonl"]):
        run.fails(2, "this config names its own tasks", *command, *words)
    run.fails(2, "is a file; the results need a folder", *command[:2], "--out", world / "job.yaml")
    run.fails(2, "has no test records", *command, "--set", f"tasks={json.dumps(first_task(world, test=None))}")
    assert run(*command, "--limit", 2)[0] == 0
    run.fails(2, "holds an evaluation that differs in examples_sha256", *command)
    run.fails(2, "differs in", *command, "--limit", 2, "--set", "prompt=null")
    for wrong in ("index", "demo"):
        assert run(wrong, world / "job.yaml")[0] == 2
    assert "has no retriever and needs no index" in run("index", world / "job.yaml")[2]


def test_an_evaluation_that_was_killed_goes_on(world: Path, tmp_path: Path, run: Shell) -> None:
    command = ("evaluate", world / "job.yaml", "--set", "evaluation.chunk=3", "--json", "--out", tmp_path / "out")
    whole = json.loads(run(*command)[1])
    for name in ("metrics.json", "checksums.json"):
        (tmp_path / "out" / name).unlink()
    rows = tmp_path / "out" / "predictions.jsonl"
    kept = rows.read_text().splitlines(keepends=True)
    rows.write_text("".join(kept[:7]) + kept[7][:20])  # two chunks, a row more, and a line that a kill has torn
    code, out, _ = run("verify", tmp_path / "out")
    assert code == 0 and "unfinished evaluation, last line torn" in out
    code, _, err = run("compare", tmp_path / "out", tmp_path / "out")
    assert code == 2 and "finish it with frozenlm evaluate first" in err
    code, out, err = run(*command)
    assert code == 0 and "6 of 11 rows are answered" in err
    again = json.loads(out)
    assert (again["tasks"], again["mean"]) == (whole["tasks"], whole["mean"])
    rows.write_text("".join(kept[:2]) + "{\n" + "".join(kept[2:]))
    (tmp_path / "out" / "metrics.json").unlink()
    assert run("verify", tmp_path / "out")[0] == 1


def test_a_task_that_was_not_trained_on(world: Path, tmp_path: Path, run: Shell) -> None:
    by_task = "prompt={kind: task_prompts, name: by_task, length: 3}"
    job = (world / "job.yaml", "--workspace", tmp_path, "--set", "tasks.1.seen=false")
    assert run("train", *job, *SHORT, "--set", by_task)[0] == 0
    evaluation = ("evaluate", *job, "--out", tmp_path / "out")
    run.fails(2, "no prompt for task 'places'; there is one for 'colours'", *evaluation, "--set", by_task)
    code, out, _ = run(*evaluation, "--json", "--set", by_task.replace("}", ", unseen: mean}"))
    found = json.loads(out)
    assert code == 0 and found["unseen"] == ["places"] and found["tasks"]["places"]["n"] == 3
    assert found["mean_unseen"]["score"] == found["tasks"]["places"]["score"]
    everything = [task | {"seen": False} for task in settings(world)["tasks"]]
    run.fails(2, "no task to read", "train", *job[:3], "--set", f"tasks={json.dumps(everything)}")


@pytest.mark.parametrize(
    ("question", "says"),
    [
        (" ", "question 0 is empty"),
        ("what \udcff", "question 0 is not Unicode text"),
        ("x" * 200_000, "200,000 characters, at most 100,000"),
    ],
)
def test_questions(world: Path, run: Shell, question: str, says: str) -> None:
    run.fails(2, says, "ask", world / "job.yaml", question)


def test_a_long_input_is_cut_and_the_answer_says_so(world: Path, run: Shell) -> None:
    long = " ".join(record["text"] for record in COLOURS * 3)
    code, out, _ = run("ask", world / "job.yaml", long, "--json", "-q")
    assert code == 0 and json.loads(out)["cut"] == ["lm", "encoder"]
    assert "the input was too long and was cut for: lm, encoder" in run("ask", world / "job.yaml", long)[1]
