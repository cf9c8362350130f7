"""Pass 1 from disk: the same states and losses, a budget, kills, damage, other LMs and other data."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from frozenlm.errors import CheckpointError, ConfigError, ShapeError
from frozenlm.lm_tasks import Example
from frozenlm.recursion.loss import mean_recursion_loss, recursion_loss, rows_read
from frozenlm.recursion.pass_cache import FirstPassCache
from frozenlm.rows import Soft, Tokens
from frozenlm.tensor_file import write_tensors
from tests.frozenlm.recursion.connectors import open_model
from tests.patience import PATIENCE
from tests.toys import toy_lm

# Rows that pass 1 reads: 4, 6, 3 and 4 tokens, 17 in all, 32 numbers of 4 bytes each.
EXAMPLES = [
    Example.of([20, 21, 22], [50, 51]),
    Example.of([30, 31, 32, 33, 34, 35], [60]),
    Example.of([40], [70, 71, 72]),
    Example.of([10, 11, 12], [52, 53]),
]
ROWS = rows_read(EXAMPLES)
TOKEN = 32 * 4
ROOT = Path(__file__).resolve().parents[3]


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("position", [None, "prefix", "suffix"])
def test_losses_are_those_of_running_pass_1_again(tmp_path: Path, side: str, position: str | None) -> None:
    lm = toy_lm("llama", padding_side=side)
    model = open_model(lm, position)
    cache = FirstPassCache(lm, ROWS, folder=tmp_path)
    grads = []
    for first_pass in (None, cache):
        model.module.zero_grad()
        loss, units = recursion_loss(model, EXAMPLES, first_pass)
        loss.backward()
        grads.append([p.grad.clone() for p in model.module.parameters()])
        assert loss.item() == pytest.approx(recursion_loss(model, EXAMPLES)[0].item(), abs=1e-5) and units == 8
    torch.testing.assert_close(grads[0], grads[1], atol=1e-5, rtol=1e-4)
    assert cache.counts.run_anew == 0
    assert mean_recursion_loss(model, EXAMPLES, first_pass=cache) == pytest.approx(mean_recursion_loss(model, EXAMPLES))


def test_in_float32_the_loss_is_the_same_to_the_bit(tmp_path: Path) -> None:
    """Where the LM has run the same batch; in another batch any LM's last bits may differ."""
    lm = toy_lm("llama")
    model = open_model(lm)
    same_length = [EXAMPLES[0], EXAMPLES[3]]
    cache = FirstPassCache(lm, rows_read(same_length), folder=tmp_path)
    assert torch.equal(recursion_loss(model, same_length, cache)[0], recursion_loss(model, same_length)[0])


@pytest.mark.parametrize("dtype", ["lm", "float32", "bfloat16", "float16"])
def test_what_is_kept_is_what_was_read_in_that_dtype(tmp_path: Path, dtype: str) -> None:
    lm = toy_lm("opt")
    cache = FirstPassCache(lm, ROWS, folder=tmp_path, dtype=dtype, shard_bytes=10 * TOKEN)
    kind = torch.float32 if dtype == "lm" else getattr(torch, dtype)
    for found, wanted in zip(cache.states(ROWS), lm.hidden_states([[Tokens(row)] for row in ROWS]), strict=True):
        assert found.dtype == kind
        torch.testing.assert_close(found, wanted.to(kind), atol=1e-5, rtol=0.01)
    assert cache.counts.nbytes == 17 * 32 * kind.itemsize
    assert cache.counts.shards == (2 if kind.itemsize == 4 else 1)


def test_states_come_in_any_order_and_duplicates_are_kept_once(tmp_path: Path) -> None:
    lm = toy_lm()
    cache = FirstPassCache(lm, [*ROWS, ROWS[0], list(ROWS[1])], folder=tmp_path)
    assert (cache.counts.rows, cache.counts.kept, cache.counts.tokens) == (4, 4, 17)
    mixed = [ROWS[2], (7, 8, 9), ROWS[0], ROWS[2], (7, 8, 9)]
    found = cache.states(mixed)
    for states, row in zip(found, mixed, strict=True):
        torch.testing.assert_close(states, lm.hidden_states([[Tokens(row)]])[0], atol=1e-5, rtol=0)
    assert cache.counts.run_anew == 1


