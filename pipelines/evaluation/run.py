"""`frozenlm evaluate`: questions through a pipeline, chunk by chunk, into a folder that survives being killed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from pipelines.answer import Answer
from pipelines.config import READS
from pipelines.errors import ConfigError, ShapeError
from pipelines.evaluation.figures import Scores
from pipelines.evaluation.outputs import ResultFolder
from pipelines.evaluation.progress import progress_bar
from pipelines.evaluation.questions import Question
from pipelines.evaluation.rows import measure
from pipelines.evaluation.versions import versions
from pipelines.stages import check_questions
from retrievers.files import sha256_json
from retrievers.metrics import Matcher
from retrievers.types import Hit

Log = Callable[[str], None]
_NOT_MEASURED = ("evaluation", "training", "workspace", "extends")


class Evaluable(Protocol):
    """What is evaluated: `pipelines.pipeline.Pipeline`, or anything that answers like it.

    Optional beside it: `config`, `lm` (a `FrozenLM`), `provenance()`, `warmup()`, `gold_hits(questions)`.
    """

    def answer(self, questions: Sequence[str], hits: Sequence[Sequence[Hit]] | None = None) -> list[Answer]:
        """One answer a question, in order; `hits` replace retrieval."""
        ...


def evaluate(
    pipeline: Evaluable,
    questions: Sequence[Question],
    out: Path | str,
    *,
    recall_at: Sequence[int] = (1, 5, 20, 100),
    matcher: Matcher = "dpr",
    chunk: int = 64,
    oracle: bool = False,
    restart: bool = False,
    log: Log = lambda _: None,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure a pipeline. A run that was stopped goes on where it was; a finished one is not run again.

    Args:
        pipeline: answers batches of questions.
        questions: with answers; a pipeline that only retrieves may be measured on gold passages alone.
        out: result folder: metrics.json, predictions.jsonl, retrieval.trec, retrieval.json.
        recall_at: depths of recall@k.
        matcher: `dpr` or `substring`, what it means that a passage has an answer.
        chunk: questions a batch; what a kill can cost at most.
        oracle: give the reader each question's gold passages instead of retrieved ones.
        restart: throw away what the folder holds.
        log: told of what is done on the user's behalf.
        progress: show a bar with the time left, on standard error.

    Returns:
        The content of metrics.json.

    Raises:
        ConfigError: no questions, questions without answers, duplicate ids, or a folder with another evaluation in it.
        ShapeError: the pipeline gave another number of answers than it had questions.
    """
    _check(questions, recall_at, matcher, chunk)
    _check_answerable(questions, reads=isinstance(getattr(pipeline, "config", None), READS))
    if callable(warmup := getattr(pipeline, "warmup", None)):
        warmup()
    identity = _identity(pipeline, questions, matcher=matcher, oracle=oracle)
    folder = ResultFolder(out)
    with folder.locked():
        folder.begin(identity, _about(pipeline, questions), restart=restart)
        finished = folder.metrics()
        if finished is not None and set(finished["recall_at"]) == {str(k) for k in recall_at}:
            log(f"{folder.path} is finished; its figures are taken as they are")
            return finished
        folder.reopen()
        done = folder.resume([question.id for question in questions], chunk)
        if done:
            log(f"{done} of {len(questions)} questions are answered in {folder.path} already")
        gold: Sequence[Sequence[Hit]] | None = None
        if oracle and done < len(questions):
            gold = _gold(pipeline, questions[done:])
        with progress_bar(len(questions), done, show=progress) as advance:
            for start in range(done, len(questions), chunk):
                batch = questions[start : start + chunk]
                hits = None if gold is None else gold[start - done : start - done + len(batch)]
                rows = [
                    measure(question, answer, matcher=matcher)
                    for question, answer in zip(batch, _answers(pipeline, batch, hits), strict=True)
                ]
                folder.append([row for row, _ in rows], [passages for _, passages in rows])
                advance(len(batch))
        metrics = _metrics(pipeline, questions, folder, recall_at) | identity
        folder.finish(metrics, retrieval=metrics["recall_depth"] > 0)
    return metrics


