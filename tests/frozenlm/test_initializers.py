"""Initialisers: each row is compared with the embeddings it should come from."""

import pytest
import torch

from frozenlm.errors import ConfigError
from frozenlm.prompts.initializers import (
    Initializer,
    frequent_ids,
    from_class_labels,
    from_sampled_vocabulary,
    from_text,
    uniform,
)
from tests.toys import SPECIAL, VOCAB_SIZE, toy_lm


def made(init: Initializer, length: int, seed: int = 0, name: str = "gpt2") -> torch.Tensor:
    return init(toy_lm(name), length, torch.Generator().manual_seed(seed))


def vocabulary_ids(rows: torch.Tensor, name: str = "gpt2") -> list[int]:
    """The token whose embedding each row is; fails when a row is none."""
    table = toy_lm(name).embed(torch.arange(VOCAB_SIZE))
    same = (rows[:, None, :] == table[None]).all(dim=2)
    assert same.any(dim=1).all()
    return same.int().argmax(dim=1).tolist()


def test_uniform_fills_the_interval() -> None:
    rows = made(uniform(), 200)
    assert rows.shape == (200, 32) and rows.dtype == torch.float32
    assert -0.5 <= rows.min() < -0.49 and 0.49 < rows.max() <= 0.5
    assert abs(rows.mean()) < 0.02


def test_uniform_refuses_a_scale_of_zero() -> None:
    with pytest.raises(ConfigError, match="scale is 0"):
        uniform(0)


def test_sampled_vocabulary_draws_frequent_tokens_without_replacement() -> None:
    # Five special tokens come first, so the ten most frequent tokens are 5..14: drawn whole, each comes once.
    ids = vocabulary_ids(made(from_sampled_vocabulary(top=10), 10))
    assert sorted(ids) == list(range(5, 15))
    assert ids != sorted(ids)


def test_frequent_ids_pass_over_what_never_stands_in_text() -> None:
    lm = toy_lm()
    assert frequent_ids(lm, 3) == [5, 6, 7]
    assert len(frequent_ids(lm, 10**6)) == VOCAB_SIZE - len(SPECIAL)
    lm.tokenizer.add_special_tokens({"additional_special_tokens": ["[unused7]"]})
    assert max(frequent_ids(lm, 10**6)) == VOCAB_SIZE - 1


@pytest.mark.parametrize("piece", ["<0x0A>", "[unused12]", "<unused3>", "<extra_id_5>", "<|reserved_special_token_9|>"])
def test_unused_pieces_are_known_by_name(piece: str) -> None:
    from frozenlm.prompts.initializers import _NEVER_IN_TEXT

    assert _NEVER_IN_TEXT.match(piece)
    assert not _NEVER_IN_TEXT.match("unused") and not _NEVER_IN_TEXT.match("▁the")


def test_same_seed_same_prompt() -> None:
    init = from_sampled_vocabulary()
    assert torch.equal(made(init, 8, seed=3), made(init, 8, seed=3))
    assert not torch.equal(made(init, 8, seed=3), made(init, 8, seed=4))


def test_sampled_vocabulary_refuses_more_rows_than_tokens() -> None:
    with pytest.raises(ConfigError, match="11 soft tokens cannot be drawn without replacement from 10"):
        made(from_sampled_vocabulary(top=10), 11)


def test_text_is_repeated_or_cut() -> None:
    cat, sat = toy_lm().encode("cat sat")
    assert vocabulary_ids(made(from_text("cat sat"), 5)) == [cat, sat, cat, sat, cat]
    assert vocabulary_ids(made(from_text("cat sat"), 1)) == [cat]


def test_text_without_a_token_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no token"):
        made(from_text(""), 5)


def test_class_labels_come_first_as_means() -> None:
    lm = toy_lm()
    rows = made(from_class_labels(["cat", "blue dog"]), 6)
    cat, blue, dog = (lm.embed(torch.tensor(lm.encode(word)))[0] for word in ("cat", "blue", "dog"))
    assert torch.equal(rows[0], cat)
    assert torch.allclose(rows[1], (blue + dog) / 2)
    assert len(set(vocabulary_ids(rows[2:]))) == 4


@pytest.mark.parametrize("labels", [[], "cat"])
def test_class_labels_must_be_a_list(labels: list[str]) -> None:
    with pytest.raises(ConfigError, match="at least one label"):
        from_class_labels(labels)


def test_more_labels_than_rows_is_refused() -> None:
    with pytest.raises(ConfigError, match="2 labels do not fit into 1"):
        made(from_class_labels(["cat", "dog"]), 1)


def test_embedding_scale_of_the_model_is_in() -> None:
    """BART with scale_embedding multiplies what it looks up by sqrt(H); a soft vector must start where text would."""
    lm = toy_lm("bart")
    token = lm.encode("cat")
    assert torch.allclose(made(from_text("cat"), 1, name="bart"), lm.model.model.shared.weight[token] * 32**0.5)
