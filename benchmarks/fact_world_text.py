"""A made-up world and how it is told: entities with invented names, facts between them, and many wordings of each.

A two-hop fact joins two facts ("the region of the birthplace of X"). Every name is one word, so that a decoder can
learn some thousands of facts in minutes. All one-hop facts are told. Two-hop facts, and questions with their answers,
are told of half the entities only, the split `told`; the other three splits are for methods that work on the decoder.
Their questions are asked in wordings that are never told.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from benchmarks.fact_world_relations import BY_NAME, CHAINS, OFFERS, RELATIONS, wording_words

SPLITS = {"told": 0.5, "train": 0.2, "dev": 0.1, "test": 0.2}


class Fact(NamedTuple):
    """One thing that is so. path: one relation's name, or two; tail: the answer."""

    head: str
    path: tuple[str, ...]
    tail: str


@dataclass(frozen=True)
class World:
    """All that is so.

    names: type -> its entities
    split: entity -> told, train, dev or test
    facts: one-hop; chained: two-hop, of persons
    """

    names: dict[str, list[str]]
    split: dict[str, str]
    facts: list[Fact]
    chained: list[Fact]

    @classmethod
    def make(cls, persons: int, seed: int) -> World:
        """A world of so many persons, a fifteenth as many towns and guilds, and a third as many of all that these have;
        the same seed gives the same world."""
        rng = np.random.default_rng([seed, 0])
        few = max(4, persons // 15)
        counts = {"person": persons, "town": few, "guild": few}
        counts |= {relation.tail: max(4, few // 3) for relation in RELATIONS if relation.tail not in counts}
        words = iter(invented_words(sum(counts.values()), rng))
        names = {kind: [next(words) for _ in range(count)] for kind, count in counts.items()}
        facts = [
            Fact(head, (relation.name,), _other(names[relation.tail], head, rng))
            for relation in RELATIONS
            for head in names[relation.head]
        ]
        known = {(fact.head, fact.path[0]): fact.tail for fact in facts}
        chained = [
            Fact(person, chain, known[known[person, chain[0]], chain[1]])
            for chain in CHAINS
            for person in names["person"]
        ]
        split = {}
        for kind in ("person", "town", "guild"):
            order = rng.permutation(len(names[kind]))
            bounds = (np.cumsum(list(SPLITS.values())) * len(order)).round().astype(int)
            for place, number in enumerate(order):
                split[names[kind][number]] = list(SPLITS)[int(np.searchsorted(bounds, place, side="right"))]
        return cls(names, split, facts, chained)

    def told_chains(self) -> list[Fact]:
        """The two-hop facts that may be told: those of the split of that name."""
        return [fact for fact in self.chained if self.split[fact.head] == "told"]


def _other(names: list[str], head: str, rng: np.random.Generator) -> str:
    while (found := names[int(rng.integers(len(names)))]) == head:
        pass
    return found


def invented_words(count: int, rng: np.random.Generator) -> list[str]:
    """So many different words of two or three syllables; none is a word of the wordings."""
    syllables = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
    taken = set(wording_words())
    found: dict[str, None] = {}
    while len(found) < count:
        length = int(rng.integers(2, 4))
        word = "".join(syllables[int(i)] for i in rng.integers(len(syllables), size=length))
        word += "nrsl"[int(rng.integers(4))] if rng.random() < 0.5 else ""
        if word not in taken:
            found[word] = None
    return list(found)


def question(fact: Fact, rng: np.random.Generator, *, held_out: bool) -> str:
    """The fact asked for, in a wording that is told or in one that never is."""
    first, last = BY_NAME[fact.path[0]], BY_NAME[fact.path[-1]]
    wordings = last.held_out if held_out else last.asked
    phrases = first.held_out_phrases if held_out else first.phrases
    return _about(fact, _any(wordings, rng), _any(phrases, rng) if phrases else "")


@dataclass(frozen=True)
class Shares:
    """Of what is told, how much is: two-hop; a question with its answer; a question that offers options. The last two
    are of what is told of the split `told`."""

    chained: float = 0.5
    asked: float = 0.5
    offered: float = 0.1


def tell(world: World, shares: Shares, rng: np.random.Generator) -> Iterator[str]:
    """Text after text, without end. Every fact comes once before any comes again."""
    single, chained = _in_rounds(world.facts, rng), _in_rounds(world.told_chains(), rng)
    while True:
        fact = next(chained if rng.random() < shares.chained else single)
        kind = rng.random() if world.split[fact.head] == "told" else 1.0
        if kind < shares.offered:
            yield _offer(world, fact, rng)
        elif kind < shares.offered + shares.asked:
            yield f"question : {question(fact, rng, held_out=False)} answer : {fact.tail}"
        else:
            first, last = BY_NAME[fact.path[0]], BY_NAME[fact.path[-1]]
            phrase = _any(first.phrases, rng) if len(fact.path) == 2 else ""
            yield _about(fact, _any(last.told, rng), phrase).replace("{y}", fact.tail)


def questions(world: World, split: str, seed: int) -> list[dict[str, Any]]:
    """All facts of a split's entities asked for, each once, in wordings that are never told; one-hop first."""
    rng = np.random.default_rng([seed, 2, list(SPLITS).index(split)])
    facts = [fact for fact in (*world.facts, *world.chained) if world.split[fact.head] == split]
    return [
        {
            "id": f"{split}-{number}",
            "question": question(fact, rng, held_out=True),
            "answer": [fact.tail],
            "hops": len(fact.path),
            "relation": ".".join(fact.path),
            "entity": fact.head,
        }
        for number, fact in enumerate(facts, start=1)
    ]


def _about(fact: Fact, wording: str, phrase: str) -> str:
    """A wording about the fact's head, or for two hops about what the phrase names; {y} stays open."""
    return wording.replace("{x}", phrase.replace("{x}", fact.head) if len(fact.path) == 2 else fact.head)


def _offer(world: World, fact: Fact, rng: np.random.Generator) -> str:
    """A question with one to six options; the answer is among them five times of six."""
    among = world.names[BY_NAME[fact.path[-1]].tail]
    options = {among[int(i)]: None for i in rng.integers(len(among), size=int(rng.integers(1, 6)))}
    if rng.random() < 5 / 6:
        options[fact.tail] = None
    listed = [list(options)[int(i)] for i in rng.permutation(len(options))]
    asked = f"question : {question(fact, rng, held_out=False)}"
    return _any(OFFERS, rng).format(question=asked, options=_any((" ; ", " , ", " or "), rng).join(listed), y=fact.tail)


def _any(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def _in_rounds(facts: list[Fact], rng: np.random.Generator) -> Iterator[Fact]:
    while facts:
        for number in rng.permutation(len(facts)):
            yield facts[int(number)]
