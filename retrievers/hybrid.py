"""Several retrievers' lists made one: Spider's linear rule (2112.07708, section 4.3) and weighted reciprocal rank
fusion.

Linear: the best `depth` of every member; a passage's score is the weighted sum of its scores, and where a member's
list lacks it, that list's smallest score stands in. With members dense and bm25 and weights 1 and lambda this is
Spider's `dense + lambda * bm25`. Lambda is tuned on development questions (`tune_lambda`), never on those that are
reported.

Reciprocal rank fusion (Cormack et al. 2009): sum of weight / (rrf_k + rank), rank from 1; a list that lacks the
passage adds nothing.

Our choices: a member that finds nothing for a question adds nothing for it; equal scores are ordered by passage id;
text, title and meta are taken from the first member that has a text. Members that offer `rank(queries, k)` (ids and
scores) and `passage(id)`, as our own do, are not asked for texts that fusion throws away.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from retrievers.check import check_hits, fingerprint_of, name_of
from retrievers.errors import RetrieverError
from retrievers.files import sha256_json
from retrievers.metrics import Matcher, ranking, recall_at_k
from retrievers.types import Hit, Retriever

Rule = Literal["spider", "rrf"]
Scores = dict[str, float]
DEFAULT_GRID = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0)


class HybridRetriever:
    """Asks all members and fuses their lists.

    Args:
        members: name -> retriever; at least two. The order of names is the order in which texts are looked for.
        rule: "spider" (linear) or "rrf".
        weights: name -> weight; None gives every member 1.
        lambda_: with two members, in place of `weights`: the first member weighs 1, the second `lambda_`.
        depth: hits asked of each member, passages a question; at least k are asked for.
        rrf_k: the constant of the rrf rule.

    Raises:
        RetrieverError: an argument out of range or a name that is no member.
    """

    def __init__(
        self,
        members: Mapping[str, Retriever],
        *,
        rule: Rule = "spider",
        weights: Mapping[str, float] | None = None,
        lambda_: float | None = None,
        depth: int = 1000,
        rrf_k: float = 60.0,
    ) -> None:
        if len(members) < 2:
            raise RetrieverError(f"a hybrid needs at least two members, got {list(members)}")
        if rule not in get_args(Rule):
            raise RetrieverError(f"rule is {rule!r}, expected one of {', '.join(get_args(Rule))}")
        if depth < 1 or not (math.isfinite(rrf_k) and rrf_k >= 0):
            raise RetrieverError(f"depth is {depth} and rrf_k {rrf_k}; expected depth >= 1 and rrf_k >= 0")
        self.members = dict(members)
        self.rule = rule
        self.weights = _weights(list(members), weights, lambda_)
        self.depth = depth
        self.rrf_k = rrf_k

    def rank(self, queries: Sequence[str], k: int) -> list[list[tuple[str, float]]]:
        """Ids and fused scores of the best k, without texts."""
        lists = {name: _MemberList(name, member, queries, max(self.depth, k)) for name, member in self.members.items()}
        return [self._fused(lists, number)[:k] for number in range(len(queries))]

    def retrieve(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """At most k hits a query, best first. `meta["member_scores"]` tells what each member that found it gave.

        Raises:
            RetrieverError: k below 1, or a member broke its contract (it is named).
        """
        if k < 1:
            raise RetrieverError(f"k is {k}, expected at least 1")
        lists = {name: _MemberList(name, member, queries, max(self.depth, k)) for name, member in self.members.items()}
        return [
            [self._hit(lists, number, passage_id, score) for passage_id, score in self._fused(lists, number)[:k]]
            for number in range(len(queries))
        ]

    def _fused(self, lists: Mapping[str, _MemberList], number: int) -> list[tuple[str, float]]:
        scores = {name: members.scores[number] for name, members in lists.items()}
        return fuse(scores, weights=self.weights, rule=self.rule, rrf_k=self.rrf_k)

    def _hit(self, lists: Mapping[str, _MemberList], number: int, passage_id: str, score: float) -> Hit:
        found = [hit for hit in (members.hit(number, passage_id) for members in lists.values()) if hit is not None]
        source = next((hit for hit in found if hit.text), found[0])
        given = {
            name: members.scores[number][passage_id]
            for name, members in lists.items()
            if passage_id in members.scores[number]
        }
        return Hit(passage_id, score, source.text, source.title, {**source.meta, "member_scores": given})

    def passage(self, passage_id: str) -> Any:
        """The passage with this id from the first member that can look it up, or None."""
        for member in self.members.values():
            look_up = getattr(member, "passage", None)
            if look_up is not None and (passage := look_up(passage_id)) is not None:
                return passage
        return None

    def fingerprint(self) -> str | None:
        """Over the rule, its numbers and the members' fingerprints; None where a member has none."""
        marks = {name: fingerprint_of(member) for name, member in self.members.items()}
        if None in marks.values():
            return None
        order = list(self.members)
        return sha256_json(["hybrid", self.rule, self.weights, order, self.depth, self.rrf_k, marks])

    def close(self) -> None:
        """Close every member that can be closed."""
        for member in self.members.values():
            close = getattr(member, "close", None)
            if close is not None:
                close()


