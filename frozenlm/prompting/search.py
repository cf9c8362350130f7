"""Which template and which words: found on labelled records, with the LM as it is.

`propose_templates`: LM-BFF (Gao et al. 2021, arXiv 2012.15723, section 5.2). A T5 reads a record with its label's word
and two gaps, "<extra_id_0> word <extra_id_1> text" or "text <extra_id_0> word <extra_id_1>", and fills them by beam
search; a template's score is the sum of its log-probabilities over all records, so one template suits them all. Beams
end at the third sentinel or at the end token.

`propose_words` (section 5.1): the tokens that are likeliest, on average, in the answer's place of a label's records.

`search`: candidates drawn by a seed, scored one by one, kept in a JSON file; a run that was stopped goes on, and a file
of another search is refused.
"""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frozenlm.checkpoint import atomic_write_json
from frozenlm.errors import CheckpointError, ConfigError
from frozenlm.lm import FrozenLM
from frozenlm.prompting.classify import Record, label_place
from frozenlm.prompting.filled import PromptHost, control_id, word_ids
from frozenlm.prompting.grammar import escaped, value_text
from frozenlm.prompting.labels import label_key
from frozenlm.prompting.scoring import answer_states, head
from frozenlm.prompting.template import Template
from frozenlm.prompting.verbalizer import Verbalizer
from frozenlm.rows import Row, Tokens

FORMAT = "frozenlm.prompt_search"


@dataclass(frozen=True)
class Candidate:
    """template: as `Template.parse` reads it. words: label -> word"""

    template: str
    words: Mapping[str, str]

    @property
    def key(self) -> str:
        """What it is called in the file."""
        return json.dumps([self.template, dict(self.words)], ensure_ascii=False, sort_keys=True)


@dataclass(frozen=True)
class Scored:
    """A candidate and its score; the higher the better."""

    candidate: Candidate
    score: float


def search(
    templates: Sequence[str],
    words: Mapping[str, Sequence[str]],
    score: Callable[[Candidate], float],
    *,
    trials: int,
    path: Path | str,
    about: str,
    seed: int = 0,
) -> list[Scored]:
    """Tries `trials` different candidates, the best first; ties in the order in which they were drawn.

    templates: to choose one from; words: label -> words to choose one from
    score: accuracy on a dev set, for instance
    path: the JSON file; what it holds already is not scored again
    about: what else the scores depend on (the LM's fingerprint, the dev set's name); another search's file is refused

    Raises: ConfigError for nothing to try; CheckpointError for a file that is damaged or of another search.
    """
    if not templates or not words or trials < 1 or not all(words.values()):
        raise ConfigError(
            f"search got {len(templates)} templates, words {dict(words)}, {trials} trials; nothing to try"
        )
    drawn = _drawn(templates, words, trials, seed)
    known = _read_scores(Path(path), about)
    found = []
    for candidate in drawn:
        if candidate.key not in known:
            known[candidate.key] = float(score(candidate))
            atomic_write_json(path, {"format": FORMAT, "about": about, "scores": known})
        found.append(Scored(candidate, known[candidate.key]))
    return sorted(found, key=lambda one: -one.score)


@torch.no_grad()
def propose_templates(
    lm: FrozenLM,
    records: Sequence[Record],
    verbalizer: Verbalizer,
    *,
    field: str = "text",
    label: str = "label",
    n: int = 5,
    beams: int = 20,
    max_tokens: int = 20,
) -> list[tuple[str, float]]:
    """Templates for one field that a seq2seq LM writes, with their summed log-probabilities (nats), the best first.

    None where no beam has ended within `max_tokens`.

    records: a few with their labels; all are read in one batch a step
    n: templates at most, of both orders together; beams: kept at each step; max_tokens: written at most

    Raises: ConfigError for an LM without sentinels, no record, or an unknown label.
    """
    sentinels = [control_id(lm.tokenizer, f"<extra_id_{k}>") for k in range(3)]
    if lm.kind != "encoder-decoder" or None in sentinels:
        raise ConfigError("templates are proposed by an encoder-decoder LM with the sentinels <extra_id_0..2>: T5, kin")
    if not records or n < 1 or beams < 1 or max_tokens < 2:
        raise ConfigError(f"{len(records)} records, n {n}, beams {beams}, max_tokens {max_tokens}; expected 1, 1, 1, 2")
    marks = [int(one) for one in sentinels if one is not None]
    found: dict[str, float] = {}
    for text_first in (True, False):
        rows = [_gapped(lm, record, verbalizer, field, label, marks, text_first) for record in records]
        for ids, score in _joint_beams(lm, rows, marks, beams, max_tokens):
            before, after = (escaped(lm.decode(part).strip()) for part in ids)
            parts = (
                [f"{{{field}}}", before, "{answer}", after]
                if text_first
                else [before, "{answer}", after, f"{{{field}}}"]
            )
            template = " ".join(part for part in parts if part)
            found[template] = max(score, found.get(template, score))
    return sorted(found.items(), key=lambda one: -one[1])[:n]


