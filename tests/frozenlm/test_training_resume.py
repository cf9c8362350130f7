"""A run that stops, is killed, finds a full disk or is started again: nothing is lost, and the weights are the same."""

import json
import math
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from frozenlm.errors import CheckpointError, ConfigError, FrozenLMError
from frozenlm.tensor_file import clear_temporaries
from frozenlm.train_settings import differences
from frozenlm.training import FitResult, fit
from tests.frozenlm.slope import SETTINGS, Slope, scores, train, wide_module
from tests.patience import PATIENCE

ROOT = Path(__file__).resolve().parents[2]


# --- stopping, resuming, finishing


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_killed_runs_end_in_the_same_bits(tmp_path: Path, optimizer: str) -> None:
    """Killed at random times, and just before and just after each replacement of a file."""
    command = [sys.executable, str(ROOT / "tests/frozenlm/killed_runs.py"), str(tmp_path), optimizer]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"] >= 3 and found["saves"] >= 10
    assert len(found["whole"]) == 2
    assert found["killed"] == found["whole"]
    assert found["killed_in_save"] == found["whole"]


def test_a_kill_in_the_middle_of_a_write_leaves_nothing_for_ever(tmp_path: Path) -> None:
    """The system kills the writer at its first byte beyond 64 KiB."""
    code = (
        "import resource, signal, sys, torch; from pathlib import Path; from frozenlm.tensor_file import write_tensors;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_DFL); resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536));"
        "write_tensors(Path(sys.argv[1]) / 'state.safetensors', {'a': torch.zeros(2**20)}, {})"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, timeout=PATIENCE, check=False)
    assert done.returncode == -signal.SIGXFSZ
    assert [path.stat().st_size for path in tmp_path.iterdir()] == [65536]
    clear_temporaries(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_saves_and_resumes_to_the_same_weights(tmp_path: Path) -> None:
    whole = Slope()
    lines: list[str] = []
    train(whole, tmp_path / "whole")
    module, calls = Slope(), []

    def loss(xs: list[float]) -> tuple[Tensor, int]:
        calls.append(xs)
        if len(calls) == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return module.loss(xs)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(module, tmp_path / "cut", loss=loss, log=lines.append)
    assert signal.getsignal(signal.SIGINT) is before
    assert "stopped after step 7 of 12" in lines[-1] and "run the same command again" in lines[-1]
    again = Slope()
    result = train(again, tmp_path / "cut")
    assert result.resumed_from == 7 and result.steps == 12
    assert torch.equal(again.a, whole.a)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_rates_of_parameters_are_part_of_the_run_and_survive_a_stop(tmp_path: Path, optimizer: str) -> None:
    data = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    settings = replace(SETTINGS, optimizer=optimizer, schedule="cosine", weight_decay=0.1)

    def run(folder: str, rates: dict[str, float] | None, stop_at: int | None = None) -> Tensor:
        module, calls = wide_module(), []

        def loss(rows: list[int]) -> tuple[Tensor, int]:
            calls.append(1)
            if len(calls) == stop_at:
                raise KeyboardInterrupt
            return module(data[rows]).square().sum(), len(rows)

        fit(module, examples=range(8), loss=loss, out=tmp_path / folder, settings=settings, rates=rates, progress=False)
        return torch.cat([p.detach().flatten() for p in module.parameters()])

    rates = {"0": 3.0, "0.bias": 0.1}
    whole = run("whole", rates)
    with pytest.raises(KeyboardInterrupt):
        run("cut", rates, stop_at=9)
    with pytest.raises(ConfigError, match=r"rates\.0: stored 3\.0, now 2\.0"):
        run("cut", rates | {"0": 2.0})
    with pytest.raises(ConfigError, match=r"rates: stored .*now 'absent'"):
        run("cut", None)
    assert torch.equal(run("cut", rates), whole)
    assert not torch.equal(run("alike", None), whole)


def test_another_number_of_threads_is_said(tmp_path: Path) -> None:
    lines: list[str] = []
    module = Slope()

    def loss(xs: list[float]) -> tuple[Tensor, int]:
        if len(lines) == 0 and float(module.a.detach()) > 0.75:
            raise KeyboardInterrupt
        return module.loss(xs)

    with pytest.raises(KeyboardInterrupt):
        train(module, tmp_path, loss=loss)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        train(Slope(), tmp_path, log=lines.append)
    finally:
        torch.set_num_threads(before)
    assert f"this run began with {before} CPU threads and goes on with {before + 1}" in lines[1]


def test_nan_loss_names_the_step_and_loses_nothing(tmp_path: Path) -> None:
    whole = Slope()
    train(whole, tmp_path / "whole")
    module, calls = Slope(), []

    def loss(xs: list[float]) -> tuple[Tensor, int]:
        calls.append(float(module.a.detach()))
        value, count = module.loss(xs)
        return (value * math.nan if len(calls) == 8 else value), count

    with pytest.raises(FrozenLMError, match=r"training step 8: the loss is nan.*last saved state is intact"):
        train(module, tmp_path / "nan", loss=loss)
    assert float(module.a.detach()) == calls[-1]
    again = Slope()
    assert train(again, tmp_path / "nan").resumed_from == 5
    assert torch.equal(again.a, whole.a)


def test_a_batch_with_nothing_to_learn_is_an_error(tmp_path: Path) -> None:
    module = Slope()
    with pytest.raises(FrozenLMError, match="anything to learn"):
        train(module, tmp_path, loss=lambda xs: (module.a.sum() * 0, 0))


def test_finished_run_returns_at_once(tmp_path: Path) -> None:
    first = Slope()
    lines: list[str] = []
    train(first, tmp_path)
    again = Slope()
    result = train(again, tmp_path, loss=lambda xs: pytest.fail("trained again"), log=lines.append)
    assert result.already_trained and torch.equal(again.a, first.a)
    assert lines[0].startswith("already trained: step 12 of 12")


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    train(Slope(), tmp_path, identity={"data": "one", "shape": (1, 2)})
    train(Slope(), tmp_path, identity={"data": "one", "shape": (1, 2)})
    other = replace(SETTINGS, learning_rate=0.2)
    with pytest.raises(ConfigError) as error:
        train(Slope(), tmp_path, other, identity={"data": "two", "shape": (1, 2)})
    assert "settings.learning_rate: stored 0.1, now 0.2" in str(error.value)
    assert "task.data: stored 'one', now 'two'" in str(error.value)
    assert "shape" not in str(error.value) and "restart=True" in str(error.value)


def test_restart_discards_the_run_only(tmp_path: Path) -> None:
    train(Slope(), tmp_path, evaluate=scores(1, 2, 3, 4))
    (tmp_path / "notes.txt").write_text("mine")
    result = train(Slope(), tmp_path, replace(SETTINGS, steps=6), restart=True)
    assert result.steps == 6 and not result.already_trained
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "state.safetensors"]


