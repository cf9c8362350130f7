"""What can go wrong between a question and its passages. This package stands alone, so its errors have a root of
their own; `pipelines.errors` raises each of them as a `FrozenLMError` too."""


class RetrievalError(Exception):
    """Root of all errors of this package."""


class RetrieverError(RetrievalError):
    """A retriever or re-ranker broke its contract, or was asked for something that it cannot do."""


class CorpusError(RetrievalError):
    """A corpus file is missing, empty, malformed or has duplicate passage ids."""


class IndexMismatchError(RetrievalError):
    """An index is damaged, incomplete, or was built by another encoder, tokenizer or corpus than the one asked for."""


class MissingExtraError(RetrievalError):
    """An optional dependency is not installed; the message names the extra that brings it."""
