"""The loop on small modules whose losses can be done by hand: steps, data order, evaluation, what is shown."""

import math
import sys
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from frozenlm.errors import ConfigError, FrozenLMError, FrozenViolationError, MissingExtraError
from frozenlm.optim import rate_multiples
from frozenlm.train_data import BatchOrder, split_evenly
from frozenlm.train_settings import TrainSettings
from frozenlm.training import fit
from tests.frozenlm.slope import SETTINGS, Slope, scores, train, wide_module

# --- what a step does


def test_loss_is_that_of_the_hand(tmp_path: Path) -> None:
    result = train(Slope(), tmp_path, replace(SETTINGS, steps=1, batch_size=7))
    # a = 0: 4 x^2, and the squares of XS sum to 1 + 4 + 9 + 1 + 4 + 9 + 1 = 29.
    assert result.history == [{"step": 1, "loss": pytest.approx(4 * 29 / 7), "learning_rate": 0.1}]


def test_it_learns(tmp_path: Path) -> None:
    module = Slope()
    train(module, tmp_path, replace(SETTINGS, steps=150, schedule="linear"))
    assert float(module.a.detach()) == pytest.approx(2, abs=0.01)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
@pytest.mark.parametrize("parts", [2, 3, 6])
def test_accumulation_equals_the_big_batch(tmp_path: Path, parts: int, optimizer: Any) -> None:
    """Examples with 1 to 5 units each: a mean of means would weigh them wrongly."""
    data = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    ended = []
    for accumulation in (1, parts):
        module = wide_module()

        def loss(rows: list[int], module: nn.Sequential = module) -> tuple[Tensor, int]:
            units = torch.tensor([1 + row % 5 for row in rows])
            return (module(data[rows])[:, 0] ** 2 * units).sum(), int(units.sum())

        settings = replace(
            SETTINGS,
            batch_size=6,
            steps=10,
            gradient_accumulation=accumulation,
            optimizer=optimizer,
            learning_rate=0.01,
        )
        fit(module, examples=range(20), loss=loss, out=tmp_path / str(accumulation), settings=settings, progress=False)
        ended.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
    torch.testing.assert_close(ended[0], ended[1], rtol=0, atol=1e-6)


def test_gradient_is_clipped_as_a_whole(tmp_path: Path) -> None:
    # Adafactor and AdamW hide the gradient's size, so look at it before the step: (a - 2) 2 x^2 / 1 = -36 at x = 3.
    module, seen = Slope(), []
    module.a.register_post_accumulate_grad_hook(lambda p: seen.append(float(p.grad)))
    train(module, tmp_path, replace(SETTINGS, steps=1, batch_size=1, clip_norm=0.5), examples=[3.0])
    assert seen == [-36.0]
    assert module.a.grad is not None and float(module.a.grad) == pytest.approx(-0.5, abs=1e-5)


def test_only_parameters_with_requires_grad_move(tmp_path: Path) -> None:
    module = wide_module()
    module[0].weight.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    data = torch.randn(8, 3)
    fit(
        module,
        examples=range(8),
        loss=lambda rows: (module(data[rows]).sum(), len(rows)),
        out=tmp_path,
        settings=SETTINGS,
        progress=False,
    )
    moved = [name for name, p in module.named_parameters() if not torch.equal(p, before[name])]
    assert moved == ["0.bias", "2.weight", "2.bias"]


def test_bf16_is_autocast_over_float32_parameters(tmp_path: Path) -> None:
    module, seen = wide_module(), set()
    data = torch.randn(8, 3)

    def loss(rows: list[int]) -> tuple[Tensor, int]:
        out = module(data[rows])
        seen.add(out.dtype)
        return (out.float() ** 2).sum(), len(rows)

    settings = replace(SETTINGS, precision="bf16")
    fit(module, examples=range(8), loss=loss, out=tmp_path, settings=settings, progress=False)
    assert seen == {torch.bfloat16} and {p.dtype for p in module.parameters()} == {torch.float32}


def test_rates_by_hand() -> None:
    linear = TrainSettings(steps=6, learning_rate=1.0, warmup_steps=2, schedule="linear")
    assert [linear.rate_at(step) for step in range(6)] == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    cosine = TrainSettings(steps=4, learning_rate=2.0, schedule="cosine")
    assert [cosine.rate_at(step) for step in range(4)] == pytest.approx([2, 1 + math.sqrt(0.5), 1, 1 - math.sqrt(0.5)])
    assert TrainSettings(steps=4, learning_rate=0.3).rate_at(3) == 0.3


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_parameters_may_have_rates_of_their_own(tmp_path: Path, optimizer: Any) -> None:
    """A first step is as long as its rate, whatever the gradient."""
    settings = replace(SETTINGS, steps=1, learning_rate=0.01, optimizer=optimizer)
    moved: dict[str, dict[str, Tensor]] = {}
    for name, rates in (("alike", None), ("apart", {"2": 10.0, "2.bias": 0.5})):
        module = wide_module()
        before = {key: p.detach().clone() for key, p in module.named_parameters()}
        history = fit(
            module,
            examples=range(8),
            loss=lambda rows, module=module: (module(torch.ones(len(rows), 3)).sum(), len(rows)),
            out=tmp_path / f"{name}-{optimizer}",
            settings=settings,
            rates=rates,
            progress=False,
        ).history
        assert history[-1]["learning_rate"] == 0.01
        moved[name] = {key: p.detach() - before[key] for key, p in module.named_parameters()}
    for key, times in (("0.weight", 1.0), ("0.bias", 1.0), ("2.weight", 10.0), ("2.bias", 0.5)):
        torch.testing.assert_close(moved["apart"][key], times * moved["alike"][key], rtol=1e-3, atol=1e-6)


