"""The versions that a result records, so that a figure can be made again."""

from __future__ import annotations

import platform
from importlib import metadata

_PACKAGES: tuple[str, ...] = (
    *("frozenlm", "torch", "transformers", "tokenizers", "peft", "accelerate", "numpy", "scipy", "ir-measures"),
    *("bm25s", "rank-bm25", "PyStemmer", "sentence-transformers", "faiss-cpu", "faiss-gpu-cu12"),
    *("sacrebleu", "rouge-score"),
)


def versions() -> dict[str, str]:
    """Python and the packages that results depend on, those that are installed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
