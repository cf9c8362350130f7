"""One root for the user of a pipeline: everything that a pipeline raises is a `FrozenLMError`.

The pillars never import each other, so the retrieval errors have a root of their own. Where the roof calls into
`retrievers` it does
so inside `retrieval_errors()`, which raises the same error again as a class that is both.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import retrievers.errors as _retrieval
from frozenlm.errors import (
    CheckpointError,
    ConfigError,
    DivergedError,
    FrozenLMError,
    FrozenViolationError,
    MissingExtraError,
    ShapeError,
)


class RetrieverError(FrozenLMError, _retrieval.RetrieverError):
    """`retrievers.errors.RetrieverError`, seen from a pipeline."""


class CorpusError(FrozenLMError, _retrieval.CorpusError):
    """`retrievers.errors.CorpusError`, seen from a pipeline."""


class IndexMismatchError(FrozenLMError, _retrieval.IndexMismatchError):
    """`retrievers.errors.IndexMismatchError`, seen from a pipeline."""


class RetrievalExtraError(MissingExtraError, _retrieval.MissingExtraError):
    """`retrievers.errors.MissingExtraError`, seen from a pipeline."""


_AS_SEEN_HERE: dict[type[_retrieval.RetrievalError], type[FrozenLMError]] = {
    _retrieval.RetrieverError: RetrieverError,
    _retrieval.CorpusError: CorpusError,
    _retrieval.IndexMismatchError: IndexMismatchError,
    _retrieval.MissingExtraError: RetrievalExtraError,
}


@contextmanager
def retrieval_errors() -> Iterator[None]:
    """Raise an error of the retrieval pillar as the `FrozenLMError` of the same name; the original stays as its
    cause."""
    try:
        yield
    except FrozenLMError:
        raise
    except _retrieval.RetrievalError as error:
        raise _AS_SEEN_HERE.get(type(error), RetrieverError)(str(error)) from error


__all__ = [
    "CheckpointError",
    "ConfigError",
    "CorpusError",
    "DivergedError",
    "FrozenLMError",
    "FrozenViolationError",
    "IndexMismatchError",
    "MissingExtraError",
    "RetrievalExtraError",
    "RetrieverError",
    "ShapeError",
    "retrieval_errors",
]