def test_the_schedule_holds_for_every_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[float, float]] = []
    monkeypatch.setattr(
        torch.optim.AdamW, "step", lambda self: seen.append({g["multiple"]: g["lr"] for g in self.param_groups})
    )
    data = torch.ones(8, 3)
    module = wide_module()
    fit(
        module,
        examples=range(8),
        loss=lambda rows: (module(data[rows]).sum(), len(rows)),
        out=tmp_path,
        settings=TrainSettings(steps=4, learning_rate=0.5, schedule="linear"),
        rates={"0": 2.0},
        progress=False,
    )
    assert seen == [{2.0: 1.0, 1.0: 0.5}, {2.0: 0.75, 1.0: 0.375}, {2.0: 0.5, 1.0: 0.25}, {2.0: 0.25, 1.0: 0.125}]


def test_the_longest_whole_prefix_counts() -> None:
    names = ["prompt.vectors", "prompts.vectors", "prompt.head.weight", "gate"]
    found = rate_multiples(names, {"prompt": 10, "prompt.head": 3, "gate": 0.5})
    assert found == {"prompt.vectors": 10.0, "prompts.vectors": 1.0, "prompt.head.weight": 3.0, "gate": 0.5}
    with pytest.raises(ConfigError, match=r"'pro', but none of the 4 trained parameters.*'prompt\.vectors', 'prompts"):
        rate_multiples(names, {"pro": 10})
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="expected a finite number above 0"):
            rate_multiples(names, {"gate": bad})


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_rates_of_one_change_no_bit(tmp_path: Path, optimizer: Any) -> None:
    ended = []
    for number, rates in enumerate((None, {"0": 1.0})):
        module = wide_module()
        data = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
        fit(
            module,
            examples=range(8),
            loss=lambda rows, module=module, data=data: (module(data[rows]).square().sum(), len(rows)),
            out=tmp_path / str(number),
            settings=replace(SETTINGS, optimizer=optimizer, weight_decay=0.1),
            rates=rates,
            progress=False,
        )
        ended.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
    assert torch.equal(*ended)


def test_callers_random_numbers_are_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(2)
    torch.manual_seed(7)
    first = torch.rand(1)
    train(Slope(), tmp_path)
    assert torch.equal(torch.cat([first, torch.rand(1)]), expected)


def test_training_mode_in_steps_and_eval_mode_in_evaluations(tmp_path: Path) -> None:
    module, seen = Slope().eval(), []

    def loss(xs: list[float]) -> tuple[Tensor, int]:
        seen.append(module.training)
        return module.loss(xs)

    train(module, tmp_path, loss=loss, evaluate=lambda: float(not (module.training or torch.is_grad_enabled())))
    assert all(seen) and not module.training
    assert train(module, tmp_path, loss=loss, evaluate=lambda: 0.0).best_score == 1.0


# --- data order


def test_every_epoch_is_another_permutation() -> None:
    order = BatchOrder(10, 4, seed=0)
    epochs = [[order.indices(epoch * 3 + k) for k in range(3)] for epoch in range(4)]
    assert [len(batch) for batch in epochs[0]] == [4, 4, 2]
    flat = [tuple(chain.from_iterable(epoch)) for epoch in epochs]
    assert all(sorted(epoch) == list(range(10)) for epoch in flat) and len(set(flat)) == 4
    again = BatchOrder(10, 4, seed=0)
    assert again.indices(7) == order.indices(7) and BatchOrder(10, 4, seed=1).indices(7) != order.indices(7)


def test_batches_of_like_length() -> None:
    lengths = [index % 10 for index in range(100)]
    order = BatchOrder(100, 10, seed=0, lengths=lengths)
    batches = [order.indices(step) for step in range(10)]
    assert sorted(chain.from_iterable(batches)) == list(range(100))
    assert all(len({lengths[index] for index in batch}) == 1 for batch in batches)
    assert [lengths[batch[0]] for batch in batches] != sorted(lengths[batch[0]] for batch in batches)


