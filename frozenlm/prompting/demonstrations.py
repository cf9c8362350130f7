"""Demonstrations for in-context learning (Brown et al. 2020, arXiv 2005.14165): solved records before the question.

Which ones:

    random     a seeded draw, the same for all questions
    nearest    those whose vectors have the largest cosine with the question's (Liu et al. 2022, arXiv 2101.06804)
    diverse    each as far as can be from those before it (k-center, greedy); the same for all questions, seeded start

A demonstration is never the question itself: records with its id, and records whose fields read the same but for case
and white space, are passed over. `order` says where the best stands; next to the question by default, since later
demonstrations weigh more (Lu et al. 2022, arXiv 2104.08786). Where the tokens do not suffice, whole demonstrations are
dropped, the worst first, and counted; the question is never cut for their sake. `over_budget="error"` refuses such a
question instead, and what would leave every question without any is refused in either case (`check_shown`). Soft slots
are left out of them.

Demonstrations are tokenised apart from the question, so that what several questions share is the same tokens and is
read once (`scoring.py`).
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from frozenlm.errors import ConfigError
from frozenlm.prompting.filled import Filled, PromptHost
from frozenlm.prompting.scoring import LabelWords
from frozenlm.prompting.template import Template
from frozenlm.rows import Tokens

Choice = Literal["random", "nearest", "diverse"]
Order = Literal["best_last", "best_first"]
OverBudget = Literal["drop", "error"]
Embed = Callable[[Sequence[str]], Tensor]
"""n texts -> [n, E] vectors; `FrozenEncoder.vectors` is one."""
EMBED_BATCH = 64


class Demonstrations:
    """A pool of solved records to draw from.

    records: with the template's fields and a label; an `id` where they have one
    k: how many in front of a question
    choose, order: see above; random and diverse demonstrations are ordered by when they were drawn
    embed: texts -> vectors, for nearest and diverse
    label: the field that holds the label
    separator: text after each
    budget: the most tokens of all of them; None for what the window leaves
    over_budget: what is done where they do not fit, see above
    seed: of the draw

    Raises: ConfigError for an empty pool, k below 1, an unknown choice, order or over_budget, or no `embed` where it is
        needed.
    """

    def __init__(
        self,
        records: Sequence[Mapping[str, Any]],
        *,
        k: int = 4,
        choose: Choice = "random",
        order: Order = "best_last",
        embed: Embed | None = None,
        label: str = "label",
        separator: str = "\n\n",
        budget: int | None = None,
        over_budget: OverBudget = "drop",
        seed: int = 0,
    ) -> None:
        if not records or k < 1 or (budget is not None and budget < 0):
            raise ConfigError(
                f"demonstrations: {len(records)} records, k {k}, budget {budget}; expected 1, 1, 0 or more"
            )
        if choose not in get_args(Choice) or order not in get_args(Order):
            raise ConfigError(
                f"demonstrations: choose {choose!r}, order {order!r}; expected one of {get_args(Choice)} and of "
                f"{get_args(Order)}"
            )
        if over_budget not in get_args(OverBudget):
            raise ConfigError(f"demonstrations: over_budget {over_budget!r}; expected one of {get_args(OverBudget)}")
        if choose != "random" and embed is None:
            raise ConfigError(f"demonstrations: choose={choose!r} needs embed, such as FrozenEncoder.vectors")
        self.records, self.k, self.choose, self.order, self.embed = list(records), k, choose, order, embed
        self.label, self.separator, self.budget, self.seed = label, separator, budget, seed
        self.over_budget = over_budget
        self._vectors: dict[tuple[str, ...], Tensor] = {}

    def chosen(self, queries: Sequence[Mapping[str, Any]], template: Template) -> list[list[int]]:
        """For each query the places in `records` of at most k demonstrations, the best first; fewer where the pool is
        small."""
        if not queries:
            return []
        texts = [_text(record, template) for record in self.records]
        asked = [_text(query, template) for query in queries]
        if self.choose == "nearest":
            scores = self._embedded(asked) @ self._pool(texts, template).T
            rankings = scores.argsort(dim=1, descending=True, stable=True).tolist()
        else:
            rankings = [self._fixed(texts, template)] * len(queries)
        return [
            list(islice((i for i in ranked if not self._same(i, texts, query, text)), self.k))
            for ranked, query, text in zip(rankings, queries, asked, strict=True)
        ]

    def shown(self, host: PromptHost, template: Template, verbalizer: LabelWords) -> "Shown":
        """The pool as tokens of a host."""
        return Shown(self, host, template, verbalizer)

    def _same(self, place: int, texts: Sequence[str], query: Mapping[str, Any], text: str) -> bool:
        id_ = query.get("id")
        return _plain(texts[place]) == _plain(text) or (id_ is not None and self.records[place].get("id") == id_)

    def _fixed(self, texts: Sequence[str], template: Template) -> list[int]:
        """One ranking for all queries, long enough that k are left when a query's own records are passed over."""
        order = list(range(len(texts)))
        random.Random(self.seed).shuffle(order)
        return order if self.choose == "random" else _spread(self._pool(texts, template), order, self.k)

    def _pool(self, texts: Sequence[str], template: Template) -> Tensor:
        if template.fields not in self._vectors:
            self._vectors[template.fields] = self._embedded(texts)
        return self._vectors[template.fields]

    def _embedded(self, texts: Sequence[str]) -> Tensor:
        """[n, E] of length one.

        Raises: ConfigError when there is no `embed`, or it gives something else than a finite vector a text.
        """
        if self.embed is None:
            raise ConfigError("demonstrations: nearest and diverse need embed, such as FrozenEncoder.vectors")
        parts = [self.embed(texts[at : at + EMBED_BATCH]) for at in range(0, len(texts), EMBED_BATCH)]
        if not parts:
            return torch.empty(0, 0)
        shapes = [tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in parts]
        joined = torch.cat(parts).float() if all(len(shape) == 2 for shape in shapes) else None
        if joined is None or len(joined) != len(texts) or not bool(joined.isfinite().all()):
            raise ConfigError(
                f"demonstrations: embed gave {shapes[:3]} for {len(texts)} texts; expected a tensor with a row of "
                "finite numbers for each"
            )
        return functional.normalize(joined, dim=1)