def test_differences_of_nested_settings() -> None:
    lines = differences({"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 4}, "e": 5})
    assert lines == ["b.c: stored 2, now 4", "b.d: stored 3, now 'absent'", "e: stored 'absent', now 5"]


# --- files


def test_no_pickle_and_nothing_left_over(tmp_path: Path) -> None:
    train(Slope(), tmp_path, evaluate=scores(1, 2, 3, 4))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best-00000012.safetensors", "state.safetensors"]


@pytest.mark.parametrize("damage", ["cut", "empty", "flip"])
def test_damaged_state_is_named(tmp_path: Path, damage: str) -> None:
    train(Slope(), tmp_path)
    path = tmp_path / "state.safetensors"
    whole = path.read_bytes()
    places = range(0, len(whole), 41) if damage == "flip" else [0]
    for place in places:
        flipped = whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :]
        path.write_bytes({"cut": whole[:-3], "empty": b"", "flip": flipped}[damage])
        with pytest.raises((CheckpointError, ConfigError), match=r"state\.safetensors"):
            train(Slope(), tmp_path)
    train(Slope(), tmp_path, restart=True)


def test_full_disk_is_a_clear_error_and_the_last_state_stays(tmp_path: Path) -> None:
    module = wide_module()
    data = torch.randn(8, 3)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    calls = []

    def loss(rows: list[int]) -> tuple[Tensor, int]:
        calls.append(1)
        if len(calls) == 8:  # after the first save
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        return module(data[rows]).sum(), len(rows)

    def run() -> FitResult:
        return fit(module, examples=range(8), loss=loss, out=tmp_path, settings=SETTINGS, progress=False)

    try:
        with pytest.raises(CheckpointError, match=r"could not write .*state\.safetensors"):
            run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]
    assert run().resumed_from == 5


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot train into"):
        train(Slope(), tmp_path / "file" / "run")


TWO_PROCESSES = """
import os, sys, torch
from accelerate import PartialState
from torch import nn
from frozenlm.train_settings import TrainSettings
from frozenlm.training import fit
torch.manual_seed(int(os.environ.get("RANK", 0)))
module = nn.Linear(3, 1)
data = torch.arange(33.0).view(11, 3) / 33
def loss(rows):
    units = torch.tensor([1 + row % 3 for row in rows])
    return (module(data[rows])[:, 0] ** 2 * units).sum(), int(units.sum())
fit(module, examples=range(11), loss=loss, out=sys.argv[1], progress=False, evaluate=lambda: 1.0,
    settings=TrainSettings(steps=8, batch_size=5, gradient_accumulation=2, learning_rate=0.01))
# In one piece: torchrun's processes write unbuffered, so that the pieces of two lines may come mixed.
sys.stdout.write(f"processes: {PartialState().num_processes}\\n")
# Without this, a process that ends early may break the other one's last message.
PartialState().wait_for_everyone()
PartialState().destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    from frozenlm.tensor_file import read_tensors

    script = tmp_path / "script.py"
    script.write_text(TWO_PROCESSES)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for options, name, count in (([], "one", 1), (launch, "two", 2)):
        command = [sys.executable, *options, str(script), str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(f"processes: {count}\n") == count
    one, two = (read_tensors(tmp_path / name / "state.safetensors")[0] for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-6)


def test_two_processes_cannot_train_into_one_folder(tmp_path: Path) -> None:
    """The lock goes with the process that holds it, and leaves no file behind."""
    code = (
        "import sys; from pathlib import Path; from frozenlm.train_state import RunFolder\n"
        "with RunFolder(Path(sys.argv[1]), {}).locked():\n    print('held', flush=True)\n    sys.stdin.read()"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="another process trains into"):
            train(Slope(), tmp_path, SETTINGS)
        assert list(tmp_path.iterdir()) == []
        other.kill()
    assert train(Slope(), tmp_path, SETTINGS).steps == SETTINGS.steps