def test_bad_data() -> None:
    with pytest.raises(ConfigError, match="0 examples"):
        BatchOrder(0, 4, seed=0)
    with pytest.raises(ConfigError, match="2 entries for 3"):
        BatchOrder(3, 4, seed=0, lengths=[1, 2])


def test_split_evenly() -> None:
    assert split_evenly([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4, 5]]
    assert split_evenly([1], 3) == [[], [], [1]]


# --- evaluation


def test_best_weights_are_kept_and_returned(tmp_path: Path) -> None:
    module, weights = Slope(), []

    def evaluate() -> float:
        weights.append(float(module.a.detach()))
        return (1.0, 3.0, 3.0, 2.0)[len(weights) - 1]

    result = train(module, tmp_path, evaluate=evaluate)
    assert (result.best_step, result.best_score, result.steps) == (6, 3.0, 12)  # a tie keeps the earlier weights
    assert float(module.a.detach()) == weights[1]
    assert [entry["step"] for entry in result.history if "score" in entry] == [3, 6, 9, 12]


def test_patience(tmp_path: Path) -> None:
    result = train(Slope(), tmp_path, replace(SETTINGS, steps=30, patience=2), evaluate=scores(1, 5, 4, 5, 9))
    assert (result.steps, result.stopped_early, result.best_step) == (12, True, 6)
    again = train(Slope(), tmp_path, replace(SETTINGS, steps=30, patience=2), evaluate=scores())
    assert again.already_trained and again.stopped_early


def test_nan_score_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FrozenLMError, match="nan after step 3"):
        train(Slope(), tmp_path, evaluate=scores(math.nan))


def test_several_scores_of_which_one_decides(tmp_path: Path) -> None:
    found = [{"score": 2.0, "sst2": 1.0}, {"score": 1.0, "sst2": 9.0}, {"score": 0.0}, {"score": 0.5}]
    result = train(Slope(), tmp_path, evaluate=lambda: found.pop(0))
    assert (result.best_step, result.best_score) == (3, 2.0)
    assert [entry.get("sst2") for entry in result.history if "score" in entry] == [1.0, 9.0, None, None]
    with pytest.raises(FrozenLMError, match="under 'score'"):
        train(Slope(), tmp_path / "other", evaluate=lambda: {"sst2": 1.0})


# --- trackers and progress


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(Slope(), tmp_path, evaluate=scores(1, 2, 3, 4), trackers=("tensorboard",))
    events = EventAccumulator(str(tmp_path / "frozenlm"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 13))
    assert [event.value for event in events.Scalars("score")] == [1, 2, 3, 4]


def test_missing_tensorboard_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(MissingExtraError, match=r"frozenlm\[tensorboard\]"):
        train(Slope(), tmp_path, trackers=("tensorboard",))


def test_unknown_tracker(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tensorbord"):
        train(Slope(), tmp_path, trackers=("tensorbord",))


def test_log_lines_where_there_is_no_terminal(tmp_path: Path) -> None:
    lines: list[str] = []
    train(Slope(), tmp_path, replace(SETTINGS, steps=20), progress=True, log=lines.append)
    assert len(lines) == 10
    assert lines[0].startswith("step 2/20  loss ") and "time left" in lines[0]


def test_bar_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    train(Slope(), tmp_path, progress=True)
    shown = capsys.readouterr().err
    assert "training" in shown and "12/12" in shown and "loss" in shown


# --- settings, the LM, many processes


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("batch_size", 0),
        ("gradient_accumulation", 5),
        ("learning_rate", 0.0),
        ("learning_rate", math.inf),
        ("weight_decay", -1.0),
        ("warmup_steps", 13),
        ("clip_norm", 0.0),
        ("optimizer", "sgd"),
        ("schedule", "step"),
        ("precision", "fp16"),
        ("patience", 0),
        ("eval_every", 0),
        ("save_every", 0),
    ],
)
def test_settings_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        replace(SETTINGS, **{name: value})


def test_module_without_a_trained_parameter(tmp_path: Path) -> None:
    module = nn.Linear(1, 1).requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing to train"):
        fit(module, examples=[1], loss=lambda rows: (torch.zeros(()), 1), out=tmp_path, settings=SETTINGS)


def test_lm_is_compared_at_the_end(tmp_path: Path) -> None:
    from tests.toys import toy_lm

    lm = toy_lm()
    lines: list[str] = []
    result = train(Slope(), tmp_path / "good", lm=lm, log=lines.append)
    assert result.verification is not None and result.verification.changed == 0
    assert lines[-1] == f"LM weights changed: 0 of {result.verification.total}"
    module = Slope()

    def loss(xs: list[float]) -> tuple[Tensor, int]:
        with torch.no_grad():
            lm.model.transformer.wte.weight[3, 3] += 1e-3
        return module.loss(xs)

    with pytest.raises(FrozenViolationError, match="LM weights changed: 1 of"):
        train(module, tmp_path / "bad", lm=lm, loss=loss)
