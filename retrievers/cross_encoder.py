"""A cross-encoder reads question and passage together and gives one number: loading, tokenising, scoring, saving.

Training (`retrievers.rerank_training`) and serving (`retrievers.rerank`) share this file, so a pair is tokenised the
same way in both. Only the passage side is ever cut; a question that alone takes more than half of the window is cut to
half of it, so that every passage has room.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrievers.compute import load_failures, no_loading_noise, require, resolve_model
from retrievers.errors import RetrieverError
from retrievers.files import FolderBuild, write_json
from retrievers.manifest import MANIFEST, Manifest

if TYPE_CHECKING:
    import torch

KIND = "cross_encoder"


@dataclass(frozen=True)
class Pairs:
    """Tokenised pairs. `features`: one mapping a pair (input_ids, attention_mask, ...); `truncated`: passages cut."""

    features: list[dict[str, list[int]]]
    truncated: int

    @property
    def lengths(self) -> list[int]:
        """Tokens of each pair."""
        return [len(feature["input_ids"]) for feature in self.features]


def load_cross_encoder(
    model: str | Path, *, revision: str | None = None, new_head_seed: int | None = None
) -> tuple[Any, Any]:
    """A sequence-classification model with its tokenizer, in fp32 on the CPU, in eval mode.

    Args:
        model: folder (ours, transformers' or sentence-transformers') or hub id.
        revision: hub revision.
        new_head_seed: for training: a model without a head for one output gets a new one, drawn with this seed. None
            refuses such a model, since a random head ranks at random.

    Raises:
        RetrieverError: it cannot be loaded, has no trained head, or does not give one output (or two: the second minus
            the first is then the score).
        IndexMismatchError: a folder of ours that is damaged.
    """
    torch, transformers = require("torch"), require("transformers")
    source = resolve_model(str(model))
    if (Path(source) / MANIFEST).is_file():
        Manifest.open(Path(source), kind=KIND, full=True)
    options = {} if new_head_seed is None else {"num_labels": 1, "ignore_mismatched_sizes": True}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, revision=revision)
        with torch.random.fork_rng(devices=[]), no_loading_noise():
            torch.manual_seed(new_head_seed or 0)
            loaded, info = transformers.AutoModelForSequenceClassification.from_pretrained(
                source, revision=revision, dtype=torch.float32, output_loading_info=True, **options
            )
    except load_failures() as error:
        raise RetrieverError(f"cannot load {model!r} as a sequence-classification model: {error}") from error
    if new_head_seed is None and info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise RetrieverError(
            f"{model!r} is no trained cross-encoder: its weights lack {missing}. Train one on it first "
            "(frozenlm train configs/reranker.yaml), or name a model that was trained to rank."
        )
    if loaded.config.num_labels not in (1, 2):
        raise RetrieverError(f"{model!r} has {loaded.config.num_labels} outputs; a re-ranker has 1 (or 2).")
    if not tokenizer.is_fast:
        raise RetrieverError(f"{model!r} has no fast tokenizer; save it with its tokenizer.json.")
    return loaded.eval(), tokenizer


def window_of(model: Any, tokenizer: Any, max_length: int | None) -> int:
    """Tokens a pair: `max_length`, or the model's own positions, at most 512.

    Raises:
        RetrieverError: `max_length` is beyond the model's positions or too small for a pair.
    """
    positions = getattr(model.config, "max_position_embeddings", None) or 512
    own = min(512, positions, tokenizer.model_max_length)
    if max_length is None:
        return int(own)
    if not 8 <= max_length <= positions:
        raise RetrieverError(f"max_length is {max_length}; this model takes pairs of 8 to {positions} tokens.")
    return max_length


def tokenize_pairs(tokenizer: Any, questions: Sequence[str], passages: Sequence[str], *, window: int) -> Pairs:
    """Parallel questions and passages to features of at most `window` tokens, unpadded."""
    if not questions:
        return Pairs([], 0)
    short = {question: _cut_question(tokenizer, question, window // 2) for question in set(questions)}
    encoded = tokenizer(
        [short[question] for question in questions], list(passages), truncation="only_second", max_length=window
    )
    names = list(encoded.keys())
    features = [{name: list(encoded[name][row]) for name in names} for row in range(len(questions))]
    return Pairs(features, sum(bool(encoding.overflowing) for encoding in encoded.encodings))


def pair_logits(
    model: Any, tokenizer: Any, features: Sequence[Mapping[str, list[int]]], device: torch.device
) -> torch.Tensor:
    """fp32 scores [N] of a batch of tokenised pairs, padded together; no sigmoid, which would saturate."""
    batch = tokenizer.pad([dict(feature) for feature in features], return_tensors="pt").to(device)
    logits = model(**batch).logits.float()
    scores: torch.Tensor = logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]
    return scores


def save_cross_encoder(
    model: Any, tokenizer: Any, folder: str | Path, card: Mapping[str, Any], *, overwrite: bool = False
) -> Manifest:
    """Write a cross-encoder as a plain transformers folder with a card and a manifest, whole or not at all.

    Args:
        card: how it was made, JSON-able; goes to `card.json` and into the manifest.
        overwrite: replace a folder of this name.

    Raises:
        RetrieverError: the folder exists or cannot be written.
    """
    with FolderBuild(folder, spec={"card": dict(card)}, overwrite=overwrite) as build:
        with no_loading_noise():
            model.save_pretrained(build.folder)
        tokenizer.save_pretrained(build.folder)
        write_json(build.folder / "card.json", dict(card))
        manifest = Manifest.write(build.folder, kind=KIND, spec={"card": dict(card)}, counts={})
        build.finish()
    return manifest


def _cut_question(tokenizer: Any, question: str, most: int) -> str:
    encoded = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    offsets = encoded["offset_mapping"]
    return question if len(offsets) <= most else question[: offsets[most - 1][1]]
