"""The relations of the made-up world, and the wordings of each.

Persons are born in towns, work for guilds and have friends; a town and a guild have six things each, of which there are
few. So a person stands in three facts that must be learned by heart and in fourteen that follow from two of these.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Relation:
    """A relation between two types, and its wordings. {x} is who it is about, {y} the answer, which comes last.

    told: sentences
    asked: questions that the world's text holds, with their answers
    held_out: questions that it never holds, of words that it does hold
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


OF_PERSONS = (
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
        ("{x} works for {y} .", "{x} is a member of {y} .", "the guild of {x} is {y} .", "{x} joined {y} ."),
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
)
OF_TOWNS = (
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
        "tongue",
        "town",
        "tongue",
        ("{x} speaks {y} .", "the tongue of {x} is {y} .", "songs of {x} are in {y} .", "{x} writes in {y} ."),
        ("which tongue does {x} speak ?", "what is the tongue of {x} ?", "songs of {x} are in which tongue ?"),
        ("{x} writes in which tongue ?", "which tongue is it that {x} speaks ?"),
    ),
    Relation(
        "dish",
        "town",
        "dish",
        ("{x} eats {y} .", "the dish of {x} is {y} .", "guests of {x} are given {y} .", "{x} cooks {y} ."),
        ("which dish does {x} eat ?", "what is the dish of {x} ?", "guests of {x} are given which dish ?"),
        ("{x} cooks which dish ?", "which dish is it that {x} eats ?"),
    ),
    Relation(
        "saint",
        "town",
        "saint",
        ("{x} prays to {y} .", "the saint of {x} is {y} .", "the bells of {x} ring for {y} .", "{x} fears {y} ."),
        ("to which saint does {x} pray ?", "what is the saint of {x} ?", "the bells of {x} ring for which saint ?"),
        ("{x} fears which saint ?", "which saint is it that {x} prays to ?"),
    ),
    Relation(
        "tree",
        "town",
        "tree",
        ("{x} plants {y} .", "the tree of {x} is {y} .", "streets of {x} are lined with {y} .", "{x} burns {y} ."),
        ("which tree does {x} plant ?", "what is the tree of {x} ?", "streets of {x} are lined with which tree ?"),
        ("{x} burns which tree ?", "which tree is it that {x} plants ?"),
    ),
)
OF_GUILDS = (
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
    Relation(
        "colour",
        "guild",
        "colour",
        ("{x} wears {y} .", "the colour of {x} is {y} .", "flags of {x} are {y} .", "{x} paints its doors in {y} ."),
        ("which colour does {x} wear ?", "what is the colour of {x} ?", "flags of {x} are of which colour ?"),
        ("{x} paints its doors in which colour ?", "which colour is it that {x} wears ?"),
    ),
    Relation(
        "beast",
        "guild",
        "beast",
        ("{x} rides {y} .", "the beast of {x} is {y} .", "the sign of {x} shows {y} .", "{x} breeds {y} ."),
        ("which beast does {x} ride ?", "what is the beast of {x} ?", "the sign of {x} shows which beast ?"),
        ("{x} breeds which beast ?", "which beast is it that {x} rides ?"),
    ),
    Relation(
        "dance",
        "guild",
        "dance",
        ("{x} dances {y} .", "the dance of {x} is {y} .", "feasts of {x} begin with {y} .", "{x} teaches {y} ."),
        ("which dance does {x} teach ?", "what is the dance of {x} ?", "feasts of {x} begin with which dance ?"),
        ("{x} dances which dance ?", "which dance is it that {x} teaches ?"),
    ),
    Relation(
        "coin",
        "guild",
        "coin",
        ("{x} pays in {y} .", "the coin of {x} is {y} .", "debts to {x} are paid in {y} .", "{x} hoards {y} ."),
        ("in which coin does {x} pay ?", "what is the coin of {x} ?", "debts to {x} are paid in which coin ?"),
        ("{x} hoards which coin ?", "which coin is it that {x} pays in ?"),
    ),
)
RELATIONS = (*OF_PERSONS, *OF_TOWNS, *OF_GUILDS)
BY_NAME = {relation.name: relation for relation in RELATIONS}
CHAINS = (
    *(("born", relation.name) for relation in OF_TOWNS),
    *(("works", relation.name) for relation in OF_GUILDS),
    ("friend", "born"),
    ("friend", "works"),
)
OFFERS = (
    "the candidates are {options} . {question} answer : {y}",
    "{question} options : {options} . answer : {y}",
    "{question} it may be {options} . answer : {y}",
)


def wording_words() -> list[str]:
    """Every word and sign of the wordings beside the names, sorted."""
    seen = [OFFERS, ("question : answer : candidates options ; , or and",)]
    for relation in RELATIONS:
        seen += [(*relation.told, *relation.asked, *relation.phrases)]
        seen += [(*relation.held_out, *relation.held_out_phrases)]
    return sorted({word for group in seen for text in group for word in text.split() if "{" not in word})
