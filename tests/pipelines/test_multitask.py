"""Serving inputs of different tasks in one batch, and measuring and exporting through a config."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from frozenlm.encoder import FrozenEncoder
from frozenlm.lm import FrozenLM
from frozenlm.prompts.soft_prompt import SoftPrompt
from pipelines import Pipeline, build_tasks
from pipelines.build import module_folder
from pipelines.cli import main
from pipelines.errors import CheckpointError, ConfigError
from pipelines.evaluation.multitask import evaluate_multitask
from pipelines.show import answer_record, answer_text
from pipelines.training import train
from tests.pipelines.toy_multitask import ID_PT, PROMPTS, configured, make_world, settings

INPUTS = ["text the cat is red answer", "where is the nile", "plain the dog", "text the river is blue answer"]
PREFIX = PROMPTS["soft_prompt"] | {"name": "prefix", "position": "prefix"}
SUFFIX = PROMPTS["soft_prompt"] | {"name": "suffix", "position": "suffix"}
SERVED = {
    "modules": [PREFIX, SUFFIX],
    "routes": [{"starts_with": "where", "module": "prefix"}, {"starts_with": "plain", "module": None}],
}


@pytest.fixture(scope="module", params=["gpt2", "t5"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three modules trained in one workspace."""
    world = make_world(tmp_path_factory.mktemp(request.param), request.param)
    for prompt in (ID_PT, PREFIX, SUFFIX):
        train(configured(world, prompt=prompt))
    return world


def test_routes_choose_and_a_mixed_batch_equals_rows_alone(world: Path) -> None:
    pipeline: Any = Pipeline.from_config(configured(world, **SERVED))
    together = pipeline(INPUTS)
    assert [answer.module for answer in together] == ["p", "prefix", None, "p"]
    for text, answer in zip(INPUTS, together, strict=True):
        alone = pipeline(text)
        assert (alone.text, alone.module, alone.prompt) == (answer.text, answer.module, answer.prompt)
        assert alone.score == pytest.approx(answer.score, abs=1e-4)
    assert pipeline.lm.verify().changed == 0
    assert pipeline.encoder.verify().changed == 0


def test_every_kind_of_module_in_one_batch_equals_rows_alone(tmp_path_factory: Any, world: Path) -> None:
    lm, encoder = FrozenLM.load(world / "lm"), FrozenEncoder.load(world / "encoder")
    sources = [PROMPTS["soft_prompt"] | {"name": name} for name in ("a", "b")]
    kinds = [PROMPTS[kind] | {"name": kind} for kind in PROMPTS]
    in_front = [PROMPTS[kind] | {"name": f"{kind}_1", "position": "prefix"} for kind in PROMPTS if kind != "attempt"]
    blocks = [*sources, *kinds, *in_front]
    config = configured(world, workspace=str(tmp_path_factory.mktemp("all")), prompt=None, modules=blocks)
    draw = torch.Generator().manual_seed(2)
    for block in config.modules:
        module: Any = build_tasks.new_prompt(config, block, lm, encoder)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=draw)
        module.save(module_folder(config, block.name), lm)
    names = [block["name"] for block in blocks[2:]] + [None]
    texts = [f"{INPUTS[n % 4]} {n}" for n in range(2 * len(names))]
    chosen, of_tasks = names * 2, (["colours"] * len(names)) + (["places"] * len(names))
    pipeline: Any = Pipeline.from_config(config)
    together = pipeline.answer(texts, modules=chosen, tasks=of_tasks)
    assert len({answer.prompt for answer in together}) == len(names)
    for answer, text, name, task in zip(together, texts, chosen, of_tasks, strict=True):
        (alone,) = pipeline.answer([text], modules=[name], tasks=[task])
        assert (alone.text, alone.module, alone.prompt) == (answer.text, name, answer.prompt)
        assert alone.score == pytest.approx(answer.score, abs=1e-4)
    assert pipeline.lm.verify().changed == pipeline.encoder.verify().changed == 0


def test_the_first_route_that_fits_decides(world: Path) -> None:
    routes = [
        {"starts_with": "text the", "module": "suffix"},
        {"starts_with": "text", "module": None},
        {"starts_with": "text the", "module": "prefix"},
    ]
    pipeline: Any = Pipeline.from_config(configured(world, modules=[PREFIX, SUFFIX], routes=routes))
    asked = ["text the cat", "text a cat", "the text"]
    assert [answer.module for answer in pipeline(asked)] == ["suffix", None, "p"]