@torch.no_grad()
def propose_words(
    host: PromptHost, template: Template, records: Sequence[Record], *, label: str = "label", n: int = 10
) -> dict[str, list[str]]:
    """For each label the n words that are likeliest in the answer's place of its records, by mean log-probability.

    Only tokens that are a whole word by themselves: letters, which encode to that token again.

    Raises: ConfigError for no record, or one without a label; as `Template.fill`.
    """
    if not records:
        raise ConfigError("words are proposed from records, and there are none; give a few of each label")
    labels = sorted({label_key(record[label], where="a record") for record in records if label in record})
    places = [label_place(record, label, labels, f"record {number}") for number, record in enumerate(records)]
    filled = [template.fill(record, host) for record in records]
    logprobs = head(host, answer_states(host, filled)).log_softmax(dim=1)
    found = {}
    for place, name in enumerate(labels):
        own = torch.tensor([i for i, one in enumerate(places) if one == place], device=logprobs.device)
        ranked = logprobs.index_select(0, own).mean(dim=0).argsort(descending=True).tolist()
        found[name] = _words(host, ranked, n, template.spaced)
    return found


def _words(host: PromptHost, ranked: Sequence[int], n: int, spaced: bool) -> list[str]:
    words: list[str] = []
    for token in ranked:
        word = host.decode([token]).strip()
        if word.isalpha() and word not in words and word_ids(host, word, spaced=spaced) == [token]:
            words.append(word)
        if len(words) == n:
            break
    return words


def _drawn(templates: Sequence[str], words: Mapping[str, Sequence[str]], trials: int, seed: int) -> list[Candidate]:
    """Different candidates whose words differ, in the order of the draw."""
    generator = random.Random(seed)
    labels = sorted(words)
    whole = len(templates)
    for label in labels:
        whole *= len(words[label])
    if whole <= max(1000, 4 * trials):
        every = [
            Candidate(t, dict(zip(labels, own, strict=True)))
            for t, *own in product(templates, *(words[k] for k in labels))
        ]
        generator.shuffle(every)
        return [one for one in every if len(set(one.words.values())) == len(labels)][:trials]
    drawn: dict[str, Candidate] = {}
    for _ in range(100 * trials):
        one = Candidate(generator.choice(templates), {label: generator.choice(words[label]) for label in labels})
        if len(set(one.words.values())) == len(labels):
            drawn.setdefault(one.key, one)
        if len(drawn) == trials:
            break
    return list(drawn.values())


def _read_scores(path: Path, about: str) -> dict[str, float]:
    if not path.exists():
        return {}
    try:
        body: Any = json.loads(path.read_text(encoding="utf-8"))
        scores = {str(key): float(value) for key, value in body["scores"].items()}
        format_, kept = body["format"], body["about"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a search's file: {error}; move it away to start anew") from error
    if format_ != FORMAT or kept != about:
        raise CheckpointError(f"{path} belongs to the search {kept!r}, this one is {about!r}; give it another file")
    return scores


def _gapped(
    lm: FrozenLM, record: Record, verbalizer: Verbalizer, field: str, label: str, marks: Sequence[int], text_first: bool
) -> Row:
    """A record and its word with a gap on either side of the word."""
    text = lm.encode(value_text(record, field, name="the search", where="record"))
    place = label_place(record, label, verbalizer.labels, "record")
    word = verbalizer.ids(lm)[verbalizer.owners.index(place)]
    middle = [marks[0], *word, marks[1]]
    ids = [*text, *middle] if text_first else [*middle, *text]
    return [Tokens.of([*lm.bos_ids, *ids, *lm.close_ids])]


def _joint_beams(
    lm: FrozenLM, rows: Sequence[Row], marks: Sequence[int], beams: int, max_tokens: int
) -> list[tuple[tuple[list[int], list[int]], float]]:
    """(fill of the first gap, fill of the second) and its log-probability summed over all rows, the best first."""
    memory = lm.read(rows)
    alive: list[tuple[list[int], float]] = [([marks[0]], 0.0)]
    ended: list[tuple[tuple[list[int], list[int]], float]] = []
    for _ in range(max_tokens):
        grown: list[tuple[list[int], float]] = []
        for ids, score in alive:
            following = _following(lm, rows, memory, ids)
            following[marks[0]] = float("-inf")
            if marks[1] in ids:
                following[marks[1]] = float("-inf")
            else:  # the second gap has not begun, so nothing may end
                following[[marks[2], *lm.eos_ids]] = float("-inf")
            best = following.topk(min(beams, len(following)))
            grown += [([*ids, token], score + value) for value, token in zip(*map(Tensor.tolist, best), strict=True)]
        alive = []
        for ids, score in sorted(grown, key=lambda one: -one[1])[:beams]:
            if score == float("-inf"):
                continue
            if ids[-1] in (marks[2], *lm.eos_ids):
                at = ids.index(marks[1])
                ended.append(((ids[1:at], ids[at + 1 : -1]), score))
            else:
                alive.append((ids, score))
        if not alive:
            break
    return sorted(ended, key=lambda one: -one[1])


def _following(lm: FrozenLM, rows: Sequence[Row], memory: Any, ids: Sequence[int]) -> Tensor:
    """[V] on the CPU: log-probability of each next token, summed over the rows."""
    decoder_rows = [[Tokens((*lm.start_ids, *ids))]] * len(rows)
    logits = lm.forward([[]] * len(rows), memory=memory, decoder_rows=decoder_rows).logits
    return torch.stack([one[-1] for one in logits]).float().log_softmax(dim=1).sum(dim=0).cpu()
