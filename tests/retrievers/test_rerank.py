"""The cross-encoder re-ranker against plain transformers and sentence-transformers; order, windows, bad models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from retrievers.errors import RetrieverError
from retrievers.rerank import CrossEncoderReranker, ranked
from retrievers.rider import RiderReranker
from retrievers.types import Hit, Reranker
from tests.retrievers.toys import hit, save_bert, save_cross_encoder

QUESTIONS = ["who eats fish", "where is the red cat"]
HITS = [
    [hit("1", "the cat eats fish", 9), hit("2", "blue", 8, title="Dog"), hit("3", "red red red dog runs on it", 7)],
    [hit("4", "a dog", 5), hit("5", "green fish sleeps in the blue", 4)],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_cross_encoder(tmp_path_factory.mktemp("ce") / "model", seed=7)


def golden_logits(folder: Path, pairs: list[tuple[str, str]]) -> list[float]:
    """One pair at a time, nothing padded."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return [float(model(**tokenizer(q, p, return_tensors="pt")).logits[0, 0]) for q, p in pairs]


PAIRS = [
    (QUESTIONS[0], "the cat eats fish"),
    (QUESTIONS[0], "Dog blue"),
    (QUESTIONS[0], "red red red dog runs on it"),
    (QUESTIONS[1], "a dog"),
    (QUESTIONS[1], "green fish sleeps in the blue"),
]


@pytest.mark.parametrize("batch_tokens", [1, 30, 10_000])
def test_scores_equal_the_plain_computation(folder: Path, batch_tokens: int) -> None:
    reranker = CrossEncoderReranker(str(folder), dtype="float32", device="cpu", batch_tokens=batch_tokens)
    assert isinstance(reranker, Reranker)
    scores = reranker.score([q for q, _ in PAIRS], [p for _, p in PAIRS])
    np.testing.assert_allclose(scores, golden_logits(folder, PAIRS), atol=1e-5)


