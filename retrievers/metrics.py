"""Was the answer found? DPR's has_answer and recall@k, and ranking measures with qrels.

DPR (2004.04906): text and answer are put in Unicode form NFD, cut into runs of letters, digits and marks and single
other visible characters, and lower-cased; the answer's tokens must be a contiguous part of the passage's *text*, its
title does not count. Articles and punctuation stay. The second matcher, `substring`, is SQuAD's normalisation and a
plain sub-string test, for comparison with toolkits that count so; a result must say which one made it.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Literal, get_args

import regex

from retrievers.errors import RetrieverError
from retrievers.types import Hit

Matcher = Literal["dpr", "substring"]
DEFAULT_KS = (1, 5, 20, 100)
DEFAULT_MEASURES = ("nDCG@10", "RR", "AP", "R@100")

_TOKEN = regex.compile(r"([\p{L}\p{N}\p{M}]+)|([^\p{Z}\p{C}])")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def dpr_tokens(text: str) -> list[str]:
    """DPR's uncased tokens: NFD; runs of letters, digits and marks, or one other visible character; lower-cased."""
    return [match.group().lower() for match in _TOKEN.finditer(unicodedata.normalize("NFD", text))]


def squad_normalized(text: str) -> str:
    """SQuAD's normalisation: lower case, ASCII punctuation deleted, articles out, white space squeezed."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


# The same passages are found by many questions of one evaluation; 32,768 of them are some 30 MB.
@lru_cache(maxsize=32_768)
def _dpr_form(text: str) -> str:
    # No token holds a space, so "contiguous sub-list" is "sub-string between spaces", and that runs in C.
    return f" {' '.join(dpr_tokens(text))} "


_FORMS: dict[str, Callable[[str], str]] = {"dpr": _dpr_form, "substring": squad_normalized}


def _form(matcher: str) -> Callable[[str], str]:
    if matcher not in _FORMS:
        raise RetrieverError(f"matcher is {matcher!r}, expected one of {', '.join(get_args(Matcher))}")
    return _FORMS[matcher]


def _answer_forms(answers: Sequence[str], matcher: str) -> list[str]:
    """The answers in the matcher's form.

    Raises:
        RetrieverError: no answer, or one that has nothing left and so would be found everywhere.
    """
    if isinstance(answers, str) or not answers:
        raise RetrieverError(f"answers is {answers!r}, expected a list with at least one gold answer")
    forms = [_form(matcher)(answer) for answer in answers]
    for answer, form in zip(answers, forms, strict=True):
        if not form.strip():
            raise RetrieverError(
                f"gold answer {answer!r} is empty for the matcher {matcher!r} and would match everything"
            )
    return forms


def has_answer(text: str, answers: Sequence[str], *, matcher: Matcher = "dpr") -> bool:
    """Whether one of the gold answers is in the text.

    Raises:
        RetrieverError: no answer, an empty one, or an unknown matcher.
    """
    form = _form(matcher)(text)
    return any(answer in form for answer in _answer_forms(answers, matcher))


def first_answer_places(
    results: Sequence[Sequence[Hit]], answers: Sequence[Sequence[str]], *, matcher: Matcher = "dpr"
) -> list[int | None]:
    """For each question the place (from 0) of the first hit whose text has an answer, or None. Titles do not count.

    A passage that many questions find is tokenised once, as long as it is among the last 32,768.

    Raises:
        RetrieverError: lists of different lengths, a question without answers, an empty answer, an unknown matcher.
    """
    if len(results) != len(answers):
        raise RetrieverError(f"{len(results)} result lists for {len(answers)} questions' answers; expected as many")
    form = _form(matcher)
    places: list[int | None] = []
    for found, gold in zip(results, answers, strict=True):
        wanted = _answer_forms(gold, matcher)
        place = None
        for number, hit in enumerate(found):
            text = form(hit.text)
            if any(answer in text for answer in wanted):
                place = number
                break
        places.append(place)
    return places


def recall_at_k(
    results: Sequence[Sequence[Hit]],
    answers: Sequence[Sequence[str]],
    ks: Sequence[int] = DEFAULT_KS,
    *,
    matcher: Matcher = "dpr",
) -> dict[int, float]:
    """Share (0 to 1) of questions with an answer in the text of one of their first k hits, for each k.

    A question with fewer than k hits is judged by those that it has.

    Raises:
        RetrieverError: no question, k below 1, or as `first_answer_places`.
    """
    places = first_answer_places(results, answers, matcher=matcher)
    if not places:
        raise RetrieverError("recall of no question at all is not defined; pass at least one")
    if any(k < 1 for k in ks):
        raise RetrieverError(f"ks is {list(ks)}, expected numbers of at least 1")
    return {k: sum(place is not None and place < k for place in places) / len(places) for k in ks}


def ranking(
    qrels: Mapping[str, Mapping[str, int]],
    run: Mapping[str, Iterable[Hit | str]],
    measures: Sequence[str] = DEFAULT_MEASURES,
) -> dict[str, float]:
    """Means of ranking measures over all questions of `qrels`, through ir-measures.

    The order of each list is the ranking; scores are not looked at, so ties stay as they were broken and a re-ranked
    list counts in its new order. A question of `qrels` that the run lacks counts as zero; one that has no qrels is
    left out.

    Args:
        qrels: question id -> passage id -> relevance.
        run: question id -> hits or passage ids, best first.
        measures: names as ir-measures writes them: nDCG@10, RR, RR@10, AP, R@100, P@5, ...

    Returns:
        measure -> mean, between 0 and 1.

    Raises:
        RetrieverError: an unknown measure, or no question with qrels.
    """
    per_question = ranking_per_question(qrels, run, measures)
    return {name: sum(values.values()) / len(values) for name, values in per_question.items()}


def ranking_per_question(
    qrels: Mapping[str, Mapping[str, int]],
    run: Mapping[str, Iterable[Hit | str]],
    measures: Sequence[str] = DEFAULT_MEASURES,
) -> dict[str, dict[str, float]]:
    """As `ranking`, question by question: measure -> question id -> value. This is what paired tests compare."""
    import ir_measures

    if not qrels:
        raise RetrieverError("qrels is empty; nothing can be measured")
    parsed = {}
    for name in measures:
        try:
            parsed[ir_measures.parse_measure(name)] = name
        except (NameError, ValueError, SyntaxError) as error:
            raise RetrieverError(
                f"measure {name!r} is unknown to ir-measures ({error}); try nDCG@10, RR, AP, R@100"
            ) from error
    judged = [
        ir_measures.Qrel(question, passage, int(relevance))
        for question, passages in qrels.items()
        for passage, relevance in passages.items()
    ]
    ranked = [
        ir_measures.ScoredDoc(question, passage if isinstance(passage, str) else passage.passage_id, -float(place))
        for question, passages in run.items()
        if question in qrels
        for place, passage in enumerate(passages)
    ]
    values = {name: dict.fromkeys(qrels, 0.0) for name in measures}
    if ranked:
        for metric in ir_measures.iter_calc(list(parsed), judged, ranked):
            if metric.query_id in qrels:
                values[parsed[metric.measure]][metric.query_id] = float(metric.value)
    return values
