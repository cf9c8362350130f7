"""Retrieval results as files: TREC runs and qrels, DPR's retrieval JSON; and a retriever that serves such files.

The trap: a re-ranked list whose file is sorted by retrieval score again when it is read loses the re-ranker's work.
Here the
order of a list is what counts: in a TREC run the rank column wins over the score, in DPR JSON the order of `ctxs`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from retrievers.errors import CorpusError, RetrieverError
from retrievers.files import sha256_file, sha256_json, written_whole
from retrievers.metrics import Matcher, has_answer
from retrievers.passages import PassageStore
from retrievers.types import Hit


@dataclass(frozen=True, slots=True)
class RunEntry:
    """One line of a TREC run: passage, rank (from 1) and score."""

    passage_id: str
    rank: int
    score: float


@dataclass(frozen=True, slots=True)
class RetrievedQuestion:
    """One record of a DPR retrieval file."""

    question: str
    answers: tuple[str, ...]
    hits: tuple[Hit, ...]


def write_trec_run(path: Path | str, run: Mapping[str, Sequence[Hit]], *, tag: str = "frozenlm") -> None:
    """Write question id -> hits as a TREC run; the rank is the place in the list, the score the last one given (re-rank
    score where there is one).

    Raises:
        RetrieverError: an id or tag that holds white space or is empty, or the file cannot be written.
    """
    _check_token(tag, "tag")
    with written_whole(Path(path)) as stream:
        for question, hits in run.items():
            _check_token(question, "question id")
            for rank, hit in enumerate(hits, start=1):
                _check_token(hit.passage_id, "passage id")
                score = hit.score if hit.rerank_score is None else hit.rerank_score
                stream.write(f"{question} Q0 {hit.passage_id} {rank} {score!r} {tag}\n".encode())


def read_trec_run(path: Path | str) -> dict[str, list[RunEntry]]:
    """Read a TREC run: question id -> entries in the order of their ranks.

    Raises:
        CorpusError: missing file, malformed line, or a passage twice for one question; named as file:line.
    """
    run: dict[str, list[RunEntry]] = {}
    seen: set[tuple[str, str]] = set()
    for where, line in _lines(Path(path)):
        fields = line.split()
        try:
            question, _, passage, rank, score, _ = fields
            entry = RunEntry(passage, int(rank), float(score))
        except ValueError:
            raise CorpusError(f"{where}: {line!r:.80}; expected: question Q0 passage rank score tag") from None
        if not math.isfinite(entry.score):
            raise CorpusError(f"{where}: score is {score}, expected a finite number")
        if (question, passage) in seen:
            raise CorpusError(f"{where}: passage {passage!r} occurs twice for question {question!r}")
        seen.add((question, passage))
        run.setdefault(question, []).append(entry)
    for entries in run.values():
        entries.sort(key=lambda entry: (entry.rank, -entry.score, entry.passage_id))
    return run


def read_qrels(path: Path | str) -> dict[str, dict[str, int]]:
    """Read qrels: TREC's four columns (question 0 passage relevance) or BEIR's three with a header.

    Raises:
        CorpusError: missing file or malformed line, named as file:line.
    """
    qrels: dict[str, dict[str, int]] = {}
    for number, (where, line) in enumerate(_lines(Path(path))):
        fields = line.split("\t") if "\t" in line else line.split()
        if number == 0 and fields[-1].strip() in ("score", "relevance"):
            continue
        try:
            question, passage, relevance = (fields[0], fields[-2], int(fields[-1]))
        except (ValueError, IndexError):
            raise CorpusError(f"{where}: {line!r:.80}; expected: question [0] passage relevance") from None
        if len(fields) not in (3, 4):
            raise CorpusError(f"{where}: {len(fields)} columns, expected 3 (BEIR) or 4 (TREC)")
        qrels.setdefault(question, {})[passage] = relevance
    return qrels


def write_dpr_json(
    path: Path | str,
    questions: Sequence[str],
    answers: Sequence[Sequence[str]],
    results: Sequence[Sequence[Hit]],
    *,
    matcher: Matcher = "dpr",
) -> None:
    """Write DPR's retrieval file: a list of {question, answers, ctxs: [{id, title, text, score, has_answer}]}.

    `score` is the retrieval score, `rerank_score` is added where a re-ranker has been; `ctxs` stands in the lists'
    order. Question by question, so memory stays flat.

    Raises:
        RetrieverError: lists of different lengths, an empty gold answer, or the file cannot be written.
    """
    if not len(questions) == len(answers) == len(results):
        raise RetrieverError(
            f"{len(questions)} questions, {len(answers)} answer lists, {len(results)} results; expected as many of each"
        )
    with written_whole(Path(path)) as stream:
        stream.write(b"[")
        for number, (question, gold, hits) in enumerate(zip(questions, answers, results, strict=True)):
            contexts = [_context(hit, gold, matcher) for hit in hits]
            record = {"question": question, "answers": list(gold), "ctxs": contexts}
            stream.write(b",\n" if number else b"\n")
            stream.write(json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass"))
        stream.write(b"\n]\n")


def _context(hit: Hit, answers: Sequence[str], matcher: Matcher) -> dict[str, Any]:
    context: dict[str, Any] = {"id": hit.passage_id, "title": hit.title, "text": hit.text, "score": hit.score}
    if answers:
        context["has_answer"] = has_answer(hit.text, answers, matcher=matcher)
    if hit.rerank_score is not None:
        context["rerank_score"] = hit.rerank_score
    return context


def read_dpr_json(path: Path | str) -> list[RetrievedQuestion]:
    """Read DPR's retrieval file, ours or another's (scores may be texts). Hits keep the file's order.

    Raises:
        CorpusError: missing file, not JSON, or a record without the fields; the record's number is named.
    """
    place = Path(path)
    try:
        records = json.loads(place.read_bytes().decode("utf-8", "surrogatepass"))
    except FileNotFoundError:
        raise CorpusError(f"there is no file {place}; check the path") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CorpusError(f"{place} is not a DPR retrieval file: {error}") from error
    if not isinstance(records, list):
        raise CorpusError(f"{place} holds a JSON {type(records).__name__}, expected a list of records")
    return [_retrieved(record, f"{place} record {number}") for number, record in enumerate(records)]


def _retrieved(record: Any, where: str) -> RetrievedQuestion:
    try:
        hits = tuple(_hit(context) for context in record["ctxs"])
        found = RetrievedQuestion(str(record["question"]), tuple(map(str, record.get("answers", ()))), hits)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorpusError(f"{where}: {error!r}; expected question, answers and ctxs with id, text and score") from error
    if len({hit.passage_id for hit in hits}) != len(hits):
        raise CorpusError(f"{where}: a passage id occurs twice in ctxs")
    return found


def _hit(context: Mapping[str, Any]) -> Hit:
    score = float(context.get("score", 0.0))
    rerank = context.get("rerank_score")
    if not math.isfinite(score) or not math.isfinite(float(rerank or 0.0)):
        raise ValueError(f"score {score} of passage {context['id']!r} is not finite")
    hit = Hit(str(context["id"]), score, str(context["text"]), str(context.get("title") or ""))
    return hit if rerank is None else hit.with_rerank_score(float(rerank))


class PrecomputedRetriever:
    """Serves retrieval results that were made elsewhere, by question. They can replace our own retriever everywhere.

    The lists keep their order. Where a list's scores do not fall along it (a re-ranked list without its re-rank
    scores), each hit's score becomes minus its rank and the file's own moves to `meta["file_score"]`.

    Args:
        results: question -> hits, best first. Questions are compared without outer white space and with the curly
            apostrophe written straight, as DPR's own files do.
        fingerprint: of the source; turns result caching on.
    """

    def __init__(self, results: Mapping[str, Sequence[Hit]], *, fingerprint: str | None = None) -> None:
        self._results = {_question_key(question): _falling(hits) for question, hits in results.items()}
        self._fingerprint = fingerprint

    @classmethod
    def from_dpr_json(cls, path: Path | str) -> PrecomputedRetriever:
        """Of a DPR retrieval file.

        Raises:
            CorpusError: as `read_dpr_json`.
        """
        records = read_dpr_json(path)
        return cls({record.question: record.hits for record in records}, fingerprint=sha256_file(Path(path)))

    @classmethod
    def from_trec_run(
        cls, path: Path | str, *, questions: Mapping[str, str], passages: PassageStore, corpus_fingerprint: str = ""
    ) -> PrecomputedRetriever:
        """Of a TREC run, with the questions by id and the passages that it speaks of.

        Raises:
            CorpusError: as `read_trec_run`; a question or passage that the run names is unknown.
        """
        results: dict[str, list[Hit]] = {}
        for question, entries in read_trec_run(path).items():
            if question not in questions:
                raise CorpusError(f"{path} has results for question {question!r}, which is not among the questions")
            hits = results[questions[question]] = []
            for entry in entries:
                passage = passages.get(entry.passage_id)
                if passage is None:
                    raise CorpusError(f"{path} names passage {entry.passage_id!r}, which is not in {passages.folder}")
                hits.append(Hit(passage.id, entry.score, passage.text, passage.title, passage.meta))
        sources = [sha256_file(Path(path)), dict(questions), corpus_fingerprint or str(passages.folder)]
        return cls(results, fingerprint=sha256_json(sources))

    def retrieve(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """The first k hits of each question; fewer where the source has fewer.

        Raises:
            RetrieverError: a question that the source does not hold.
        """
        found = []
        for query in queries:
            hits = self._results.get(_question_key(query))
            if hits is None:
                raise RetrieverError(f"there are no precomputed results for the question {query!r:.120}")
            found.append(hits[:k])
        return found

    def fingerprint(self) -> str | None:
        """Of the source, or None where none was given."""
        return self._fingerprint


def _question_key(question: str) -> str:
    return question.strip().replace("’", "'")


def _falling(hits: Sequence[Hit]) -> list[Hit]:
    scores = [hit.score if hit.rerank_score is None else hit.rerank_score for hit in hits]
    if all(this >= following for this, following in pairwise(scores)):
        return list(hits)
    return [
        replace(hit, score=-float(rank), meta={**hit.meta, "file_score": hit.score}) for rank, hit in enumerate(hits, 1)
    ]


def _check_token(text: str, what: str) -> None:
    if not text or text.split() != [text]:
        raise RetrieverError(f"{what} {text!r} cannot stand in a TREC run: it is empty or holds white space")


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    number = 0
    try:
        with path.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield f"{path}:{number}", line.rstrip("\r\n")
    except FileNotFoundError:
        raise CorpusError(f"there is no file {path}; check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"{path}:{number + 1}: cannot be read: {error}") from error