def _check(questions: Sequence[Question], recall_at: Sequence[int], matcher: str, chunk: int) -> None:
    if not questions:
        raise ConfigError("there is no question to evaluate on; give a file with at least one, or a higher limit")
    if chunk < 1 or not recall_at or min(recall_at) < 1:
        raise ConfigError(f"chunk is {chunk} and recall_at {list(recall_at)}; expected whole numbers from 1")
    if matcher not in ("dpr", "substring"):
        raise ConfigError(f"matcher is {matcher!r}, expected dpr or substring")
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise ConfigError(f"question id {question.id!r} is there twice; ids must be unique")
        seen.add(question.id)
    check_questions([question.text for question in questions], [repr(question.id) for question in questions])


def _check_answerable(questions: Sequence[Question], *, reads: bool) -> None:
    for question in questions:
        if not question.answers and (reads or not question.gold_passages):
            need = "answers" if reads else "answers or gold passages"
            raise ConfigError(f"question {question.id!r} has no {need} to measure against; add them or leave it out")


def _answers(pipeline: Evaluable, batch: Sequence[Question], hits: Sequence[Sequence[Hit]] | None) -> list[Answer]:
    texts = [question.text for question in batch]
    answers = pipeline.answer(texts) if hits is None else pipeline.answer(texts, hits)
    if len(answers) != len(batch):
        raise ShapeError(f"the pipeline gave {len(answers)} answers to {len(batch)} questions; expected one each")
    for question, answer in zip(batch, answers, strict=True):
        _check_answerable([question], reads=answer.text is not None)
    return answers


def _gold(pipeline: Evaluable, questions: Sequence[Question]) -> Sequence[Sequence[Hit]]:
    gold_hits = getattr(pipeline, "gold_hits", None)
    if not callable(gold_hits):
        raise ConfigError("this pipeline cannot look up gold passages; evaluate it without oracle")
    hits: Sequence[Sequence[Hit]] = gold_hits(questions)
    return hits


def _identity(pipeline: Evaluable, questions: Sequence[Question], *, matcher: str, oracle: bool) -> dict[str, Any]:
    """What a row depends on. Two runs with equal identities may share a folder."""
    config = getattr(pipeline, "config", None)
    dump = getattr(config, "model_dump", None)
    settings = dump(mode="json", by_alias=True) if callable(dump) else None
    if settings is not None:
        settings = {key: value for key, value in settings.items() if key not in _NOT_MEASURED}
    provenance = getattr(pipeline, "provenance", None)
    return {
        **(provenance() if callable(provenance) else {}),
        "questions_sha256": _questions_sha256(questions),
        "config_sha256": sha256_json(settings),
        "matcher": matcher,
        "oracle": oracle,
    }


def _questions_sha256(questions: Sequence[Question]) -> str:
    """SHA-256 of what the questions say, whatever file they came from."""
    digest = hashlib.sha256()
    for q in questions:
        line = json.dumps([q.id, q.text, list(q.answers), list(q.gold_passages), list(q.grades)])
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def _about(pipeline: Evaluable, questions: Sequence[Question]) -> dict[str, Any]:
    from pipelines.config import Job
    from pipelines.loader import as_written

    config = getattr(pipeline, "config", None)
    path = getattr(questions, "path", None)
    return {
        "questions": {
            "path": None if path is None else str(path),
            "file_sha256": getattr(questions, "sha256", None),
            "unjudged": getattr(questions, "unjudged", 0),
        },
        "config": as_written(config) if isinstance(config, Job) else None,
        "versions": versions(),
    }


def _metrics(
    pipeline: Evaluable, questions: Sequence[Question], folder: ResultFolder, recall_at: Sequence[int]
) -> dict[str, Any]:
    seed = getattr(getattr(pipeline, "config", None), "seed", 0)
    figures = Scores.of(folder.rows(), recall_at).figures()
    lm = getattr(pipeline, "lm", None)
    verification = lm.verify() if lm is not None else None
    return figures | {
        "lm_weights_changed": verification.changed if verification is not None else None,
        "lm_weights": verification.total if verification is not None else None,
        "lm_fingerprint": lm.fingerprint if lm is not None else None,
        "lm_dtype": str(lm.dtype).removeprefix("torch.") if lm is not None else None,
        "seed": seed,
        "questions_file_sha256": getattr(questions, "sha256", None),
        "versions": versions(),
    }


__all__ = ["Evaluable", "evaluate"]
