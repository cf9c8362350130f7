"""Every promise a retriever can break is found, and the plug-in is named."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from retrievers.check import check_hits, check_reranked, check_retriever, fingerprint_of, name_of
from retrievers.errors import RetrieverError
from retrievers.types import Hit

GOOD = [Hit("a", 2.0, "text a"), Hit("b", 2.0, "text b"), Hit("c", -1.0, "text c")]


class Plugin:
    """Answers every question alike."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def retrieve(self, queries: Sequence[str], k: int) -> Any:
        return self.answer(queries, k) if callable(self.answer) else [self.answer[:k] for _ in queries]


def test_a_good_one_passes() -> None:
    check_retriever(Plugin(GOOD))
    check_retriever(Plugin([]))
    check_retriever(Plugin(lambda queries, k: tuple(tuple(GOOD[:k]) for _ in queries)))


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda queries, k: None, "returned a NoneType"),
        (lambda queries, k: "ab", "returned a str"),
        (lambda queries, k: [GOOD[:k]], "1 lists for 2 queries"),
        (lambda queries, k: [GOOD for _ in queries], "3 hits, expected at most 1"),
        (lambda queries, k: [None for _ in queries], "got a NoneType, expected a list"),
        (lambda queries, k: [[("a", 1.0)] for _ in queries], "got a tuple, expected a retrievers.Hit"),
        (lambda queries, k: 1 / 0, "ZeroDivisionError"),
        ([Hit(3, 1.0, "")], "passage_id is 3"),  # type: ignore[arg-type]
        ([Hit("", 1.0, "")], "passage_id is ''"),
        ([Hit("a", float("nan"), "")], "score is nan"),
        ([Hit("a", float("inf"), "")], "score is inf"),
        ([Hit("a", "1.0", "")], "score is '1.0'"),  # type: ignore[arg-type]
        ([Hit("a", np.float32(1), "")], "float32"),  # type: ignore[arg-type]
        ([Hit("a", True, "")], "score is True"),
        ([Hit("a", 1.0, None)], "text and title"),  # type: ignore[arg-type]
        ([Hit("a", 1.0, ""), Hit("b", 2.0, "")], "rises from 1.0 to 2.0 at hit 1"),
        ([Hit("a", 1.0, ""), Hit("a", 1.0, "")], "'a' occurs twice"),
        ([Hit("a", 1.0, "").with_rerank_score(float("nan"))], "re-rank score is nan"),
    ],
)
def test_each_broken_promise_is_named(answer: Callable[..., Any], told: str) -> None:
    with pytest.raises(RetrieverError, match=told) as caught:
        check_retriever(Plugin(answer))
    assert str(caught.value).startswith(f"{Plugin.__module__}.Plugin: ")


def test_what_is_no_retriever() -> None:
    with pytest.raises(RetrieverError, match="no method retrieve"):
        check_retriever(object())
    with pytest.raises(RetrieverError, match="the class itself"):
        check_retriever(Plugin)
    broken = Plugin(GOOD)
    broken.close = "not callable"  # type: ignore[attr-defined]
    with pytest.raises(RetrieverError, match="no method close"):
        check_retriever(broken)


def test_fingerprints() -> None:
    plugin = Plugin(GOOD)
    assert fingerprint_of(plugin) is None
    plugin.fingerprint = lambda: "abc"  # type: ignore[attr-defined]
    assert fingerprint_of(plugin) == "abc"
    for wrong in ("", 3):
        plugin.fingerprint = lambda wrong=wrong: wrong  # type: ignore[attr-defined]
        with pytest.raises(RetrieverError, match="fingerprint"):
            check_retriever(plugin)
    assert name_of(plugin) == name_of(Plugin) == f"{__name__}.Plugin"


def test_a_reranked_list_is_judged_by_its_new_scores() -> None:
    before = [[Hit("a", 2.0, ""), Hit("b", 1.0, "")]]
    after = [[before[0][1].with_rerank_score(9.0), before[0][0].with_rerank_score(3.0)]]
    check_hits("r", ["q"], after, 2)
    check_reranked("r", ["q"], before, after, 2)
    with pytest.raises(RetrieverError, match="was not among the hits"):
        check_reranked("r", ["q"], [before[0][:1]], after, 2)
    with pytest.raises(RetrieverError, match="'a' has no re-rank score"):
        check_reranked("r", ["q"], before, [before[0][:1]], 2)
    with pytest.raises(RetrieverError, match=r"rises from 3\.0 to 9\.0"):
        check_hits("r", ["q"], [after[0][::-1]], 2)


def test_importing_the_package_and_its_light_modules_loads_nothing_heavy() -> None:
    code = (
        "import sys, retrievers\n"
        "from retrievers import bm25, cache, corpus, hybrid, manifest, metrics, passages, runs\n"
        "heavy = {'torch', 'faiss', 'numba', 'bm25s', 'sentence_transformers', 'transformers', 'datasets'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
