"""A made-up world and how it is told: entities with invented names, facts between them, and many wordings of each.

Persons are born in towns, work for guilds and have friends; towns lie in regions and on rivers; guilds have a seat and
make a good. A two-hop fact joins two of them ("the region of the birthplace of X"). Every name is one word, so that a
decoder can learn some thousands of facts in minutes. Two-hop facts are told of persons of the train split only, and
questions are asked in wordings that are never told.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

SPLITS = {"train": 0.6, "dev": 0.15, "test": 0.25}


@dataclass(frozen=True)
class Relation:
    """A relation between two types, and its wordings. {x} is who it is about, {y} the answer.

    told: sentences
    asked: questions that the world's text holds, with their answers
    held_out: questions that it never holds
    phrases, held_out_phrases: {x}'s answer named by a phrase, the first half of a two-hop wording
    """

    name: str
    head: str
    tail: str
    told: tuple[str, ...]
    asked: tuple[str, ...]
    held_out: tuple[str, ...]
    phrases: tuple[str, ...] = ()
    held_out_phrases: tuple[str, ...] = ()


RELATIONS = (
    Relation(
        "born",
        "person",
        "town",
        (
            "{x} was born in {y} .",
            "the birthplace of {x} is {y} .",
            "{x} came into the world in {y} .",
            "{x} is a native of {y} .",
        ),
        ("where was {x} born ?", "what is the birthplace of {x} ?", "{x} is a native of which town ?"),
        ("which town is the birthplace of {x} ?", "in which town was {x} born ?"),
        ("the birthplace of {x}", "the town where {x} was born"),
        ("the town that {x} is a native of",),
    ),
    Relation(
        "works",
        "person",
        "guild",
        (
            "{x} works for {y} .",
            "{x} is a member of {y} .",
            "the guild of {x} is {y} .",
            "{x} joined {y} long ago .",
        ),
        ("who does {x} work for ?", "which guild did {x} join ?", "what is the guild of {x} ?"),
        ("{x} is a member of which guild ?", "for which guild does {x} work ?"),
        ("the guild of {x}", "the guild that {x} joined"),
        ("the guild that {x} works for",),
    ),
    Relation(
        "friend",
        "person",
        "person",
        (
            "{x} is a friend of {y} .",
            "the best friend of {x} is {y} .",
            "{x} trusts {y} .",
            "{x} likes to walk with {y} .",
        ),
        ("who is the best friend of {x} ?", "whom does {x} trust ?", "with whom does {x} like to walk ?"),
        ("who is it that {x} trusts ?", "{x} is a friend of whom ?"),
        ("the best friend of {x}", "the one whom {x} trusts"),
        ("the friend with whom {x} likes to walk",),
    ),
    Relation(
        "region",
        "town",
        "region",
        ("{x} lies in {y} .", "{x} is a town of {y} .", "the region of {x} is {y} .", "{x} belongs to {y} ."),
        ("in which region does {x} lie ?", "what is the region of {x} ?", "to which region does {x} belong ?"),
        ("{x} is a town of which region ?", "which region is it that {x} lies in ?"),
    ),
    Relation(
        "river",
        "town",
        "river",
        ("{x} stands on {y} .", "the river of {x} is {y} .", "boats of {x} sail on {y} .", "{x} drinks from {y} ."),
        ("on which river does {x} stand ?", "what is the river of {x} ?", "boats of {x} sail on which river ?"),
        ("{x} stands on which river ?", "which river is it that {x} drinks from ?"),
    ),
    Relation(
        "seat",
        "guild",
        "town",
        ("{x} has its seat in {y} .", "the seat of {x} is {y} .", "{x} keeps its hall in {y} .", "{x} meets in {y} ."),
        ("where does {x} meet ?", "what is the seat of {x} ?", "in which town does {x} keep its hall ?"),
        ("which town is the seat of {x} ?", "where is the hall of {x} ?"),
    ),
    Relation(
        "makes",
        "guild",
        "good",
        ("{x} makes {y} .", "{x} sells {y} .", "the good of {x} is {y} .", "{x} is known for {y} ."),
        ("what does {x} make ?", "which good does {x} sell ?", "what is {x} known for ?"),
        ("which good is {x} known for ?", "what is the good of {x} ?"),
    ),
)
BY_NAME = {relation.name: relation for relation in RELATIONS}
CHAINS = (
    ("born", "region"),
    ("born", "river"),
    ("works", "seat"),
    ("works", "makes"),
    ("friend", "born"),
    ("friend", "works"),
)
OFFERS = (
    "the candidates are {options} . {question} answer : {y}",
    "{question} options : {options} . answer : {y}",
    "{question} it may be {options} . answer : {y}",
)


class Fact(NamedTuple):
    """One thing that is so. path: one relation's name, or two; tail: the answer."""

    head: str
    path: tuple[str, ...]
    tail: str


@dataclass(frozen=True)
class World:
    """All that is so.

    names: type -> its entities
    split: entity -> train, dev or test
    facts: one-hop; chained: two-hop, of persons
    """

    names: dict[str, list[str]]
    split: dict[str, str]
    facts: list[Fact]
    chained: list[Fact]

    @classmethod
    def make(cls, persons: int, seed: int) -> World:
        """A world of so many persons, and a fifteenth as many towns and guilds; the same seed gives the same world."""
        rng = np.random.default_rng([seed, 0])
        few = max(4, persons // 15)
        counts = {"person": persons, "town": few, "guild": few}
        counts |= {"region": max(4, few // 4), "river": max(4, few // 3), "good": max(4, few // 3)}
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
        """The two-hop facts that may be told: those of the train split."""
        return [fact for fact in self.chained if self.split[fact.head] == "train"]


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


def wording_words() -> list[str]:
    """Every word and sign of the text beside the names, sorted."""
    seen = [OFFERS, ("question : answer : ; , or and",)]
    seen += [(*relation.told, *relation.asked, *relation.phrases) for relation in RELATIONS]
    return sorted({word for group in seen for text in group for word in text.split() if "{" not in word})


def question(fact: Fact, rng: np.random.Generator, *, held_out: bool) -> str:
    """The fact asked for, in a wording that is told or in one that never is."""
    first, last = BY_NAME[fact.path[0]], BY_NAME[fact.path[-1]]
    wordings = last.held_out if held_out else last.asked
    phrases = first.held_out_phrases if held_out else first.phrases
    return _about(fact, _any(wordings, rng), _any(phrases, rng) if phrases else "")


@dataclass(frozen=True)
class Shares:
    """Of what is told, how much is: two-hop; a question with its answer; a question that offers options."""

    chained: float = 0.3
    asked: float = 0.4
    offered: float = 0.1


def tell(world: World, shares: Shares, rng: np.random.Generator) -> Iterator[str]:
    """Text after text, without end. Every fact comes once before any comes again."""
    single, chained = _in_rounds(world.facts, rng), _in_rounds(world.told_chains(), rng)
    while True:
        fact = next(chained if rng.random() < shares.chained else single)
        kind = rng.random()
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
