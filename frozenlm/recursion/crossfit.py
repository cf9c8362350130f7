"""Candidates to train the second pass on, from first passes that never learned the question (k-fold cross-fitting).

A prompt answers the questions it was trained on better than any others. A second pass that learned on such candidates
would trust them too much, so each fold's candidates come from a prompt that was trained on the other folds. The paper
(Levine et al. 2022, arXiv 2204.10019, section 4.1) does not say how it did; this is our choice, as in stacking.

A folder is filled part by part and can be taken up after a kill at any moment:

    run.json            what the candidates depend on; a folder takes one such run only
    parts/F-C.jsonl     chunk C of fold F, written whole or not at all
    candidates.jsonl    one line a question, in the questions' order; then the parts go
    manifest.json       written last: counts, and the SHA-256 of candidates.jsonl
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from frozenlm.checkpoint import atomic_write_bytes, atomic_write_json
from frozenlm.errors import CheckpointError, ConfigError, FrozenLMError
from frozenlm.recursion.candidates import Candidates

T = TypeVar("T")
RUN, ROWS, MANIFEST, PARTS = "run.json", "candidates.jsonl", "manifest.json", "parts"
CHUNK = 64
REMEDY = "use another folder, or start this one again with restart=True, which deletes what is there"


def folds(keys: Sequence[str], k: int, seed: int = 0) -> list[int]:
    """The fold (0 to k - 1) of each key. Equal keys share a fold; folds differ in size by one key at most.

    A key's fold depends on the set of keys and the seed, not on their order. Give questions that must not be learned
    from for each other one key: the same question asked twice, for instance.

    Raises: ConfigError for k below 2, or more folds than different keys.
    """
    different = sorted(set(keys), key=lambda key: hashlib.sha256(f"{seed}\n{key}".encode()).digest())
    if not 2 <= k <= len(different):
        raise ConfigError(f"k is {k}; cross-fitting needs 2 folds or more, at most one a question ({len(different)})")
    fold = {key: place % k for place, key in enumerate(different)}
    return [fold[key] for key in keys]


def cross_fit(
    folder: Path | str,
    ids: Sequence[str],
    *,
    train: Callable[[int, list[int]], T],
    sample: Callable[[T, list[int]], Sequence[Candidates]],
    k: int = 5,
    keys: Sequence[str] | None = None,
    identity: Mapping[str, Any],
    seed: int = 0,
    chunk: int = CHUNK,
    restart: bool = False,
    log: Callable[[str], None] = lambda _: None,
) -> list[Candidates]:
    """The candidates of every question, sampled with what was trained on the other folds. Kept on disk.

    folder: made if absent; a finished one is read, not computed again
    ids: of the questions, all different
    train: (fold, places of the questions outside it) -> whatever `sample` needs; called once for a fold that is not
        finished, so it should take up its own work after a kill
    sample: (what was trained, places of questions) -> their candidates
    keys: see `folds`; the ids where None
    identity: plain JSON, all that the candidates depend on beside ids, keys, k, seed and chunk: the LM's fingerprint,
        the texts, the prompt's and the sampling's settings
    chunk: questions sampled between two saves

    Raises: ConfigError for repeated ids, a folder with another run, or as `folds`; CheckpointError for a damaged
        folder; FrozenLMError when `sample` does not give one set a question.
    """
    folder, keys = Path(folder), list(ids if keys is None else keys)
    if len(set(ids)) != len(ids) or len(keys) != len(ids) or chunk < 1:
        raise ConfigError(
            f"got {len(ids)} ids ({len(set(ids))} different), {len(keys)} keys and chunk {chunk}; "
            "expected different ids, a key for each, and chunks of at least 1 question"
        )
    fold_of = folds(keys, k, seed)
    split = {"ids": _digest(ids), "keys": _digest(keys), "k": k, "seed": seed, "chunk": chunk}
    _begin(folder, {**identity, **split}, restart)
    if (folder / MANIFEST).exists():
        shutil.rmtree(folder / PARTS, ignore_errors=True)
        return list(read_candidates(folder).values())
    rows: dict[int, dict[str, Any]] = {}
    for fold in range(k):
        places = [place for place in range(len(ids)) if fold_of[place] == fold]
        chunks = [places[start : start + chunk] for start in range(0, len(places), chunk)]
        files = [folder / PARTS / f"{fold}-{number}.jsonl" for number in range(len(chunks))]
        if not all(path.exists() for path in files):
            log(f"fold {fold + 1} of {k}: training on {len(ids) - len(places)} questions")
            trained = train(fold, [place for place in range(len(ids)) if fold_of[place] != fold])
            for path, some in zip(files, chunks, strict=True):
                if not path.exists():
                    _sample_chunk(path, [ids[place] for place in some], fold, sample(trained, some))
        for path, some in zip(files, chunks, strict=True):
            rows.update(zip(some, _read_rows(path, [ids[place] for place in some]), strict=True))
        log(f"fold {fold + 1} of {k}: candidates of {len(places)} questions")
    return _finish(folder, [rows[place] for place in range(len(ids))], k)


def read_candidates(folder: Path | str) -> dict[str, Candidates]:
    """id -> candidates of a finished folder, in the questions' order.

    Raises: CheckpointError when it is unfinished or damaged.
    """
    folder = Path(folder)
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        data = (folder / ROWS).read_bytes()
        whole = hashlib.sha256(data).hexdigest() == manifest["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder} holds no finished candidates ({error}); run the cross-fitting again"
        ) from error
    if not whole:
        raise CheckpointError(f"{folder / ROWS} is not what {MANIFEST} says it was; {REMEDY}")
    return {row["id"]: Candidates.from_record(row) for row in map(json.loads, data.splitlines())}


def _begin(folder: Path, identity: dict[str, Any], restart: bool) -> None:
    if restart and folder.exists():
        shutil.rmtree(folder / PARTS, ignore_errors=True)
        for name in (MANIFEST, ROWS, RUN):
            (folder / name).unlink(missing_ok=True)
    path = folder / RUN
    if not path.exists():
        if (folder / PARTS).exists() or (folder / ROWS).exists():
            raise ConfigError(f"{folder} has candidates but no {RUN}; {REMEDY}")
        atomic_write_json(path, identity)
        return
    try:
        there = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}); {REMEDY}") from error
    now = json.loads(json.dumps(identity))
    if differing := sorted(name for name in {*there, *now} if there.get(name) != now.get(name)):
        raise ConfigError(f"{folder} holds candidates that differ in {', '.join(differing)}; {REMEDY}")


def _sample_chunk(path: Path, ids: Sequence[str], fold: int, found: Sequence[Candidates]) -> None:
    if len(found) != len(ids):
        raise FrozenLMError(f"{len(found)} sets of candidates came back for {len(ids)} questions; expected one each")
    rows = [{"id": id_, "fold": fold, **one.to_record()} for id_, one in zip(ids, found, strict=True)]
    atomic_write_bytes(path, _as_lines(rows))


def _read_rows(path: Path, ids: Sequence[str]) -> list[dict[str, Any]]:
    try:
        rows = [json.loads(line) for line in path.read_bytes().splitlines()]
        found = [row["id"] for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); delete this file and run again") from error
    if found != list(ids):
        raise CheckpointError(f"{path} does not hold the {len(ids)} questions of its chunk; delete it and run again")
    return rows


def _finish(folder: Path, rows: Sequence[dict[str, Any]], k: int) -> list[Candidates]:
    data = _as_lines(rows)
    found = [Candidates.from_record(row) for row in rows]
    atomic_write_bytes(folder / ROWS, data)
    manifest = {
        "questions": len(rows),
        "folds": k,
        "samples": sum(one.drawn for one in found),
        "empty_samples": sum(one.empty for one in found),
        "without_candidates": sum(not one.ranked for one in found),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    atomic_write_json(folder / MANIFEST, manifest)
    for leftover in folder.glob(".tmp-*"):  # of saves that were killed
        leftover.unlink(missing_ok=True)
    shutil.rmtree(folder / PARTS, ignore_errors=True)
    return found


def _as_lines(rows: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows).encode(
        "utf-8", "backslashreplace"
    )


def _digest(words: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(words)).encode()).hexdigest()