def test_scores_equal_sentence_transformers_cross_encoder(folder: Path, tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder

    rival = CrossEncoder(str(folder), device="cpu", activation_fn=torch.nn.Identity())
    expected = rival.predict(PAIRS)
    rival.save_pretrained(str(tmp_path / "saved"))
    reranker = CrossEncoderReranker(str(tmp_path / "saved"), dtype="float32", device="cpu")
    np.testing.assert_allclose(reranker.score([q for q, _ in PAIRS], [p for _, p in PAIRS]), expected, atol=1e-5)


def test_hits_come_in_the_order_of_the_logits_and_keep_the_retrievers_score(folder: Path) -> None:
    reranker = CrossEncoderReranker(str(folder), dtype="float32", device="cpu")
    golden = golden_logits(folder, PAIRS)
    for found, original, logits in zip(
        reranker.rerank(QUESTIONS, HITS, 2), HITS, (golden[:3], golden[3:]), strict=True
    ):
        order = sorted(range(len(original)), key=lambda row: -logits[row])[:2]
        assert [h.passage_id for h in found] == [original[row].passage_id for row in order]
        assert [h.score for h in found] == [original[row].score for row in order]
        assert [h.rerank_score for h in found] == pytest.approx([logits[row] for row in order], abs=1e-5)


def test_the_retrievers_score_can_be_a_part_of_the_re_rank_score(folder: Path) -> None:
    plain = CrossEncoderReranker(str(folder), dtype="float32", device="cpu")
    weighted = CrossEncoderReranker(str(folder), dtype="float32", device="cpu", retrieval_weight=2.0)
    logits = {h.passage_id: h.rerank_score for found in plain.rerank(QUESTIONS, HITS, 9) for h in found}
    for found in weighted.rerank(QUESTIONS, HITS, 9):
        for h in found:
            assert h.rerank_score == pytest.approx(logits[h.passage_id] + 2 * h.score, abs=1e-5)
    heavy = CrossEncoderReranker(str(folder), dtype="float32", device="cpu", retrieval_weight=1e6)
    assert [[h.passage_id for h in found] for found in heavy.rerank(QUESTIONS, HITS, 9)] == [
        ["1", "2", "3"],
        ["4", "5"],
    ]
    assert weighted.fingerprint() != plain.fingerprint()


def test_equal_logits_keep_the_retrievers_order() -> None:
    hits = [[hit("b", "x"), hit("a", "x"), hit("c", "x")]]
    assert [h.passage_id for h in ranked(hits, [1.0, 1.0, 2.0], 3)[0]] == ["c", "b", "a"]


def test_same_input_gives_the_same_output_and_empty_lists_stay_empty(folder: Path) -> None:
    reranker = CrossEncoderReranker(str(folder), dtype="float32", device="cpu")
    first = reranker.rerank([*QUESTIONS, "it"], [*HITS, []], 10)
    assert first == reranker.rerank([*QUESTIONS, "it"], [*HITS, []], 10)
    assert first[2] == []
    assert reranker.rerank([], [], 5) == []


def test_only_the_passage_is_cut_and_counted(folder: Path) -> None:
    reranker = CrossEncoderReranker(str(folder), dtype="float32", device="cpu", max_length=12)
    # [CLS] who eats fish [SEP] ... [SEP] leaves room for six words.
    [score] = reranker.score(["who eats fish"], ["red cat " * 50])
    assert score == pytest.approx(golden_logits(folder, [("who eats fish", "red cat red cat red cat")])[0], abs=1e-5)
    assert reranker.truncated_passages == 1


def test_monstrous_question_leaves_half_of_the_window_to_the_passage(folder: Path) -> None:
    reranker = CrossEncoderReranker(str(folder), dtype="float32", device="cpu", max_length=12)
    [score] = reranker.score(["red " * 250_000], ["the cat"])
    assert score == pytest.approx(golden_logits(folder, [("red " * 6, "the cat")])[0], abs=1e-5)


def test_bf16_weights_with_an_fp32_head(folder: Path) -> None:
    reranker = CrossEncoderReranker(str(folder), dtype="bfloat16", device="cpu")
    scores = reranker.score([q for q, _ in PAIRS], [p for _, p in PAIRS])
    np.testing.assert_allclose(scores, golden_logits(folder, PAIRS), atol=0.2)
    rounded = torch.from_numpy(scores).bfloat16().float().numpy()
    assert (scores != rounded).any()
    full = CrossEncoderReranker(str(folder), dtype="float32", device="cpu")
    assert full.fingerprint() != reranker.fingerprint()
    assert full.fingerprint() == CrossEncoderReranker(str(folder), dtype="float32", device="cpu").fingerprint()


def test_logits_that_are_not_finite_are_refused(folder: Path) -> None:
    reranker = CrossEncoderReranker(str(folder), dtype="float32", device="cpu")
    reranker._model.classifier.bias.data.fill_(float("nan"))
    with pytest.raises(RetrieverError, match="who eats fish"):
        reranker.rerank(QUESTIONS[:1], HITS[:1], 1)


def test_models_that_cannot_rank_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RetrieverError, match="no trained cross-encoder"):
        CrossEncoderReranker(str(save_bert(tmp_path / "bert")), device="cpu")
    with pytest.raises(RetrieverError, match="nowhere"):
        CrossEncoderReranker(str(tmp_path / "nowhere"), device="cpu")
    with pytest.raises(RetrieverError, match="max_length is 33"):
        CrossEncoderReranker(str(folder), device="cpu", max_length=33)


def test_lists_that_are_not_parallel_are_refused(folder: Path) -> None:
    reranker = CrossEncoderReranker(str(folder), device="cpu")
    with pytest.raises(RetrieverError, match="2 queries and 1 lists"):
        reranker.rerank(QUESTIONS, HITS[:1], 1)
    with pytest.raises(RetrieverError, match="k is 0"):
        reranker.rerank(QUESTIONS, HITS, 0)


def test_rider_moves_passages_with_a_predicted_answer_to_the_front() -> None:
    hits: list[list[Hit]] = [[hit("1", "a blue dog"), hit("2", "The Red cat"), hit("3", "dogs"), hit("4", "red, cat!")]]
    rider = RiderReranker({"who": ["red", " "], "what": []})
    [found] = rider.rerank(["who"], hits, 3)
    assert [(h.passage_id, h.rerank_score) for h in found] == [("2", 1), ("4", 1), ("1", 0)]
    assert [h.passage_id for h in rider.rerank(["what"], hits, 4)[0]] == ["1", "2", "3", "4"]
    with pytest.raises(RetrieverError, match="where"):
        rider.rerank(["where"], hits, 3)
    assert rider.fingerprint() != RiderReranker({"who": ["blue"]}).fingerprint()