@dataclass(eq=False)
class Shown:
    """Demonstrations as one host reads them under one template."""

    pool: Demonstrations
    host: PromptHost
    template: Template
    verbalizer: LabelWords

    def __post_init__(self) -> None:
        self._ids: dict[int, list[int]] = {}

    def prefix(
        self, ranked: Sequence[int], room: int | None, *, where: str = "the question"
    ) -> tuple[tuple[Tokens, ...], int]:
        """The demonstrations that fit, in order, and how many were dropped. ranked: places in the pool, the best first

        room: columns that the window leaves; None for no limit
        where: the question, for messages

        Raises: ConfigError for a record without a field, with a label that has no word, or with `over_budget="error"`
            where they do not fit.
        """
        limits = [limit for limit in (room, self.pool.budget) if limit is not None]
        left = min(limits) if limits else None
        kept = list(ranked)
        while left is not None and kept and sum(len(self._tokens(i)) for i in kept) > left:
            kept.pop()
        if len(kept) < len(ranked) and self.pool.over_budget == "error":
            needed = sum(len(self._tokens(i)) for i in ranked)
            raise ConfigError(
                f"{where}: its {len(ranked)} demonstrations take {needed} tokens, the budget leaves {left} "
                f"(set: {_none_or(self.pool.budget)}, left by the question: {_none_or(room)}); lower k, raise the "
                'budget or the window, or set over_budget to "drop"'
            )
        placed = kept if self.pool.order == "best_first" else kept[::-1]
        return tuple(Tokens.of(self._tokens(i)) for i in placed), len(ranked) - len(kept)

    def _tokens(self, place: int) -> list[int]:
        if place not in self._ids:
            record, where = self.pool.records[place], f"demonstration {place}"
            if self.pool.label not in record:
                raise ConfigError(f"{where} has no field {self.pool.label!r}, so it shows no answer")
            word = self.verbalizer.word(record[self.pool.label], where=where)
            self._ids[place] = self.host.encode(self.template.text(record, word, where=where) + self.pool.separator)
        return self._ids[place]


def check_shown(filled: Sequence[Filled]) -> None:
    """Refuse to ask without examples what was to be asked with some.

    filled: all questions that are asked

    Raises: ConfigError where demonstrations were dropped and not one is left for any question.
    """
    dropped = sum(one.dropped for one in filled)
    if dropped and not any(one.prefix for one in filled):
        raise ConfigError(
            f"not one of the {dropped} demonstrations chosen for {len(filled)} questions fits, so none would be shown; "
            "raise the budget, max_tokens or the window, take shorter demonstrations, or leave them out"
        )


def _none_or(limit: int | None) -> str:
    return "no limit" if limit is None else str(limit)


def _text(record: Mapping[str, Any], template: Template) -> str:
    return " ".join(template.values(record).values())


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _spread(vectors: Tensor, order: Sequence[int], k: int) -> list[int]:
    """Places such that each is as far as can be from those before; the first of `order` is the start.

    Copies of a chosen text come last, so k others are left whichever text is passed over.
    """
    chosen = [order[0]]
    nearest = vectors @ vectors[order[0]]
    while len(chosen) < len(order):
        nearest[chosen[-1]] = float("inf")
        following = int(nearest.argmin())
        chosen.append(following)
        nearest = torch.maximum(nearest, vectors @ vectors[following])
        if len(chosen) > 2 * k + 16:
            break
    return [*chosen, *(i for i in order if i not in set(chosen))]
