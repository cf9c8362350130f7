"""Textual recursion through its config: trained, asked, measured, its baselines, when it pays; refused."""

import json
import string
from pathlib import Path
from typing import Any

import pytest

from frozenlm.prompts.soft_prompt import SoftPrompt
from frozenlm.recursion.crossfit import read_candidates
from pipelines import Pipeline
from pipelines.cli import main
from pipelines.errors import CheckpointError, ConfigError
from pipelines.evaluation.questions import read_questions
from pipelines.evaluation.run import evaluate
from pipelines.training import reader, train
from pipelines.training import textual_recursion as training
from tests.pipelines.toy_recursion import FACTS, configured, make_world, settings, written
from tests.toys import toy_lm

KIND = "textual_recursion"
ASKED = [f"where is the {name}" for name in FACTS]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained closed book, threshold included."""
    world = make_world(tmp_path_factory.mktemp("textual"))
    train(configured(world, KIND))
    return world


def test_both_prompts_candidates_and_threshold_are_in_the_workspace(world: Path) -> None:
    found = train(configured(world, KIND))
    assert found["already_trained"] and found["first_pass"]["already_trained"]
    assert found["lm_weights_changed"] == found["first_pass"]["lm_weights_changed"] == 0
    modules = world / "work" / "modules"
    assert {path.name for path in modules.iterdir() if path.suffix != ".run"} == {"p", "s", "s.when"}
    lm = toy_lm("gpt2")
    assert [SoftPrompt.load(modules / name, lm).length for name in ("p", "s")] == [3, 2]
    drawn = read_candidates(found["candidates"])
    assert list(drawn) == ["0/q0", "1/q1", "2/q2", "3/q3"]
    assert all(one.drawn == 4 for one in drawn.values())
    assert 0 <= found["when"]["share"] <= 1
    assert not list((world / "work" / "candidates").glob("*.folds"))


def test_answers_say_what_ran_and_do_not_depend_on_the_batch(world: Path) -> None:
    with Pipeline.from_config(configured(world, KIND)) as pipeline:
        together = pipeline(ASKED)
        for answer in together:
            assert answer.passes == ("candidates", "second") and answer.candidates is not None
            assert sum(one.count for one in answer.candidates) <= 4  # empty samples are no candidates
        assert set(together[0].timings) == {"pack", "candidates", "second"}
        alone = pipeline(ASKED[2])
    assert (alone.text, alone.candidates[0].text) == (together[2].text, together[2].candidates[0].text)
    assert alone.score == pytest.approx(together[2].score, abs=1e-4)


@pytest.mark.parametrize("rule", ["majority", "best_score"])
def test_baselines_choose_among_the_same_candidates(world: Path, rule: str) -> None:
    with Pipeline.from_config(configured(world, KIND)) as both:
        drawn = both(ASKED)
    nobody = {"prompt": {"name": "never_trained", "length": 2}, "reserve": 24}  # a baseline needs no second prompt
    with Pipeline.from_config(configured(world, KIND, answer_by=rule, second_pass=nobody)) as pipeline:
        for answer, other in zip(pipeline(ASKED), drawn, strict=True):
            assert answer.passes == ("candidates",) and answer.candidates == other.candidates
            scores = [one.count if rule == "majority" else one.logprob for one in answer.candidates or []]
            chosen = next(one for one in answer.candidates or [] if one.text == answer.text)
            assert (chosen.count if rule == "majority" else chosen.logprob) == max(scores)


def test_sure_questions_are_spared_the_second_pass(world: Path) -> None:
    def answers(**when: Any) -> list[Any]:
        config = configured(world, KIND, when={"rule": "below_confidence", **when})
        with Pipeline.from_config(config) as pipeline:
            return pipeline(ASKED)

    never, always = answers(threshold=0.0), answers(threshold=2.0)
    assert {answer.passes for answer in never} == {("first",)}
    assert {answer.candidates for answer in never} == {None}
    assert {answer.passes for answer in always} == {("first", "candidates", "second")}
    assert all(0 <= answer.confidence <= 1 for answer in never)
    middle = sorted(answer.confidence for answer in never)[2]
    paid = [answer.passes[-1] == "second" for answer in answers(threshold=middle)]
    assert paid == [answer.confidence < middle for answer in never]


def test_the_threshold_is_the_one_that_training_recorded(world: Path) -> None:
    config = configured(world, KIND, when="below_confidence")
    tuned = train(config)["when"]
    with Pipeline.from_config(config) as pipeline:
        assert pipeline.provenance()["when_threshold"] == tuned["threshold"]
    with pytest.raises(CheckpointError, match="was tuned with other price"):
        other = {"rule": "below_confidence", "price": 0.5}
        Pipeline.from_config(configured(world, KIND, when=other))(ASKED[0])


def test_over_passages_the_window_keeps_room_for_candidates(world: Path) -> None:
    prompts = {"prompt": {"name": "rp", "length": 3, "position": "prefix"}}
    second = {"prompt": {"name": "rs", "length": 2}, "reserve": 24}
    config = configured(world, KIND, reads=True, second_pass=second, **prompts)
    assert config.reserved_tokens == 24 and configured(world, KIND).reserved_tokens == 0
    assert train(config)["lm_weights_changed"] == 0
    with Pipeline.from_config(config) as pipeline:
        answer = pipeline(ASKED[0])
    assert answer.context and answer.packing is not None
    assert answer.packing.budget == 96 - 6 - 3 - 24  # window less answer, soft tokens and candidates
    assert answer.candidates_dropped == 0


def test_more_candidates_than_fit_are_dropped_and_counted(world: Path) -> None:
    small = {"answer_reserve": 6, "passage": "text : {text} ", "max_tokens": 21}
    with Pipeline.from_config(configured(world, KIND, packing=small)) as pipeline:
        answers = pipeline(ASKED)
    assert sum(answer.candidates_dropped for answer in answers) > 0
    assert all(answer.candidates_dropped <= len(answer.candidates or []) for answer in answers)


def test_without_any_candidate_the_second_pass_reads_its_question_all_the_same(world: Path, tmp_path: Path) -> None:
    silent = {"max_new_tokens": 4, "stop": list(string.ascii_letters + string.digits + string.punctuation)}
    config = configured(world, KIND, generation=silent)
    with Pipeline.from_config(config) as pipeline:
        answer = pipeline(ASKED[0])
        assert (answer.candidates, answer.text, answer.passes) == ([], "", ("candidates", "second"))
        asked = read_questions(config.evaluation.questions)
        assert evaluate(pipeline, asked, tmp_path / "out", progress=False)["without_candidates_share"] == 1.0
    with Pipeline.from_config(configured(world, KIND, generation=silent, answer_by="majority")) as vote:
        assert (vote(ASKED[0]).text, vote(ASKED[0]).score) == ("", None)


def test_killed_in_every_stage_and_started_again_ends_in_the_same_prompts(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = make_world(tmp_path)

    def killed(where: Any, name: str, call: int) -> None:
        real, calls = getattr(where, name), []

        def killing(*arguments: Any, **settings: Any) -> Any:
            calls.append(name)
            if len(calls) == call:
                raise KeyboardInterrupt
            return real(*arguments, **settings)

        monkeypatch.setattr(where, name, killing)
        with pytest.raises(KeyboardInterrupt):
            train(configured(fresh, KIND))
        monkeypatch.undo()

    killed(reader, "prompt_loss", 7)  # four steps a prompt: in the first fold
    killed(training, "sampled", 2)  # in the second fold
    killed(reader, "prompt_loss", 3)  # both folds are there: in pass 2
    train(configured(fresh, KIND))
    lm = toy_lm("gpt2")
    for name in ("p", "s"):
        again, whole = (SoftPrompt.load(folder / "work" / "modules" / name, lm)() for folder in (fresh, world))
        assert (again - whole).abs().max() < 1e-5


def test_without_prompts(world: Path) -> None:
    bare = {"prompt": None, "second_pass": {"prompt": None}}
    with Pipeline.from_config(configured(world, KIND, **bare)) as pipeline:
        assert pipeline(ASKED[0]).prompt is None
    with pytest.raises(ConfigError, match="at least one prompt block"):
        train(configured(world, KIND, **bare))
    only_second = {"prompt": None, "second_pass": {"prompt": {"name": "zs", "length": 2}}}
    assert "first_pass" not in train(configured(world, KIND, **only_second))


def test_commands(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = str(written(world, KIND)), str(tmp_path / "out")
    assert main(["evaluate", file, "--out", out, "--quiet", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["n"] == 5 and found["lm_weights_changed"] == 0
    assert found["second_pass_share"] == 1.0 and found["em"] <= 1
    assert 0 <= found["oracle_at_n"] <= 1 and len(found["ci95"]["oracle_at_n"]) == 2
    rows = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert rows[0]["passes"] == ["candidates", "second"] and rows[0]["candidates"][0]["count"] >= 1
    assert found["oracle_at_n"] == sum(row["oracle"] for row in rows) / 5
    vote = str(tmp_path / "vote")
    assert main(["evaluate", file, "--out", vote, "--quiet", "--set", "answer_by=majority"]) == 0
    assert main(["compare", vote, out]) == 0
    assert main(["ask", file, ASKED[0], "--quiet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["passes"] == ["candidates", "second"]
    assert main(["ask", file, ASKED[0], "--quiet"]) == 0
    assert "candidates: " in capsys.readouterr().out
    assert main(["verify", str(world / "work")]) == 0
    assert "candidates of a second pass" in capsys.readouterr().out


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = make_world(tmp_path)

    def said(command: str, **changes: Any) -> str:
        file = str(written(world, KIND, **changes))
        assert main([command, file, *([ASKED[0]] if command == "ask" else []), "--quiet"]) in (1, 2)
        text = capsys.readouterr().err
        assert "Traceback" not in text
        return " ".join(text.split())

    assert "no trained prompt" in said("ask")
    assert "candidates.n: input should be greater than or equal to 1, got 0" in said("ask", candidates={"n": 0})
    assert "temperature 0 gives the same answer 4 times" in said("ask", candidates={"n": 4, "temperature": 0.0})
    for template in ("{question}", "{candidates}", "{question} {candidates} {candidates}"):
        assert "times; expected it once" in said("ask", second_pass={"template": template})
    assert "cannot be read" in said("ask", second_pass={"template": "{question} {candidates"})
    assert "expected a visible sign" in said("ask", second_pass={"separator": " "})
    assert "both passes' prompts are called 'p'" in said("ask", second_pass={"prompt": {"name": "p"}})
    assert "answers greedily" in said("ask", generation={"num_beams": 3})
    assert "never looked at" in said("ask", when={"threshold": 0.5})
    assert "has none, leave one out" in said("ask", when="below_confidence", answer_by="majority")
    untrained = {"prompt": None, "second_pass": {"prompt": None}}
    assert "no tuned threshold" in said("ask", when="below_confidence", **untrained)
    without_dev = settings(world, KIND)["training"] | {"dev": []}
    assert "is tuned on dev" in said("train", when="below_confidence", training=without_dev)
    folds = settings(world, KIND)["training"] | {"folds": 9}
    assert "k is 9; cross-fitting needs 2 folds or more" in said("train", training=folds)
    assert "only answer_reserve=6 tokens" in said("ask", generation={"max_new_tokens": 9}, **untrained)
    # "question : where is the paris answer :" has 8 tokens, pass 2 reads 2 more
    no_room = {"packing": {"max_tokens": 15, "answer_reserve": 6}}
    assert "takes 10 tokens without any candidate" in said("ask", **no_room, **untrained)
