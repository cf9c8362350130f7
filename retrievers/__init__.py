"""A question to ranked passages. Importing this package needs neither torch nor faiss.

What a plug-in author needs is here; everything else is imported from its module: `retrievers.bm25`, `retrievers.dense`,
`retrievers.hybrid`, `retrievers.rerank`, `retrievers.corpus`, `retrievers.metrics`, `retrievers.runs`, ...
"""

from retrievers.check import check_hits, check_reranked, check_retriever
from retrievers.errors import CorpusError, IndexMismatchError, MissingExtraError, RetrievalError, RetrieverError
from retrievers.types import Hit, Passage, Reranker, Retriever, TextScorer

__all__ = [
    "CorpusError",
    "Hit",
    "IndexMismatchError",
    "MissingExtraError",
    "Passage",
    "Reranker",
    "RetrievalError",
    "Retriever",
    "RetrieverError",
    "TextScorer",
    "check_hits",
    "check_reranked",
    "check_retriever",
]
