"""Constant vectors of texts: computed once, kept up to a number, counted."""

import torch
from torch import Tensor

from frozenlm.prompts.text_vectors import TextVectors


class Lengths:
    """[length of the text, 1], and what was asked for."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(self, texts: list[str]) -> Tensor:
        self.calls.append(texts)
        return torch.tensor([[float(len(text)), 1.0] for text in texts], requires_grad=True) * 1


def test_a_text_is_computed_once() -> None:
    compute = Lengths()
    vectors = TextVectors(compute)
    assert vectors(["aa", "b", "aa"]).tolist() == [[2, 1], [1, 1], [2, 1]]
    assert vectors(["b", "cccc"]).tolist() == [[1, 1], [4, 1]]
    assert compute.calls == [["aa", "b"], ["cccc"]]
    assert (vectors.computed, vectors.found, len(vectors)) == (3, 2, 3)


def test_beyond_the_capacity_texts_are_computed_anew() -> None:
    compute = Lengths()
    vectors = TextVectors(compute, capacity=1)
    for _ in range(2):
        assert vectors(["a", "bb"]).tolist() == [[1, 1], [2, 1]]
    assert compute.calls == [["a", "bb"], ["bb"]]
    assert (vectors.computed, vectors.found, len(vectors)) == (3, 1, 1)


def test_what_was_kept_while_serving_can_be_trained_on() -> None:
    vectors = TextVectors(Lengths())
    with torch.inference_mode():
        vectors(["aa"])
    weight = torch.ones(2, requires_grad=True)
    (vectors(["aa"]) @ weight).sum().backward()
    assert weight.grad is not None and weight.grad.tolist() == [2, 1]
    assert not vectors(["aa"]).requires_grad
