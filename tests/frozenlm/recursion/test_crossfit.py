"""Cross-fitting: no question meets what was trained on it, and a kill at any moment changes nothing."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from frozenlm.decoding import Generation
from frozenlm.errors import CheckpointError, ConfigError, FrozenLMError
from frozenlm.lm_tasks import Example, prompt_loss
from frozenlm.prompts.soft_prompt import SoftPrompt
from frozenlm.recursion.candidates import Candidates, merged
from frozenlm.recursion.crossfit import cross_fit, folds, read_candidates
from frozenlm.recursion.textual import Asked, Sampling, TextualRecursion
from frozenlm.train_settings import TrainSettings
from frozenlm.training import fit
from tests.toys import toy_lm

IDS = [f"q{n}" for n in range(11)]


def drawn(place: int) -> Candidates:
    return merged([Generation(f"answer {place} \u2028", [place + 1, k], [-1.0 - k / 7], "eos") for k in range(2)])


def run(folder: Path, **changes) -> list[Candidates]:
    """Three folds in chunks of two; what is trained is the list of places it learned."""
    options = {
        "train": lambda fold, places: places,
        "sample": lambda learned, places: [drawn(place) for place in places],
        "k": 3,
        "chunk": 2,
        "identity": {"lm": "abc"},
    }
    return cross_fit(folder, IDS, **{**options, **changes})


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_folds_are_even_and_do_not_depend_on_order() -> None:
    found = folds(IDS, 3)
    assert sorted(found.count(fold) for fold in range(3)) == [3, 4, 4]
    assert folds(IDS[::-1], 3) == found[::-1]
    assert folds(IDS, 3, seed=1) != found
    again = folds(["b", "a", "b", "c"], 3)
    assert again[0] == again[2] and sorted(set(again)) == [0, 1, 2]


@pytest.mark.parametrize("k", [0, 1, 12])
def test_folds_that_cannot_be(k: int) -> None:
    with pytest.raises(ConfigError, match=f"k is {k}; cross-fitting needs 2 folds or more"):
        folds(IDS, k)


def test_a_question_never_meets_what_learned_it(tmp_path: Path) -> None:
    keys = [f"text {n % 7}" for n in range(len(IDS))]  # q0 and q7 are the same question
    met: list[int] = []

    def sample(learned: list[int], places: list[int]) -> list[Candidates]:
        assert not {keys[place] for place in learned} & {keys[place] for place in places}
        met.extend(places)
        return [drawn(place) for place in places]

    trained: list[int] = []

    def train(fold: int, places: list[int]) -> list[int]:
        trained.append(fold)
        return places

    found = run(tmp_path, train=train, sample=sample, keys=keys)
    assert trained == [0, 1, 2] and sorted(met) == list(range(11))
    assert found == [drawn(place) for place in range(11)]


def test_folder_says_what_it_holds(tmp_path: Path) -> None:
    found = run(tmp_path)
    assert set(files_of(tmp_path)) == {"run.json", "candidates.jsonl", "manifest.json"}
    assert dict(zip(IDS, found, strict=True)) == read_candidates(tmp_path)
    assert list(read_candidates(tmp_path)) == IDS
    rows = [json.loads(line) for line in (tmp_path / "candidates.jsonl").read_text().split("\n")[:-1]]
    assert [row["fold"] for row in rows] == folds(IDS, 3)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert (manifest["questions"], manifest["samples"], manifest["without_candidates"]) == (11, 22, 0)


def test_a_finished_folder_is_read_and_not_made_again(tmp_path: Path) -> None:
    found, before = run(tmp_path), files_of(tmp_path)

    def never(*_: object) -> list[Candidates]:
        raise AssertionError("finished")

    assert run(tmp_path, train=never, sample=never) == found
    assert files_of(tmp_path) == before


def killed_at(folder: Path, moment: int) -> bool:
    """Runs in a fork that dies without a word at that call of train, sample or log; false when it was through."""
    pid = os.fork()
    if pid == 0:
        calls = [0]

        def or_die(work: Callable) -> Callable:
            def counted(*arguments):
                calls[0] += 1
                if calls[0] == moment:
                    os._exit(9)
                return work(*arguments)

            return counted

        train = or_die(lambda fold, places: places)
        sample = or_die(lambda learned, places: [drawn(place) for place in places])
        run(folder, train=train, sample=sample, log=or_die(lambda _: None))
        os._exit(0)
    return os.WEXITSTATUS(os.waitpid(pid, 0)[1]) == 9


def test_a_kill_at_any_moment_changes_nothing(tmp_path: Path) -> None:
    run(tmp_path / "whole")
    moment = 1
    while killed_at(tmp_path / str(moment), moment):
        run(tmp_path / str(moment))
        assert files_of(tmp_path / str(moment)) == files_of(tmp_path / "whole")
        moment += 1
    assert moment > 3 * 3  # each fold trains once, samples twice, and says so
    kills = sum(killed_at(tmp_path / "often", moment) for moment in range(3, 9))  # the same folder, again and again
    run(tmp_path / "often")
    assert kills >= 3 and files_of(tmp_path / "often") == files_of(tmp_path / "whole")


def test_a_fold_that_is_done_is_not_trained_again(tmp_path: Path) -> None:
    trained: list[int] = []

    def train(fold: int, places: list[int]) -> list[int]:
        trained.append(fold)
        if trained == [0, 1]:
            raise KeyboardInterrupt
        return places

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, train=train)
    run(tmp_path, train=train)
    assert trained == [0, 1, 1, 2]


@pytest.mark.parametrize(
    ("changes", "what"),
    [({"identity": {"lm": "other"}}, "lm"), ({"k": 4}, "k"), ({"seed": 1}, "seed"), ({"chunk": 3}, "chunk")],
)
def test_two_runs_are_never_mixed(tmp_path: Path, changes: dict, what: str) -> None:
    run(tmp_path)
    with pytest.raises(ConfigError, match=f"differ in {what};"):
        run(tmp_path, **changes)
    assert run(tmp_path, restart=True, **changes) == [drawn(place) for place in range(11)]


def test_damage_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no finished candidates"):
        read_candidates(tmp_path)
    run(tmp_path)
    path = tmp_path / "candidates.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=r"is not what manifest\.json says"):
        run(tmp_path)


def test_bad_calls(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"2 ids \(1 different\)"):
        cross_fit(tmp_path, ["a", "a"], train=lambda *_: None, sample=lambda *_: [], identity={})
    with pytest.raises(FrozenLMError, match="1 sets of candidates came back for 2 questions"):
        run(tmp_path, sample=lambda *_: [drawn(0)])


def test_with_prompts_that_are_really_trained(tmp_path: Path) -> None:
    """An interrupted run goes on from the last chunk and from the training's own state, and ends in the same file."""
    lm = toy_lm("gpt2")
    asked = [Asked(f"q {n}", (20, 21 + n, 22)) for n in range(6)]
    calls: list[int] = []

    def everything(out: Path, stop_at: int | None = None) -> list[Candidates]:
        def train(fold: int, places: list[int]) -> SoftPrompt:
            prompt = SoftPrompt.create(lm, 2)
            settings = TrainSettings(steps=3, batch_size=2)
            examples = [Example.of(asked[place].ids, (40 + place, 3)) for place in places]
            where = out / f"fold-{fold}"
            fit(
                prompt, examples=examples, loss=lambda e: prompt_loss(lm, prompt, e), out=where, settings=settings,
                lm=lm, progress=False,
            )  # fmt: skip
            return prompt

        def sample(prompt: SoftPrompt, places: list[int]) -> Sequence[Candidates]:
            calls.append(len(places))
            if len(calls) == stop_at:
                raise KeyboardInterrupt
            recursion = TextualRecursion(lm, first=prompt, sampling=Sampling(n=3, max_new_tokens=2))
            return recursion.candidates([asked[place] for place in places])

        ids = [one.question for one in asked]
        return cross_fit(out, ids, train=train, sample=sample, k=2, chunk=2, identity={"lm": lm.fingerprint})

    found = everything(tmp_path / "whole")
    assert [one.drawn for one in found] == [3] * 6
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        everything(tmp_path / "stopped", stop_at=2)
    torch.manual_seed(99)  # nothing hangs on the global random state
    assert everything(tmp_path / "stopped") == found
    for name in ("candidates.jsonl", "manifest.json"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    lm.assert_unchanged()
