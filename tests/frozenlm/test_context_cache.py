"""The cache of contexts: what it serves equals what the LM reads, its bytes are counted, damage is found."""

from pathlib import Path

import pytest
import torch

from frozenlm.context_cache import ContextCache
from frozenlm.errors import ConfigError, ShapeError
from frozenlm.lm import FrozenLM
from frozenlm.memory import Memory
from frozenlm.rows import Tokens
from tests.toys import toy_lm

CONTEXTS = [(5, 6, 7, 8), (9, 10), (11, 12, 13)]
TOKEN_BYTES = 2 * 2 * 4 * 8 * 4
"""Keys and values, 2 layers, 4 heads of size 8, float32: what one token of the toy GPT-2 takes."""


def made(lm: FrozenLM, kind: str, folder: Path, budget: int = 10**6) -> ContextCache:
    return ContextCache(lm, kind=kind, folder=folder, byte_budget=budget)  # type: ignore[arg-type]


def assert_equal(lm: FrozenLM, memory: Memory, contexts: list[tuple[int, ...]]) -> None:
    """Continuing from the memory gives the logits of reading each whole row alone."""
    more = Tokens.of([30, 31])
    with torch.no_grad():
        got = lm.forward([[more] for _ in contexts], memory=memory).logits
        for row, context in zip(got, contexts, strict=True):
            whole = lm.forward([[Tokens.of(context), more]]).logits[0][-2:]
            torch.testing.assert_close(row, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["off", "memory", "disk"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_what_is_served_equals_what_is_read(tmp_path: Path, name: str, kind: str) -> None:
    lm = toy_lm(name)
    cache = made(lm, kind, tmp_path)
    for contexts in (CONTEXTS[:2], CONTEXTS, [CONTEXTS[2], CONTEXTS[0], CONTEXTS[2]]):
        assert_equal(lm, cache.memory(contexts), contexts)
    assert (cache.counts.found, cache.counts.read) == ((0, 7) if kind == "off" else (5, 3))


def test_one_read_for_a_context_that_comes_twice_in_a_batch() -> None:
    cache = ContextCache(toy_lm(), kind="off")
    assert_equal(cache.lm, cache.memory([CONTEXTS[0]] * 2), [CONTEXTS[0]] * 2)
    assert cache.counts.read == 1


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_bytes_are_counted_and_the_budget_is_kept(tmp_path: Path, kind: str) -> None:
    cache = made(toy_lm(), kind, tmp_path, budget=6 * TOKEN_BYTES)
    cache.memory(CONTEXTS)  # 4 + 2 tokens fit, the 3 of the last context do not
    assert cache.nbytes == 6 * TOKEN_BYTES
    assert (cache.counts.kept, cache.counts.over_budget) == (2, 1)
    assert_equal(cache.lm, cache.memory(CONTEXTS), CONTEXTS)
    assert (cache.counts.found, cache.counts.read) == (2, 4)
    assert "2 not kept because the budget is full" in cache.report()


def test_disk_outlives_the_process_and_is_of_one_lm(tmp_path: Path) -> None:
    made(toy_lm(), "disk", tmp_path).memory(CONTEXTS)
    again = made(toy_lm(), "disk", tmp_path)
    assert_equal(again.lm, again.memory(CONTEXTS), CONTEXTS)
    assert again.counts.read == 0 and again.nbytes >= 9 * TOKEN_BYTES
    other = made(toy_lm(seed=1), "disk", tmp_path)
    assert_equal(other.lm, other.memory(CONTEXTS), CONTEXTS)
    assert other.counts.found == 0


@pytest.mark.parametrize("damage", [lambda b: b[:-5], lambda b: b"", lambda b: b[:-9] + bytes([b[-9] ^ 4]) + b[-8:]])
def test_damaged_file_is_read_anew(tmp_path: Path, damage: object) -> None:
    made(toy_lm(), "disk", tmp_path).memory(CONTEXTS)
    for path in tmp_path.rglob("*.safetensors"):
        path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    cache = made(toy_lm(), "disk", tmp_path)
    assert_equal(cache.lm, cache.memory(CONTEXTS), CONTEXTS)
    assert cache.counts.damaged == 3 and "3 files damaged and read anew" in cache.report()
    assert_equal(cache.lm, cache.memory(CONTEXTS), CONTEXTS)
    assert cache.counts.found == 3


def test_folder_that_cannot_be_written_costs_time_only(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    cache = made(toy_lm(), "disk", blocked)
    assert_equal(cache.lm, cache.memory(CONTEXTS), CONTEXTS)
    assert cache.counts.unwritable == 3 and cache.nbytes == 0
    assert "3 could not be written" in cache.report()


def test_bad_settings() -> None:
    lm = toy_lm()
    with pytest.raises(ConfigError, match="ram"):
        ContextCache(lm, kind="ram")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="needs a folder"):
        ContextCache(lm, kind="disk")
    with pytest.raises(ConfigError, match="-1"):
        ContextCache(lm, byte_budget=-1)
    with pytest.raises(ConfigError, match="encoder-decoder"):
        ContextCache(toy_lm("t5"))


def test_empty_context_is_refused() -> None:
    with pytest.raises(ShapeError):
        ContextCache(toy_lm()).memory([(5,), ()])