def test_the_budget_holds_the_first_rows_and_the_others_are_counted(tmp_path: Path) -> None:
    lm = toy_lm()
    model, lines = open_model(lm), []
    cache = FirstPassCache(lm, ROWS, folder=tmp_path, byte_budget=12 * TOKEN, log=lines.append)
    assert (cache.counts.kept, cache.counts.over_budget, cache.counts.nbytes) == (2, 2, 10 * TOKEN)
    assert lines == [
        "pass-1 cache: 2 of 4 rows kept in 1 files, 1,280 of 1,536 bytes of float32; "
        "2 rows over the byte budget, run anew in every epoch"
    ]
    loss = recursion_loss(model, EXAMPLES, cache)[0].item()
    assert loss == pytest.approx(recursion_loss(model, EXAMPLES)[0].item(), abs=1e-5)
    assert cache.counts.run_anew == 2
    nothing = FirstPassCache(lm, ROWS, folder=tmp_path / "none", byte_budget=0)
    assert (nothing.counts.kept, nothing.counts.shards) == (0, 0) and files(tmp_path / "none") == []
    # A larger budget takes the place of the smaller one.
    FirstPassCache(lm, ROWS, folder=tmp_path)
    assert [path.name for path in files(tmp_path)] == ["rows-000000000-000000004.safetensors"]


def test_a_second_start_reads_and_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = toy_lm()
    first = FirstPassCache(lm, ROWS, folder=tmp_path, shard_bytes=1).states(ROWS)
    monkeypatch.setattr(FirstPassCache, "_run", lambda self, rows: pytest.fail("the LM ran"))
    again = FirstPassCache(lm, ROWS, folder=tmp_path, shard_bytes=1)
    assert again.counts.taken_up == again.counts.shards == 4
    assert all(torch.equal(*pair) for pair in zip(again.states(ROWS), first, strict=True))


def test_another_lm_other_data_or_another_dtype_have_their_own(tmp_path: Path) -> None:
    lm, other = toy_lm(), toy_lm(seed=1)
    FirstPassCache(lm, ROWS, folder=tmp_path)
    for cache in (
        FirstPassCache(other, ROWS, folder=tmp_path),
        FirstPassCache(lm, ROWS[:2], folder=tmp_path),
        FirstPassCache(lm, ROWS, folder=tmp_path, dtype="bfloat16"),
    ):
        assert cache.counts.taken_up == 0
    assert len({path.parent for path in files(tmp_path)}) == 4


@pytest.mark.parametrize("damage", ["cut", "flipped", "stale", "other file"])
def test_a_file_that_is_not_whole_is_named_and_computed_anew(tmp_path: Path, damage: str) -> None:
    lm = toy_lm()
    whole = FirstPassCache(lm, ROWS, folder=tmp_path, shard_bytes=10 * TOKEN)
    first, _ = files(tmp_path)
    data = bytearray(first.read_bytes())
    if damage == "cut":
        first.write_bytes(data[:-100])
    elif damage == "flipped":
        data[-10] ^= 1
        first.write_bytes(data)
    elif damage == "stale":  # of another cache, as a file that was copied by hand
        other = FirstPassCache(toy_lm(seed=1), ROWS, folder=tmp_path / "other", shard_bytes=10 * TOKEN)
        first.write_bytes((other.folder / first.name).read_bytes())
    else:
        write_tensors(first, {"something": torch.zeros(3)}, {})
    lines: list[str] = []
    again = FirstPassCache(lm, ROWS, folder=tmp_path, shard_bytes=10 * TOKEN, log=lines.append)
    assert (again.counts.damaged, again.counts.taken_up) == (1, 1)
    assert "a file is of no use and is computed anew" in lines[0] and first.name in lines[0]
    assert "1 files not whole" in lines[1]
    assert all(torch.equal(*pair) for pair in zip(again.states(ROWS), whole.states(ROWS), strict=True))