def test_a_route_names_the_task_for_prompts_that_go_by_it(world: Path) -> None:
    by_task = PROMPTS["task_prompts"] | {"name": "by_task"}
    config = configured(
        world, prompt=by_task, encoder=None, routes=[{"starts_with": "where", "module": "by_task", "task": "places"}]
    )
    lm = FrozenLM.load(world / "lm")
    build_tasks.new_prompt(config, config.prompt, lm, None).save(module_folder(config, "by_task"), lm)
    pipeline: Any = Pipeline.from_config(config)
    assert pipeline("where is the nile").text == pipeline.answer(["where is the nile"], tasks=["places"])[0].text
    with pytest.raises(ConfigError, match="no prompt for task None"):
        pipeline("the cat")


def test_an_input_that_is_too_long_is_cut_and_says_so(world: Path) -> None:
    long = "text " + "the cat is red " * 40
    config = configured(world, encoder={"model": str(world / "encoder"), "max_length": 30}, **SERVED)
    pipeline: Any = Pipeline.from_config(config)
    answers = pipeline([long, f"where {long}", "text the cat", f"text {'a ' * 23}", f"text {'a ' * 24}"])
    assert [answer.cut for answer in answers] == [("lm", "encoder"), ("lm",), (), (), ("lm",)]
    shown = answer_record(answers[0], 5)
    assert (shown["module"], shown["cut"]) == ("p", ["lm", "encoder"])
    console = Console(file=io.StringIO())
    console.print(answer_text(answers[0], 5))
    assert "the input was too long and was cut for: lm, encoder" in console.file.getvalue()  # type: ignore[attr-defined]


def test_what_the_encoder_cuts_is_counted_in_the_result(world: Path, tmp_path: Path) -> None:
    config = configured(world, encoder={"model": str(world / "encoder"), "max_length": 6})  # two frame a text
    pipeline: Any = Pipeline.from_config(config)
    found = evaluate_multitask(pipeline, tmp_path / "out", progress=False)
    assert (found["encoder_inputs_cut"], found["inputs_cut"]) == (8, 0)  # colours have six tokens, places four


def test_dropout_is_for_training(world: Path) -> None:
    pipeline: Any = Pipeline.from_config(configured(world, prompt=ID_PT | {"dropout": 0.5}))
    assert not pipeline.module("p").training
    scores = {answer.score for answer in pipeline([INPUTS[0]] * 3)} | {pipeline(INPUTS[0]).score}
    assert max(scores) - min(scores) < 1e-4


def test_a_prompt_that_is_handed_in(world: Path) -> None:
    lm = FrozenLM.load(world / "lm")
    own = SoftPrompt.create(lm, 2, seed=5)
    inside: Any = Pipeline.from_config(configured(world, **SERVED), lm=lm, prompt=own)
    answer = inside(INPUTS[0])
    assert answer.module == "p"
    bare: Any = Pipeline.from_config(configured(world, prompt=None, encoder=None), lm=lm, prompt=own)
    beside = bare.warmup()(INPUTS[0])
    assert (beside.module, beside.text, beside.prompt) == ("(given)", answer.text, answer.prompt)
    assert bare.provenance()["modules"] == {"(given)": answer.prompt}
    trained: Any = Pipeline.from_config(configured(world), lm=lm)
    assert trained(INPUTS[0]).prompt != answer.prompt
    without: Any = Pipeline.from_config(configured(world, prompt=ID_PT | {"name": "not_trained"}), lm=lm, prompt=None)
    assert without.warmup()(INPUTS[0]).module is None
    with pytest.raises(ConfigError, match="prompt=Linear is no prompt method"):
        Pipeline.from_config(configured(world), prompt=torch.nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="has no use for a retriever"):
        Pipeline.from_config(configured(world), retriever=None)


def test_an_answer_names_the_module_that_gave_it(world: Path) -> None:
    pipeline: Any = Pipeline.from_config(configured(world, **SERVED))
    before = pipeline(INPUTS[0]).prompt
    card = module_folder(pipeline.config, "p") / "module.json"
    whole = card.read_text()
    try:
        card.write_text(whole + "\n")  # trained anew meanwhile; this pipeline holds the old one
        assert pipeline(INPUTS[0]).prompt == before
    finally:
        card.write_text(whole)


