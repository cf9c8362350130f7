"""DPR's has_answer to the letter, recall@k by head, ranking measures by head."""

import math
import unicodedata
from pathlib import Path

import pytest

from retrievers.errors import RetrieverError
from retrievers.metrics import dpr_tokens, has_answer, ranking, ranking_per_question, recall_at_k, squad_normalized
from retrievers.types import Hit


def hits(*texts: str) -> list[Hit]:
    return [Hit(f"p{i}", -float(i), text, "the title holds Hamlet") for i, text in enumerate(texts)]


def test_tokens() -> None:
    assert " ".join(dpr_tokens("The U.S.-born co-founder, 3.5%")) == "the u . s . - born co - founder , 3 . 5 %"
    assert dpr_tokens("a\u00a0b\u200b\x00c\n") == ["a", "b", "c"]
    # NFD: é is two characters, both of one token; the ligature stays, NFKD would split it.
    assert dpr_tokens("CAFÉ ﬁn") == ["cafe\u0301", "ﬁn"]
    assert dpr_tokens("東京2020") == ["東京2020"]


@pytest.mark.parametrize(
    ("text", "answer", "found"),
    [
        ("It was in 1973, in October.", "1973", True),
        ("It was in 19735.", "1973", False),  # whole tokens only
        ("written by william shakespeare", "William Shakespeare", True),
        ("William, Shakespeare", "William Shakespeare", False),  # the comma is a token between them
        ("the Beatles", "Beatles", True),
        ("Beatles", "The Beatles", False),  # articles stay
        ("the U.S. army", "U.S.", True),
        ("the US army", "U.S.", False),  # punctuation stays
        (unicodedata.normalize("NFC", "a café"), unicodedata.normalize("NFD", "café"), True),
        ("twenty-one", "twenty one", False),
        ("1914–1918", "1914-1918", False),  # an en dash is not a hyphen
        ("b c", "a b c", False),
        ("Hello", "hello world", False),
    ],
)
def test_has_answer_like_dpr(text: str, answer: str, found: bool) -> None:
    assert has_answer(text, ["nothing like it", answer]) is found


def test_the_substring_matcher_is_squads_normalisation() -> None:
    assert squad_normalized("The  U.S. Army, a 'force'") == "us army force"
    assert has_answer("in the US army", ["U.S."], matcher="substring")
    assert has_answer("in 19735", ["1973"], matcher="substring")
    assert not has_answer("in 19735", ["1973"], matcher="dpr")
    with pytest.raises(RetrieverError, match="matcher is 'acc'"):
        has_answer("a", ["b"], matcher="acc")  # type: ignore[arg-type]


@pytest.mark.parametrize("gold", [[], [""], ["fine", " \n"], "a text"])
def test_an_empty_gold_answer_would_match_everything(gold: list[str]) -> None:
    with pytest.raises(RetrieverError, match="answer"):
        has_answer("text", gold)
    with pytest.raises(RetrieverError, match="answer"):
        recall_at_k([hits("text")], [gold])


def test_an_answer_of_articles_is_empty_for_the_substring_matcher() -> None:
    assert has_answer("the A team", ["A"])
    with pytest.raises(RetrieverError, match="'A' is empty for the matcher 'substring'"):
        has_answer("the A team", ["A"], matcher="substring")


def test_recall_at_k_by_hand() -> None:
    # Found at places 1 and 3, and never; lists of different lengths, the first one the shortest.
    results = [hits("yes"), hits("no", "no", "yes"), hits("no", "no"), hits()]
    answers = [["yes"], ["yes"], ["yes"], ["yes"]]
    assert recall_at_k(results, answers, [1, 2, 3, 100]) == {1: 0.25, 2: 0.25, 3: 0.5, 100: 0.5}


def test_titles_do_not_count() -> None:
    assert recall_at_k([hits("text without it")], [["Hamlet"]], [1]) == {1: 0.0}


def test_recall_refuses_what_is_not_defined() -> None:
    with pytest.raises(RetrieverError, match="no question"):
        recall_at_k([], [])
    with pytest.raises(RetrieverError, match="2 result lists for 1"):
        recall_at_k([hits("a"), hits("b")], [["a"]])
    with pytest.raises(RetrieverError, match="at least 1"):
        recall_at_k([hits("a")], [["a"]], [0])


def test_ranking_measures_by_hand() -> None:
    qrels = {"q1": {"a": 1, "b": 1}, "q2": {"c": 1}, "q3": {"d": 1}}
    run = {"q1": ["a", "x", "b"], "q2": ["x", "c"], "not judged": ["a"]}
    # q1: gains at places 1 and 3, ideal at 1 and 2. q3 is missing from the run and counts as zero.
    ndcg = (1 + 1 / math.log2(4)) / (1 + 1 / math.log2(3)), 1 / math.log2(3), 0
    assert ranking(qrels, run, ["nDCG@10", "RR", "AP", "R@1"]) == pytest.approx(
        {"nDCG@10": sum(ndcg) / 3, "RR": (1 + 0.5) / 3, "AP": ((1 + 2 / 3) / 2 + 0.5) / 3, "R@1": 0.5 / 3}, abs=1e-9
    )
    assert ranking_per_question(qrels, run, ["RR"])["RR"] == {"q1": 1.0, "q2": 0.5, "q3": 0.0}


def test_the_order_of_the_list_counts_and_not_the_scores() -> None:
    # A re-ranker put b first; its retrieval score is still the smaller one, and a tie must not be broken by id again.
    reranked = [Hit("b", 1.0, ""), Hit("a", 2.0, "")]
    assert ranking({"q": {"b": 1}}, {"q": reranked}, ["RR"]) == {"RR": 1.0}
    tied = [Hit("z", 1.0, ""), Hit("a", 1.0, "")]
    assert ranking({"q": {"z": 1}}, {"q": tied}, ["RR"]) == {"RR": 1.0}
    assert ranking({"q": {"z": 1}}, {}, ["RR"]) == {"RR": 0.0}


def test_unknown_measures_and_empty_qrels() -> None:
    with pytest.raises(RetrieverError, match="unknown to ir-measures"):
        ranking({"q": {"a": 1}}, {"q": ["a"]}, ["accuracy"])
    with pytest.raises(RetrieverError, match="qrels is empty"):
        ranking({}, {})


@pytest.mark.shared_data
def test_real_passages_hold_their_own_answers(shared_data: Path) -> None:
    """Every SQuAD question's gold passage holds an answer, but for cuts inside a token."""
    import json

    from retrievers.corpus import read_corpus
    from retrievers.runs import read_qrels

    folder = shared_data / "data" / "wiki_mix"
    texts = {passage.id: passage.text for passage in read_corpus(folder)}
    qrels = read_qrels(folder / "qrels" / "squad_dev.tsv")
    rows = [json.loads(line) for line in (folder / "queries" / "squad_dev.jsonl").open()]
    found = [any(has_answer(texts[p], row["answers"]) for p in qrels[row["_id"]]) for row in rows]
    assert len(found) == 1381 and sum(found) / len(found) > 0.98