@pytest.mark.slow
def test_killed_while_building_goes_on_from_the_finished_files(tmp_path: Path) -> None:
    """kill -9 while the third of four files is computed."""
    code = """
        import os, signal, sys
        from frozenlm.recursion.pass_cache import FirstPassCache
        from tests.frozenlm.recursion.test_pass_cache import ROWS
        from tests.toys import toy_lm
        run, calls = FirstPassCache._run, []
        def killed(self, rows):
            calls.append(rows)
            if len(calls) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return run(self, rows)
        FirstPassCache._run = killed
        FirstPassCache(toy_lm(), ROWS, folder=sys.argv[1], shard_bytes=1)
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    done = subprocess.run(command, env=environment, timeout=PATIENCE, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(files(tmp_path)) == 2
    cache = FirstPassCache(toy_lm(), ROWS, folder=tmp_path, shard_bytes=1)
    assert (cache.counts.taken_up, cache.counts.shards) == (2, 4)
    whole = FirstPassCache(toy_lm(), ROWS, folder=tmp_path / "whole", shard_bytes=1)
    assert all(torch.equal(*pair) for pair in zip(cache.states(ROWS), whole.states(ROWS), strict=True))


def test_old_caches_of_a_run_are_removed_when_the_new_one_is_complete(tmp_path: Path) -> None:
    lm, lines = toy_lm(), []

    def made(rows: list[tuple[int, ...]], run: str | None) -> Path:
        return FirstPassCache(lm, rows, folder=tmp_path, run=run, log=lines.append).folder

    nobodys = made(ROWS[:1], None)
    shared = made(ROWS[:2], "a")
    assert made(ROWS[:2], "b") == shared
    with_notes = made(ROWS[:3], "a")  # "b" still reads the one before
    assert nobodys.is_dir() and shared.is_dir() and lines[-1].startswith("pass-1 cache: 3 of 3 rows kept")
    (with_notes / "notes.txt").write_text("mine")
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.run").touch()
    (tmp_path / "file.run").touch()
    last = made(ROWS, "a")
    assert [path.name for path in with_notes.iterdir()] == ["notes.txt"]
    assert lines[-1] == f"pass-1 cache: {with_notes} removed, since run a reads other data or another LM now"
    made(ROWS, "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [nobodys.name, with_notes.name, last.name, "other", "file.run"]
    )
    assert FirstPassCache(lm, ROWS, folder=tmp_path).counts.taken_up == 1
    with pytest.raises(ConfigError, match=r"is called '\.\./a'; use letters"):
        made(ROWS, "../a")


def test_a_start_that_fails_leaves_the_old_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = toy_lm()
    old = FirstPassCache(lm, ROWS[:2], folder=tmp_path, run="a").folder
    with monkeypatch.context() as patch:
        patch.setattr(FirstPassCache, "_run", lambda self, rows: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            FirstPassCache(lm, ROWS, folder=tmp_path, run="a")
    assert files(old)
    new = FirstPassCache(lm, ROWS, folder=tmp_path, run="a").folder
    assert list(tmp_path.iterdir()) == [new]


@pytest.mark.parametrize("dtype", ["lm", "float32", "bfloat16"])
def test_a_rounding_dtype_is_part_of_a_runs_identity(tmp_path: Path, dtype: str) -> None:
    exact, rounded = {}, {"first_pass_dtype": "bfloat16"}
    found = FirstPassCache(toy_lm(), ROWS, folder=tmp_path, dtype=dtype).identity
    assert found == (rounded if dtype == "bfloat16" else exact)


def test_training_under_autocast_uses_states_in_the_lms_own_dtype(tmp_path: Path) -> None:
    lm = toy_lm("llama")
    model = open_model(lm)
    cache = FirstPassCache(lm, ROWS[:2], folder=tmp_path)
    with torch.autocast("cpu", torch.bfloat16):
        assert {states.dtype for states in cache.states(ROWS)} == {torch.float32}
        kept, run = (recursion_loss(model, EXAMPLES, first_pass)[0].item() for first_pass in (cache, None))
    assert kept == pytest.approx(run, rel=1e-3)


def test_what_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    lm = toy_lm()
    for error, message, rows, options in (
        (ShapeError, "row 1 of the pass-1 cache is empty", [(5,), ()], {}),
        (ShapeError, "row 0 of the pass-1 cache has 97 tokens, the LM's window is 96", [[5] * 97], {}),
        (ConfigError, "dtype is 'int8'", ROWS, {"dtype": "int8"}),
        (ConfigError, "byte_budget is -1", ROWS, {"byte_budget": -1}),
        (ConfigError, "shard_bytes 0", ROWS, {"shard_bytes": 0}),
    ):
        with pytest.raises(error, match=message):
            FirstPassCache(lm, rows, folder=tmp_path, **options)
    with pytest.raises(ConfigError, match="needs a decoder-only LM"):
        FirstPassCache(toy_lm("bart"), ROWS, folder=tmp_path)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="could not write"):
        FirstPassCache(lm, ROWS, folder=tmp_path / "file")
    model, cache = open_model(lm), FirstPassCache(toy_lm(), ROWS, folder=tmp_path)
    with pytest.raises(ConfigError, match="belongs to another FrozenLM"):
        recursion_loss(model, EXAMPLES, cache)
    own = FirstPassCache(lm, ROWS, folder=tmp_path)
    with pytest.raises(ShapeError, match="rows of text only"):
        model.token_logprobs([[Soft(torch.zeros(2, 32))]], [[5]], first_pass=own)


def test_states_too_large_for_float16_are_refused(tmp_path: Path) -> None:
    lm = toy_lm("gpt2")
    large = type(lm.model)(lm.model.config)
    large.load_state_dict(lm.model.state_dict())
    with torch.no_grad():
        large.transformer.ln_f.weight.mul_(1e5)
    with pytest.raises(ConfigError, match=r"do not fit into torch\.float16.*use dtype 'bfloat16'"):
        FirstPassCache(type(lm).from_model(large, lm.tokenizer), ROWS, folder=tmp_path, dtype="float16")


def test_the_record_names_its_cache(tmp_path: Path) -> None:
    from safetensors import safe_open

    cache = FirstPassCache(toy_lm(), ROWS, folder=tmp_path)
    with safe_open(files(tmp_path)[0], framework="pt") as opened:
        assert json.loads(opened.metadata()["record"]) == {"key": cache.key, "first": 0, "stop": 4}
