"""Templates and words that nobody wrote, for a search: a T5 writes the one, the LM itself says the other.

The likeliest first of both (`frozenlm/prompting/search.py`). The train records that they are proposed from are drawn by
the config's seed, the labels in turn, and templates are proposed for the config's first words (our choices). A template
that the LM cannot answer in its middle ends at its answer where the text comes first, as what follows would not be
read anyway; others that do not fit it are passed over and counted. What was proposed is kept in a file, so that a
search that goes on does not ask again.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frozenlm.prompting.parts import Field as Slot
from pipelines.build import Log
from pipelines.build_prompting import Record
from pipelines.config import PromptSearch, ProposeTemplates
from pipelines.config_prompting import all_fields
from pipelines.config_tasks import task_spec
from pipelines.errors import CheckpointError, ConfigError, ShapeError
from retrievers.files import sha256_json

if TYPE_CHECKING:
    from frozenlm.prompting.filled import PromptHost
    from frozenlm.prompting.template import Template

FORMAT = "frozenlm.prompt_proposals"


@dataclass(frozen=True)
class Proposals:
    """templates: the likeliest first. words: label -> words, the likeliest first. left_out: likelier templates that the
    LM cannot be asked with."""

    templates: list[str] = field(default_factory=list)
    words: dict[str, list[str]] = field(default_factory=dict)
    left_out: int = 0


def proposals(
    config: PromptSearch,
    host: PromptHost,
    first: Template,
    train: Sequence[Record],
    path: Path,
    *,
    about: str,
    log: Log = lambda _: None,
) -> Proposals:
    """What the config asks for; from `path` where it has been proposed before.

    Args:
        first: the template that words are proposed for.
        train: records that it is proposed from.
        about: what it depends on beside the config's own settings of it.

    Raises:
        ConfigError: the model that is to write templates is no T5.
        CheckpointError: `path` is damaged or of other proposals.
    """
    block, label = config.search, task_spec(config.task).label
    settings = block.model_dump(mode="json", include={"propose_templates", "propose_words"})
    asked = [settings, config.templates[0], config.first_words, config.seed]
    about = f"{about}, proposals {sha256_json(asked)[:12]}"
    if path.exists():
        return _read(path, about)
    templates: list[str] = []
    words: dict[str, list[str]] = {}
    left_out = 0
    if block.propose_templates is not None:
        log(f"{block.propose_templates.model} proposes templates")
        shown = _taking_turns(train, label, block.propose_templates.records, config.seed)
        templates, left_out = _templates(config, block.propose_templates, host, shown)
        log(f"proposed: {templates}; {left_out} left out, which this LM cannot be asked with")
    if block.propose_words is not None:
        from frozenlm.prompting.search import propose_words

        shown = _taking_turns(train, label, block.propose_words.records, config.seed)
        words = propose_words(host, first, shown, label=label, n=block.propose_words.n)
        log(f"proposed: {words}")
    from frozenlm.checkpoint import atomic_write_json

    found = Proposals(templates, words, left_out)
    atomic_write_json(path, {"format": FORMAT, "about": about} | asdict(found))
    return found


def _templates(
    config: PromptSearch, block: ProposeTemplates, host: PromptHost, records: Sequence[Record]
) -> tuple[list[str], int]:
    """The `n` likeliest templates that the host can be asked with, and how many were passed over for them."""
    from frozenlm.lm import FrozenLM
    from frozenlm.prompting.search import propose_templates
    from frozenlm.prompting.verbalizer import Verbalizer

    (text,) = all_fields(config.prompting.model_copy(update={"templates": config.templates}), config.task)
    written = propose_templates(
        FrozenLM.load(block.model, revision=block.revision),
        records,
        Verbalizer(config.first_words),
        field=text,
        label=task_spec(config.task).label,
        n=2 * block.beams * block.max_tokens,  # all of them
        beams=block.beams,
        max_tokens=block.max_tokens,
    )
    found: list[str] = []
    left_out = 0
    for source, _ in written:
        usable = _usable(source, host, records[0])
        left_out += usable is None
        if usable is not None and usable not in found:
            found.append(usable)
        if len(found) == block.n:
            break
    return found, left_out


def _usable(source: str, host: PromptHost, record: Record) -> str | None:
    """The template, or what of it stands up to the answer; None where the host cannot be asked with either."""
    from frozenlm.prompting.parts import Answer
    from frozenlm.prompting.template import Template

    whole = Template.parse(source)
    end = 1 + next(place for place, part in enumerate(whole.parts) if isinstance(part, Answer))
    begins_with_text = any(isinstance(part, Slot) for part in whole.parts[:end])
    for tried in (whole, Template(whole.parts[:end])) if begins_with_text else (whole,):
        try:
            tried.fill(record, host)
        except (ConfigError, ShapeError):
            continue
        return str(tried)
    return None


def _taking_turns(records: Sequence[Record], label: str, limit: int, seed: int) -> list[Record]:
    """At most `limit` records in a drawn order, the first of each label before the second of any."""
    shuffled = random.Random(seed).sample(list(records), len(records))
    turns: dict[str, Any] = defaultdict(count)
    return sorted(shuffled, key=lambda record: next(turns[record[label]]))[:limit]


def _read(path: Path, about: str) -> Proposals:
    try:
        body: Any = json.loads(path.read_text(encoding="utf-8"))
        found = Proposals(
            [str(source) for source in body["templates"]],
            {str(label): [str(word) for word in own] for label, own in body["words"].items()},
            int(body["left_out"]),
        )
        kept = (body["format"], body["about"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} does not hold proposals: {error}; remove it to have them made again") from error
    if kept != (FORMAT, about):
        raise CheckpointError(
            f"{path} belongs to the search {kept[1]!r}, this one is {about!r}; use another folder, or remove the "
            "file to have others proposed"
        )
    return found
