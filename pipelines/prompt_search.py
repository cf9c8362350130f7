"""`frozenlm search-prompts`: the template and the words that get the most dev records right, with the LM as it is.

    scores.json     the score of every candidate that has been tried (`frozenlm/prompting/search.py`)
    proposed.json   what a T5 and the LM have proposed (`prompt_proposals.py`)
    best.yaml       a config of kind `prompting` with the best candidate, written last

A score is the accuracy on at most `limit` dev records that the config's seed draws (our choice: the first ones of a
file that is sorted by label would all have one label), the same for every candidate. The config's own first template
with its first words is scored before all others, beside the trials, and wins a tie. A candidate that the LM cannot be
asked with is scored -1 and counted; the templates and words that the config itself names must all be possible.

The best of many is chosen on these records, so its score there flatters it: measure it on the test split.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import build_prompting
from pipelines.build import Log, frozen_encoder
from pipelines.build_prompting import Record, labelled_records
from pipelines.config import PromptingJob, PromptSearch
from pipelines.config_tasks import task_spec
from pipelines.errors import ConfigError, ShapeError
from pipelines.evaluation.outputs import ResultFolder
from pipelines.prompt_proposals import Proposals, proposals
from pipelines.prompt_search_results import best_yaml
from retrievers.files import sha256_json

if TYPE_CHECKING:
    from torch import Tensor

    from frozenlm.prompting.demonstrations import Embed
    from frozenlm.prompting.ensemble import Ensemble
    from frozenlm.prompting.search import Candidate, Scored

SCORES, PROPOSED, BEST = "scores.json", "proposed.json", "best.yaml"
IMPOSSIBLE = -1.0


def search_prompts(
    config: PromptSearch, out: Path | str, *, restart: bool = False, log: Log = lambda _: None
) -> dict[str, Any]:
    """Search, and write what was found. What the folder holds already is neither scored nor proposed again.

    Args:
        restart: forget what the folder holds and begin again.
        log: told what happens, one line a candidate.

    Returns:
        `best` and `baseline` (score, template, words), `candidates` (the same of all, the best first), `tried`,
        `impossible`, `dev_records`, `proposed` (templates, words, templates_left_out), `lm_weights_changed`,
        `lm_weights`, and `best_yaml`, the file.

    Raises:
        ConfigError: no such records, a template or word of the config's own that a record or the LM does not fit, or
            another process writes there.
        CheckpointError: the folder holds a search with another LM, other records or settings, or a damaged file.
    """
    folder = ResultFolder(out, passages=False)
    with folder.locked():
        for name in (SCORES, PROPOSED, BEST) if restart else ():
            (folder.path / name).unlink(missing_ok=True)
        return _searched(config, folder.path.absolute(), log)


def _searched(config: PromptSearch, out: Path, log: Log) -> dict[str, Any]:
    from frozenlm.checkpoint import atomic_write_bytes
    from frozenlm.prompting.search import search

    scorer = Scorer(config, log)
    scorer.check_given()
    log(f"{len(scorer.records)} dev records, at most {config.search.trials} trials; what {out} holds is kept")
    settings: dict[str, Any] = {"path": out / SCORES, "about": scorer.about, "seed": config.seed}
    first = {label: [word] for label, word in config.first_words.items()}
    (baseline,) = search(config.templates[:1], first, scorer.score, trials=1, **settings)
    if baseline.score == IMPOSSIBLE:  # kept from when it was not the first
        scorer.score(baseline.candidate)
    more = scorer.proposals(out / PROPOSED)
    templates = [*config.templates, *(source for source in more.templates if source not in config.templates)]
    words = {label: list(dict.fromkeys([*own, *more.words.get(label, [])])) for label, own in config.words.items()}
    found = search(templates, words, scorer.score, trials=config.search.trials, **settings)
    every = [baseline, *(one for one in found if one.candidate != baseline.candidate)]
    ranked = sorted((one for one in every if one.score != IMPOSSIBLE), key=lambda one: -one.score)
    best, verification = ranked[0], scorer.host.verify()
    said = (
        f"Found by frozenlm search-prompts: accuracy {best.score:.4f} on {len(scorer.records)} dev records of "
        f"{config.task.name}, {baseline.score:.4f} with the first candidate; {len(every)} tried."
    )
    text = best_yaml(config, scorer.job(best.candidate), said)
    atomic_write_bytes(out / BEST, text.encode())
    return {
        "task": config.task.name,
        "best": _record(best),
        "baseline": _record(baseline),
        "tried": len(every),
        "impossible": len(every) - len(ranked),
        "dev_records": len(scorer.records),
        "proposed": {"templates": len(more.templates), "words": more.words, "templates_left_out": more.left_out},
        "lm_weights_changed": verification.changed,
        "lm_weights": verification.total,
        "best_yaml": str(out / BEST),
        "candidates": [_record(one) for one in ranked],
    }


def _record(one: Scored) -> dict[str, Any]:
    return {"score": one.score, "template": one.candidate.template, "words": dict(one.candidate.words)}


class Scorer:
    """The LM and the dev records; every candidate is asked of the same."""

    def __init__(self, config: PromptSearch, log: Log) -> None:
        self.config, self._log, self._scored = config, log, 0
        self.label = task_spec(config.task).label
        self.given = config.job(config.templates, config.first_words)
        own = [record for _, record in labelled_records(self.given, "dev")]
        self.records = drawn(own, config.search.limit, config.seed)
        self.host = build_prompting.host(self.given)

    @property
    def about(self) -> str:
        """What the scores depend on, beside the candidates."""
        config, prompting = self.config, self.config.prompting
        asking = prompting.model_dump(mode="json", exclude={"name", "templates", "words", "ensemble", "weights"})
        settings = {
            "prompting": asking,
            "input": config.input.model_dump(mode="json"),
            "task": config.task.model_dump(mode="json", include={"fields", "label"}),
            "dtype": str(self.host.dtype),
            "seed": config.seed if prompting.draws else None,
            "train": digest(self.train) if prompting.demonstrations is not None else None,
            "encoder": self._encoder.fingerprint if prompting.needs_encoder else None,
        }
        lm, records = self.host.fingerprint, digest(self.records)
        return f"LM {lm[:12]}, {len(self.records)} dev records {records[:12]}, settings {sha256_json(settings)[:12]}"

    @cached_property
    def train(self) -> list[Record]:
        """The train records, for demonstrations and proposals."""
        return [record for _, record in labelled_records(self.given, "train")]

    def check_given(self) -> None:
        """Word every dev record in every template of the config, and read its words.

        Raises:
            ConfigError, ShapeError: a record that does not fit, an answer where the LM gives none, or a word that the
                LM cannot write or not tell from another label's first.
        """
        from frozenlm.prompting.verbalizer import Verbalizer

        self._ensemble(self.given).fill(self.host, self.records)
        first = self.config.first_words
        for label, own in self.config.words.items():
            others = {word for name, word in first.items() if name != label}
            for word in own:
                if word not in others:
                    Verbalizer({**first, label: word}, pieces=self.given.prompting.pieces, name="words").ids(self.host)

    def proposals(self, path: Path) -> Proposals:
        """Templates and words beside the config's own, where it asks for any."""
        config = self.config
        if config.search.propose_templates is None and config.search.propose_words is None:
            return Proposals()
        first = self._ensemble(self.given).members[0].template
        about = f"{self.about}, train records {digest(self.train)[:12]}"
        return proposals(config, self.host, first, self.train, path, about=about, log=self._log)

    def job(self, candidate: Candidate) -> PromptingJob:
        """The candidate as a config."""
        return self.config.job([candidate.template], candidate.words)

    def score(self, candidate: Candidate) -> float:
        """Share of the dev records that it gets right; `IMPOSSIBLE` where the LM cannot be asked so.

        Raises:
            ConfigError, ShapeError: it is the config's first, and the LM cannot be asked so.
        """
        from frozenlm.prompting.classify import accuracy

        said = f"{candidate.template!r} with {', '.join(candidate.words.values())}"
        try:
            found = self._ensemble(self.job(candidate)).classify(self.host, self.records)
        except (ConfigError, ShapeError) as error:
            if (candidate.template, candidate.words) == (self.config.templates[0], self.config.first_words):
                raise
            self._log(f"impossible: {said}: {error}")
            return IMPOSSIBLE
        score = accuracy(found, self.records, label=self.label)
        cut, dropped = sum(one.cut > 0 for one in found), sum(one.dropped for one in found)
        notes = [f"{cut} inputs cut"] * bool(cut) + [f"{dropped} demonstrations dropped"] * bool(dropped)
        self._scored += 1
        self._log(f"{self._scored}: {score:.4f}  {said}{' (' + ', '.join(notes) + ')' if notes else ''}")
        return score

    def _ensemble(self, job: PromptingJob) -> Ensemble:
        return build_prompting.ensemble(job, lambda: self._embed)

    @cached_property
    def _encoder(self) -> Any:
        return frozen_encoder(self.config.encoder)  # type: ignore[arg-type]

    @cached_property
    def _embed(self) -> Embed:
        """Vectors of texts, each batch of them computed once for all candidates."""

        @cache
        def kept(texts: tuple[str, ...]) -> Tensor:
            found: Tensor = self._encoder.vectors(texts)
            return found

        return lambda texts: kept(tuple(texts))


def drawn(records: Sequence[Record], limit: int, seed: int) -> list[Record]:
    """At most `limit` of the records, in their order."""
    places = range(len(records))
    chosen = places if len(records) <= limit else sorted(random.Random(seed).sample(places, limit))
    return [records[place] for place in chosen]


def digest(records: Sequence[Record]) -> str:
    """SHA-256 of what is read of records."""
    return sha256_json(json.loads(json.dumps(records, default=str)))
