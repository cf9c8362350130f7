"""FLOPs of recursion: sums of parts that are known."""

from frozenlm.architectures import meta_model
from frozenlm.cost import generate
from frozenlm.recursion.connector import Connector
from frozenlm.recursion.cost import connector_growth, neural, textual, trained_row
from frozenlm.recursion.sizes import ConnectorSizes
from frozenlm.shapes import ModelShape
from tests.toys import VOCAB_SIZE, toy_lm, toy_model

H = 32
LM = ModelShape.of_lm(meta_model(toy_model("llama").config, "lm"))
SIZES = ConnectorSizes(width=8, heads=2, feed_forward=16, depth=2)


def test_a_connector_multiplies_by_each_of_its_matrices_once_and_attends() -> None:
    matrices = sum(p.numel() for p in Connector.create(toy_lm("llama"), SIZES).parameters() if p.ndim == 2)
    grown = connector_growth(H, H, SIZES)
    # queries by keys and weights by values, 2 FLOPs a multiply-add, in two blocks 8 wide
    assert (grown.fixed, grown.token, grown.pair) == (0, 2 * matrices, 2 * 2 * 2 * 8)


def test_two_passes_cost_twice_one_pass_and_the_connector() -> None:
    found = neural(LM, SIZES, tokens=10, answer_tokens=1)
    one = generate(LM, 10, 1)
    assert (found.earlier, found.last) == (one.reading, one.total)
    assert found.connector == connector_growth(H, H, SIZES).at(10)
    assert found.total == found.earlier + found.connector + found.last


def test_every_answer_token_goes_through_every_pass_and_the_head_once() -> None:
    three = ConnectorSizes(passes=3, width=8, heads=2, feed_forward=16, depth=2)
    short, long = (neural(LM, three, tokens=10, answer_tokens=n) for n in (4, 5))
    step = LM.body.at(1, before=13)
    assert long.earlier - short.earlier == 2 * step
    assert long.last - short.last == step + 2 * H * VOCAB_SIZE
    assert neural(LM, three, tokens=10, answer_tokens=4, soft_tokens=2).earlier == short.earlier


def test_a_training_step_goes_back_through_all_but_the_first_pass() -> None:
    two = {"tokens": 10, "answer_tokens": 4, "soft_tokens": 2}
    run, kept = (trained_row(LM, SIZES, first_pass=first, **two) for first in (True, False))
    read = 10 + 4 - 1  # the last answer token is only predicted
    assert run - kept == LM.body.at(read)
    last = LM.body.at(read + 2) + 4 * 2 * H * VOCAB_SIZE
    assert kept == 2 * last + 3 * connector_growth(H, H, SIZES).at(read)


def test_n_candidates_share_one_reading_and_the_second_pass_what_stands_before() -> None:
    apart, shared = (
        textual(LM, before=20, first=5, second=9, answer_tokens=4, n=8, shared=shared) for shared in (False, True)
    )
    one = generate(LM, 25, 4)
    assert apart.candidates.reading == one.reading
    head = 2 * H * VOCAB_SIZE
    assert apart.candidates.answering - head == 8 * (one.answering - head)  # the first token has one distribution
    assert apart.second == generate(LM, 29, 4)
    assert shared.second.reading == LM.body.at(9, before=20) < apart.second.reading
    assert shared.second.answering == apart.second.answering
