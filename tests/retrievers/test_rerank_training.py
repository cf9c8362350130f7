"""Mining, the loss by hand, and a toy cross-encoder that learns to rank, is saved, and ranks the same when opened."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from retrievers.errors import IndexMismatchError, RetrieverError
from retrievers.rerank import CrossEncoderReranker
from retrievers.rerank_training import (
    CrossEncoderTrainer,
    RankingExample,
    RankingQuestion,
    listwise_loss,
    mine_negatives,
)
from retrievers.types import Passage
from tests.retrievers.toys import hit, save_bert

FOUND = [
    hit("1", "the dog sleeps"),
    hit("2", "Fish, red!", title="T"),
    hit("3", "a red fish"),
    hit("4", "blue"),
    hit("5", "green"),
]


def test_positive_is_gold_else_the_first_with_the_answer_and_negatives_are_neither() -> None:
    questions = [
        RankingQuestion("by-answer", "what", ("red",)),
        RankingQuestion("by-gold", "what", ("red",), frozenset({"4"})),
        RankingQuestion("gold-not-found", "what", ("red",), frozenset({"9"})),
    ]
    corpus = {"9": Passage("9", "ninth", title="Nine")}
    mined = mine_negatives(questions, [FOUND] * 3, negatives=2, passage=corpus.get)
    assert [example.positive for example in mined.examples] == ["T Fish, red!", "blue", "Nine ninth"]
    assert set(mined.examples[0].negatives) <= {"the dog sleeps", "blue", "green"}
    assert set(mined.examples[1].negatives) == {"the dog sleeps", "green"}
    assert (mined.gold_positives, mined.few_negatives) == (2, 0)


def test_questions_that_give_no_example_are_counted() -> None:
    questions = [
        RankingQuestion("none", "what", ("purple",)),
        RankingQuestion("all good", "what", ("red",)),
        RankingQuestion("few", "what", ("red",)),
    ]
    mined = mine_negatives(questions, [FOUND, FOUND[1:3], FOUND[:2]], negatives=3)
    assert (mined.questions, mined.without_positive, mined.without_negative, mined.few_negatives) == (3, 1, 1, 1)
    assert mined.examples == (RankingExample("what", "T Fish, red!", ("the dog sleeps",)),)
    assert "1 examples from 3 questions" in str(mined)


def test_depth_bounds_the_negatives_but_not_the_positive() -> None:
    mined = mine_negatives([RankingQuestion("q", "what", ("green",))], [FOUND], depth=1, negatives=5)
    assert mined.examples == (RankingExample("what", "green", ("the dog sleeps",)),)


def test_the_draw_depends_on_seed_and_question_alone() -> None:
    hits = [hit(str(i), f"number {i}") for i in range(50)]
    first, second = (RankingQuestion(name, "what", ("7",)) for name in ("a", "b"))
    both = mine_negatives([first, second], [hits, hits], negatives=5).examples
    alone = mine_negatives([second], [hits], negatives=5).examples
    assert both[1] == alone[0]
    assert both[0].negatives != both[1].negatives
    assert mine_negatives([second], [hits], negatives=5, seed=1).examples != alone


def test_bad_mining_input_is_refused() -> None:
    with pytest.raises(RetrieverError, match="neither answers nor gold"):
        mine_negatives([RankingQuestion("q", "what")], [FOUND])
    with pytest.raises(RetrieverError, match="1 lists of hits"):
        mine_negatives([], [FOUND])
    with pytest.raises(RetrieverError, match="negatives is 0"):
        mine_negatives([], [], negatives=0)


def test_listwise_loss_by_hand() -> None:
    assert float(listwise_loss(torch.zeros(3, 4))) == pytest.approx(math.log(4))
    logits = torch.tensor([[math.log(3), 0.0, -math.inf]])
    assert float(listwise_loss(logits)) == pytest.approx(-math.log(3 / 4))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("base") / "bert", seed=11)


def test_new_head_is_seeded_and_leaves_the_callers_random_state_alone(base: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    heads = [CrossEncoderTrainer(str(base), seed=seed, device="cpu").module.classifier.weight for seed in (1, 1, 2)]
    assert torch.rand(1) == expected
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_lists_of_different_length_share_a_batch(base: Path) -> None:
    trainer = CrossEncoderTrainer(str(base), device="cpu")
    long = RankingExample("who eats fish", "the cat", ("dog", "red", "blue"))
    short = RankingExample("where is it", "on the red", ("a",))
    together, alone = trainer.logits([long, short]), trainer.logits([short])
    assert together.shape == (2, 4)
    assert torch.isinf(together[1, 2:]).all()
    torch.testing.assert_close(together[1, :2], alone[0], atol=1e-5, rtol=0)
    assert torch.isfinite(trainer.loss([long, short]))
    with pytest.raises(RetrieverError):
        trainer.loss([])
    with pytest.raises(RetrieverError):
        trainer.evaluate([])


def test_it_learns_is_saved_and_ranks_the_same_when_opened(base: Path, tmp_path: Path) -> None:
    animals, colours = ["cat", "dog", "fish"], ["red", "green", "blue"]
    examples = [
        RankingExample(f"who is {a}", f"the {a} runs", tuple(f"the {c} runs" for c in colours)) for a in animals
    ]
    trainer = CrossEncoderTrainer(str(base), seed=0, device="cpu")
    optimizer = torch.optim.AdamW(trainer.module.parameters(), lr=3e-3)
    first = trainer.loss(examples).item()
    trainer.module.train()
    for _ in range(30):
        optimizer.zero_grad()
        trainer.loss(examples).backward()
        optimizer.step()
    assert trainer.loss(examples).item() < 0.2 * first
    assert trainer.evaluate(examples) == 1.0
    assert trainer.module.training

    trainer.save(tmp_path / "trained", {"steps": 30})
    reranker = CrossEncoderReranker(str(tmp_path / "trained"), dtype="float32", device="cpu")
    trainer.module.eval()
    with torch.no_grad():
        logits = trainer.logits(examples[:1])[0]
    scores = reranker.score([examples[0].question] * 4, examples[0].passages)
    torch.testing.assert_close(torch.from_numpy(scores), logits, atol=1e-5, rtol=0)
    assert (tmp_path / "trained" / "model.safetensors").is_file()
    assert not list((tmp_path / "trained").glob("*.bin"))

    weights = tmp_path / "trained" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-10] ^= 1
    weights.write_bytes(data)
    with pytest.raises(IndexMismatchError, match=r"model\.safetensors"):
        CrossEncoderReranker(str(tmp_path / "trained"), device="cpu")


def test_reciprocal_rank_counts_ties_against_the_positive(base: Path) -> None:
    trainer = CrossEncoderTrainer(str(base), device="cpu")
    example = RankingExample("who is it", "the cat", ("the cat", "the cat"))
    assert trainer.evaluate([example]) == pytest.approx(1 / 3)


def test_mined_examples_carry_the_retrievers_scores(base: Path) -> None:
    question = RankingQuestion("q", "who", gold_ids=frozenset({"g"}))
    passage = {"g": Passage("g", "the cat")}.get
    found = [hit("a", "the dog", 5.0), hit("b", "blue", 3.0)]
    missed = mine_negatives([question], [found], negatives=1, passage=passage).examples[0]
    assert missed.scores[0] == 3.0  # the retriever missed the gold passage: the lowest score of its list
    assert missed.scores[1] in (5.0, 3.0)
    ranked_first = mine_negatives([question], [[hit("g", "the cat", 9.0), *found]], negatives=2).examples[0]
    assert (ranked_first.scores[0], sorted(ranked_first.scores[1:])) == (9.0, [3.0, 5.0])


def test_training_corrects_the_retrievers_scores(base: Path) -> None:
    example = RankingExample("who is it", "the cat", ("the dog", "blue"), (2.0, 1.0, 0.0))
    plain = CrossEncoderTrainer(str(base), seed=1, device="cpu")
    weighted = CrossEncoderTrainer(str(base), seed=1, device="cpu", retrieval_weight=3.0)
    with torch.no_grad():
        added = weighted.logits([example]) - plain.logits([example])
    assert torch.allclose(added, torch.tensor([[6.0, 3.0, 0.0]]), atol=1e-5)
    assert weighted.evaluate([RankingExample("q", "the cat", ("the dog",), (1e6, 0.0))]) == 1.0
    with pytest.raises(RetrieverError, match="score of every passage"):
        weighted.logits([RankingExample("q", "the cat", ("the dog",))])


def test_balanced_negatives_are_gold_for_another_question() -> None:
    questions = [RankingQuestion(name, name, gold_ids=frozenset({name})) for name in ("a", "b")]
    hits = [
        [hit("a", "red", 3.0), hit("x", "blue", 2.0), hit("b", "green", 1.0)],
        [hit("b", "green", 3.0), hit("x", "blue", 2.0)],
    ]
    mined = mine_negatives(questions, hits, negatives=1, balanced=True)
    assert [example.negatives for example in mined.examples] == [("green",), ("blue",)]