class _MemberList:
    """What one member found for all queries: scores by id, best first, and a way to each hit's text."""

    def __init__(self, name: str, member: Retriever, queries: Sequence[str], depth: int) -> None:
        self._look_up: Callable[[str], Any] | None = None
        self._hits: list[dict[str, Hit]] = []
        who = f"hybrid member {name!r} ({name_of(member)})"
        if callable(getattr(member, "rank", None)) and callable(getattr(member, "passage", None)):
            self._look_up = member.passage  # type: ignore[attr-defined]
            pairs = member.rank(queries, depth)  # type: ignore[attr-defined]
            hits = [[Hit(passage_id, score, "") for passage_id, score in found] for found in pairs]
            check_hits(who, queries, hits, depth)
            self.scores: list[Scores] = [dict(found) for found in pairs]
        else:
            given = member.retrieve(queries, depth)
            check_hits(who, queries, given, depth)
            self._hits = [{hit.passage_id: hit for hit in found} for found in given]
            self.scores = [{hit.passage_id: float(hit.score) for hit in found} for found in given]

    def hit(self, number: int, passage_id: str) -> Hit | None:
        if self._look_up is None:
            return self._hits[number].get(passage_id)
        if passage_id not in self.scores[number]:
            return None
        passage = self._look_up(passage_id)
        return None if passage is None else Hit(passage.id, 0.0, passage.text, passage.title, passage.meta)


def fuse(
    scores: Mapping[str, Scores], *, weights: Mapping[str, float], rule: Rule = "spider", rrf_k: float = 60.0
) -> list[tuple[str, float]]:
    """Fuse one question's lists.

    Args:
        scores: member -> passage id -> score; each list in the member's order, best first.
        weights: member -> weight.

    Returns:
        every passage of every list with its fused score, ordered by (-score, id).
    """
    total: Scores = dict.fromkeys((passage for found in scores.values() for passage in found), 0.0)
    for name, found in scores.items():
        if not found:
            continue
        weight = weights[name]
        if rule == "spider":
            smallest = min(found.values())
            for passage in total:
                total[passage] += weight * found.get(passage, smallest)
        else:
            for rank, passage in enumerate(found, start=1):
                total[passage] += weight / (rrf_k + rank)
    return sorted(total.items(), key=lambda item: (-item[1], item[0]))


def _weights(names: list[str], weights: Mapping[str, float] | None, lambda_: float | None) -> dict[str, float]:
    if lambda_ is not None:
        if weights is not None or len(names) != 2:
            raise RetrieverError(
                f"lambda_ is for two members and without weights; got members {names}, weights {weights}"
            )
        weights = {names[0]: 1.0, names[1]: lambda_}
    chosen = {name: float((weights or {}).get(name, 1.0)) for name in names}
    unknown = set(weights or {}) - set(names)
    if unknown:
        raise RetrieverError(f"weights for {sorted(unknown)}, which are no members; members are {names}")
    if not all(math.isfinite(weight) and weight >= 0 for weight in chosen.values()) or not any(chosen.values()):
        raise RetrieverError(f"weights are {chosen}; expected finite numbers of at least 0, not all 0")
    return chosen


@dataclass(frozen=True)
class LambdaChoice:
    """What tuning found: the best lambda (the smallest of equals) and the measure for each one tried."""

    best: float
    measure: str
    table: tuple[tuple[float, float], ...]
    questions: int


def tune_lambda(
    members: Mapping[str, Retriever],
    queries: Sequence[str],
    *,
    answers: Sequence[Sequence[str]] | None = None,
    qrels: Sequence[Mapping[str, int]] | None = None,
    grid: Iterable[float] = DEFAULT_GRID,
    k: int = 20,
    depth: int = 1000,
    matcher: Matcher = "dpr",
) -> LambdaChoice:
    """Choose lambda of Spider's rule on development questions. Never use the questions that will be reported.

    Args:
        members: two; the first weighs 1, the second lambda.
        queries: development questions.
        answers: gold answers a question: recall@k by `matcher` is maximised; or
        qrels: passage id -> relevance a question: nDCG@k is maximised.
        grid: values to try.
        k: of the measure.
        depth: hits asked of each member; each is asked once, whatever the grid's size.

    Raises:
        RetrieverError: not two members, neither or both of answers and qrels, wrong lengths, an empty grid.
    """
    gold = answers if answers is not None else qrels
    values = sorted(set(grid))
    if len(members) != 2 or not values or not queries:
        raise RetrieverError("tuning lambda needs two members, some questions and a grid that is not empty")
    if gold is None or (answers is not None and qrels is not None) or len(gold) != len(queries):
        raise RetrieverError("tuning lambda needs answers or qrels, not both, one entry a question")
    lists = {name: _MemberList(name, member, queries, max(depth, k)) for name, member in members.items()}
    names = list(members)
    table = []
    for value in values:
        weights = {names[0]: 1.0, names[1]: float(value)}
        best = [
            fuse({name: lists[name].scores[number] for name in names}, weights=weights)[:k]
            for number in range(len(queries))
        ]
        if qrels is not None:
            run = {str(number): [passage for passage, _ in found] for number, found in enumerate(best)}
            judged = {str(number): relevant for number, relevant in enumerate(qrels)}
            table.append((value, ranking(judged, run, [f"nDCG@{k}"])[f"nDCG@{k}"]))
        else:
            hits = [[_text_hit(lists, number, passage) for passage, _ in found] for number, found in enumerate(best)]
            table.append((value, recall_at_k(hits, answers or [], [k], matcher=matcher)[k]))
    winner = max(table, key=lambda row: row[1])
    return LambdaChoice(winner[0], f"nDCG@{k}" if qrels is not None else f"recall@{k}", tuple(table), len(queries))


def _text_hit(lists: Mapping[str, _MemberList], number: int, passage_id: str) -> Hit:
    found = [hit for hit in (members.hit(number, passage_id) for members in lists.values()) if hit is not None]
    return next((hit for hit in found if hit.text), found[0])