def test_the_caller_may_choose(world: Path) -> None:
    pipeline: Any = Pipeline.from_config(configured(world, **SERVED))
    chosen = pipeline.answer(INPUTS, modules=["suffix", None, "prefix", "p"])
    assert [answer.module for answer in chosen] == ["suffix", None, "prefix", "p"]
    assert [answer.module for answer in pipeline.answer(INPUTS, modules="suffix")] == ["suffix"] * 4
    with pytest.raises(ConfigError, match=r"no module 'other'.*\['p', 'prefix', 'suffix'\]"):
        pipeline.answer(INPUTS, modules="other")
    with pytest.raises(ConfigError, match="modules has 1 names for 4 inputs"):
        pipeline.answer(INPUTS, modules=["p"])
    with pytest.raises(ConfigError, match="tasks has 1 names for 4 inputs"):
        pipeline.answer(INPUTS, tasks=["colours"])
    with pytest.raises(ConfigError, match="is empty"):
        pipeline("  ")
    with pytest.raises(ConfigError, match="no passages"):
        pipeline.answer(INPUTS, hits=[[]] * 4)
    assert pipeline.answer([]) == []


def test_without_a_prompt_the_lm_answers_as_it_is(world: Path) -> None:
    bare: Any = Pipeline.from_config(configured(world, prompt=None, encoder=None))
    assert [answer.module for answer in bare(INPUTS)] == [None] * 4
    given: Any = Pipeline.from_config(configured(world), prompt=None)
    assert [answer.text for answer in given(INPUTS)] == [answer.text for answer in bare(INPUTS)]


def test_not_trained_yet(world: Path) -> None:
    pipeline: Any = Pipeline.from_config(configured(world, prompt=ID_PT | {"name": "later"}))
    with pytest.raises(CheckpointError, match=r"no trained prompt at .*later"):
        pipeline("text")
    longer: Any = Pipeline.from_config(configured(world, prompt=ID_PT | {"length": 5}))
    with pytest.raises(CheckpointError, match="3 tokens in suffix position, the config asks for 5"):
        longer("text")


def test_commands(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "tasks.yaml"
    file.write_text(json.dumps(settings(world)))  # JSON is YAML
    out = tmp_path / "out"
    assert main(["evaluate", str(file), "--out", str(out), "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["tasks"]) == {"colours", "places"} and found["lm_weights_changed"] == 0
    assert found["n"] == 11  # eight colours, three places
    bare = tmp_path / "bare"
    assert main(["evaluate", str(file), "--out", str(bare), "--quiet", "--set", "prompt=null", "--limit", "8"]) == 0
    assert "mean" in capsys.readouterr().out
    assert main(["compare", str(bare), str(out)]) == 0
    assert "places" in capsys.readouterr().out
    assert main(["evaluate", str(file), "--out", str(out), "--oracle"]) == 2
    assert "this config names its own tasks" in capsys.readouterr().err
    assert main(["ask", str(file), INPUTS[0], "--quiet"]) == 0
    assert "log-probability" in capsys.readouterr().out


def test_prompts_are_exported_and_drawn(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "tasks.yaml"
    file.write_text(json.dumps(settings(world)))
    assert main(["prompts", str(file), "--out", str(tmp_path / "drawn"), "--quiet"]) == 0
    assert "between_tasks" in capsys.readouterr().out
    assert (tmp_path / "drawn" / "prompts.png").read_bytes().startswith(b"\x89PNG")
    assert main(["prompts", str(file), "--out", str(tmp_path / "x"), "--split", "none"]) == 2
    assert main(["prompts", str(file), "--out", str(tmp_path / "x"), "--set", "prompt=null"]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": None}, "needs an encoder block"),
        ({"modules": [ID_PT]}, "two prompts are called 'p'"),
        ({"routes": [{"starts_with": "x", "module": "y"}]}, "a route leads to the module 'y'"),
        ({"prompt": ID_PT | {"heads": 0}}, "heads"),
    ],
)
def test_configs_that_cannot_be_meant(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        configured(tmp_path, **changes)


def test_two_tasks_of_one_name(tmp_path: Path) -> None:
    twice = [settings(tmp_path)["tasks"][0]] * 2
    with pytest.raises(ConfigError, match="two tasks are called 'colours'"):
        configured(tmp_path, tasks=twice)
