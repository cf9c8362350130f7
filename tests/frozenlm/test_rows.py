"""Assembly by hand: an embedding in which token i is the vector [i, -i], so that every column can be read off."""

import numpy as np
import pytest
import torch

from frozenlm.errors import ShapeError
from frozenlm.rows import Soft, Tokens, assemble, plan_batches, row_length, text_ids


def ramp(ids):
    return torch.stack([ids, -ids], dim=-1).float()


def build(rows, **options):
    return assemble(rows, embed=ramp, hidden_size=2, vocab_size=50, pad_id=9, **options)


def test_a_soft_segment_stands_where_the_row_says():
    soft = Soft(torch.tensor([[0.5, 0.25]]))
    batch = build([[Tokens((1, 2)), soft, Tokens((3,))], [soft, Tokens((4,))]])
    assert batch.embeds[0].tolist() == [[1, -1], [2, -2], [0.5, 0.25], [3, -3]]
    assert batch.embeds[1].tolist() == [[0.5, 0.25], [4, -4], [9, -9], [9, -9]]
    assert batch.mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch.positions.tolist() == [[0, 1, 2, 3], [0, 1, 0, 0]]
    assert batch.text_index.tolist() == [[0, 1, 3], [1, -1, -1]]
    assert batch.lengths.tolist() == [4, 2]
    assert batch.last_column.tolist() == [3, 1]


def test_left_padding_moves_columns_but_not_positions():
    batch = build([[Tokens((1, 2, 3))], [Tokens((4,))]], padding_side="left")
    assert batch.embeds[1].tolist() == [[9, -9], [9, -9], [4, -4]]
    assert batch.mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch.positions.tolist() == [[0, 1, 2], [0, 0, 0]]
    assert batch.text_index.tolist() == [[0, 1, 2], [2, -1, -1]]
    assert batch.last_column.tolist() == [2, 2]


def test_positions_go_on_from_the_offset():
    batch = build([[Tokens((1, 2))], [Tokens((4,))]], offsets=torch.tensor([10, 3]))
    assert batch.positions.tolist() == [[10, 11], [3, 0]]


def test_gradients_of_a_shared_soft_prompt_add_up_over_rows():
    vectors = torch.zeros(2, 2, requires_grad=True)
    batch = build([[Soft(vectors), Tokens((1,))], [Tokens((2, 2)), Soft(vectors)], [Tokens((3,))]])
    batch.embeds.sum().backward()
    assert vectors.grad.tolist() == [[2, 2], [2, 2]]


def test_segments_may_be_empty_and_rows_all_soft():
    batch = build([[Tokens(()), Soft(torch.ones(2, 2)), Tokens(())]])
    assert batch.text_index.shape == (1, 0)
    assert batch.lengths.tolist() == [2]


def test_tokens_take_any_integers_and_nothing_else():
    assert Tokens.of(np.array([1, 2])).ids == Tokens.of(torch.tensor([1, 2])).ids == Tokens([1, 2]).ids == (1, 2)
    assert all(type(i) is int for i in Tokens.of(np.array([1, 2], dtype=np.int64)).ids)
    with pytest.raises(ShapeError, match=r"integer ids, got 1\.5"):
        Tokens.of([1.5])


def test_lengths_and_text():
    row = [Tokens((1, 2)), Soft(torch.ones(3, 2)), Tokens((4,))]
    assert row_length(row) == 6
    assert text_ids(row) == (1, 2, 4)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "empty batch"),
        ([[Tokens((1,))], []], "row 1 is empty"),
        ([[Tokens(())]], "row 0 is empty"),
        ([[Tokens((1,))], [Tokens((2, 50))]], "row 1, segment 0: token id 50 is outside the LM's vocabulary 0..49"),
        ([[Tokens((-1,))]], "token id -1"),
        ([[Tokens((1,)), Soft(torch.ones(2, 3))]], "row 0, segment 1: soft vectors are 3 wide, the LM's embeddings 2"),
        ([[Soft(torch.tensor([[1.0, float("nan")]]))]], "NaN or Inf"),
        ([[Soft(torch.tensor([[1.0, float("inf")]]))]], "NaN or Inf"),
        ([[5]], "expected Tokens or Soft, got int"),
        ([Tokens((1,))], "row 0 is a bare Tokens"),
    ],
)
def test_bad_rows_get_one_clear_error(rows, message):
    with pytest.raises(ShapeError, match=message):
        build(rows)


@pytest.mark.parametrize("vectors", [torch.ones(3), torch.ones(2, 2, dtype=torch.long), [[1.0]]])
def test_soft_is_a_matrix_of_floats(vectors):
    with pytest.raises(ShapeError, match=r"\[P, H\]"):
        Soft(vectors)


def test_batches_are_of_like_length_and_hold_every_index_once():
    assert plan_batches([1, 9, 2, 10, 1], batch_tokens=20) == [[3, 1], [2, 0, 4]]
    assert plan_batches([30, 5], batch_tokens=10) == [[0], [1]]
    assert plan_batches([], batch_tokens=10) == []
    with pytest.raises(ShapeError, match="batch_tokens"):
        plan_batches([1], batch_tokens=0)
