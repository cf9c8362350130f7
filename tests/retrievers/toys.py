"""Toy retrieval models, made from a seed in a moment, and an encoder whose vectors can be done in the head."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from retrievers.types import Hit, Passage

WORDS = [
    *[
        "red",
        "green",
        "blue",
        "cat",
        "dog",
        "fish",
        "runs",
        "sleeps",
        "eats",
        "the",
        "a",
        "of",
        "in",
        "on",
        "who",
        "what",
        "where",
        "is",
        "it",
    ],
    "'",
    ",",
]
LETTERS = "abcd"


class LetterEncoder:
    """A text's vector counts its letters a, b, c, d; `scale` makes it another encoder."""

    dim = len(LETTERS)

    def __init__(self, *, scale: float = 1.0, fail_after: int | None = None) -> None:
        self.scale = scale
        self.fail_after = fail_after
        self.calls = 0
        self.truncated_passages = 0

    def encode_queries(self, queries: Sequence[str]) -> np.ndarray:
        return np.array([[self.scale * q.count(c) for c in LETTERS] for q in queries], dtype=np.float32)

    def encode_passages(self, passages: Sequence[Passage]) -> np.ndarray:
        self.calls += 1
        if self.fail_after is not None and self.calls > self.fail_after:
            raise KeyboardInterrupt
        self.truncated_passages += sum(len(p.text) > 8 for p in passages)
        return self.encode_queries([p.text for p in passages])

    def fingerprint(self) -> str:
        return f"letters:{self.scale}"


class RandomEncoder:
    """Unit vectors drawn from a text's own bytes: unrelated, but the same every time."""

    def __init__(self, dim: int = 16) -> None:
        self.dim = dim

    def encode_queries(self, queries: Sequence[str]) -> np.ndarray:
        rows = [np.random.default_rng(list(q.encode())).standard_normal(self.dim) for q in queries]
        vectors = np.array(rows, dtype=np.float32).reshape(len(queries), self.dim)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def encode_passages(self, passages: Sequence[Passage]) -> np.ndarray:
        return self.encode_queries([p.text for p in passages])

    def fingerprint(self) -> str:
        return f"random:{self.dim}"


def hit(passage_id: str, text: str, score: float = 0.0, title: str = "") -> Hit:
    return Hit(passage_id, score, text, title)


def save_tokenizer(folder: Path) -> None:
    """A lower-casing WordPiece tokenizer over `WORDS`, with BERT's special tokens."""
    from transformers import BertTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    BertTokenizerFast(vocab=str(vocabulary), do_lower_case=True, model_max_length=32).save_pretrained(folder)


def toy_config(**changes: object) -> dict[str, object]:
    sizes = {
        "vocab_size": 5 + len(WORDS),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 32,
        # Large enough that a wrong token type or a shifted position shows.
        "initializer_range": 0.5,
        "attention_probs_dropout_prob": 0.0,
        "hidden_dropout_prob": 0.0,
    }
    return {**sizes, **changes}


def save_bert(folder: Path, *, seed: int = 0) -> Path:
    """A plain toy BERT with its tokenizer."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    BertModel(BertConfig(**toy_config())).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_sentence_transformer(folder: Path, *, seed: int = 0, normalize: bool = True) -> Path:
    """The toy BERT as a sentence-transformers folder: mean pooling, then unit vectors."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling, Transformer

    plain = save_bert(folder.with_name(folder.name + "-bert"), seed=seed)
    body = Transformer(str(plain))
    parts = [body, Pooling(16, "mean"), *([Normalize()] if normalize else [])]
    SentenceTransformer(modules=parts, device="cpu").save(str(folder), create_model_card=False)
    return folder


def save_dpr(folder: Path, side: str, *, seed: int = 0) -> Path:
    """A toy DPR `question` or `context` encoder with its tokenizer."""
    import torch
    from transformers import DPRConfig, DPRContextEncoder, DPRQuestionEncoder

    torch.manual_seed(seed)
    kind = {"question": DPRQuestionEncoder, "context": DPRContextEncoder}[side]
    kind(DPRConfig(**toy_config())).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_cross_encoder(folder: Path, *, seed: int = 0) -> Path:
    """A toy BERT with one output for a pair of texts."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(seed)
    BertForSequenceClassification(BertConfig(**toy_config(num_labels=1))).save_pretrained(folder)
    save_tokenizer(folder)
    return folder
