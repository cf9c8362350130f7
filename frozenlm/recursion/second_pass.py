"""What the second pass of textual recursion reads (Levine et al. 2022, arXiv 2204.10019, section 4.1): the question and
the candidates of the first pass, in a template.

The paper names neither template, order nor what happens when there is no room; all of it is our choice. Candidates are
listed in one run, parted by a separator; where a candidate has the separator's sign in it, a space takes its place,
since one answer would otherwise be read as two. The filled template is encoded as one text, as any tokenizer likes it
best. When it does not fit, whole candidates are left out, the worst first, and counted. Without a candidate the slot
holds `none`, and the second pass reads its question all the same: its prompt has learned on such rows too.
"""

import random
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from frozenlm.errors import ConfigError, ShapeError
from frozenlm.recursion.candidates import Candidate
from frozenlm.train_data import derived_seed

if TYPE_CHECKING:
    from frozenlm.lm import FrozenLM

Order = Literal["best_first", "best_last", "shuffled"]
SLOTS = ("candidates", "question")


@dataclass(frozen=True)
class SecondPassTemplate:
    """How question and candidates become text.

    text: with the slots {candidates} and {question}, each once, in any order; {{ and }} are braces
    separator: stands between two candidates
    order: "shuffled" is another order for every question, the same every time
    none: what the slot holds without a candidate
    seed: of the shuffled order

    Raises: ConfigError for a slot that is missing, repeated or unknown, a blank separator, or an unknown order.
    """

    text: str = "question : {question} candidates : {candidates} answer :"
    separator: str = " ; "
    order: Order = "best_first"
    none: str = ""
    seed: int = 0
    _parts: tuple[tuple[str, str | None], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_parts", _parse(self.text))
        if not self.separator.strip():
            raise ConfigError(f"separator is {self.separator!r}; expected a visible sign, such as ' ; ' or ' or '")
        if self.order not in get_args(Order):
            raise ConfigError(f"order is {self.order!r}; expected one of {get_args(Order)}")

    def fill(self, question: str, candidates: Sequence[str]) -> str:
        """The text for candidates that are in order. Braces in them mean nothing."""
        values = {"question": question, "candidates": self.separator.join(candidates) or self.none}
        return "".join(literal + (values[slot] if slot else "") for literal, slot in self._parts)

    def arranged(self, question: str, ranked: Sequence[Candidate]) -> list[Candidate]:
        """Candidates, given best first, as they are listed."""
        if self.order == "best_last":
            return list(ranked)[::-1]
        if self.order == "shuffled":
            return random.Random(derived_seed("order", self.seed, question)).sample(list(ranked), len(ranked))
        return list(ranked)

    def free_of_separator(self, text: str) -> str:
        """A candidate that cannot be read as two."""
        return " ".join(text.replace(self.separator.strip(), " ").split())


@dataclass(frozen=True)
class SecondPassRow:
    """One row of the second pass, without a prompt.

    text: the filled template
    context: ids of everything before the answer, as `lm_tasks.Example` wants them
    behind: how many of them were given as `before`
    listed: the candidates in the text, as they stand there
    dropped: candidates left out for want of room, or since nothing was left of their text
    """

    text: str
    context: tuple[int, ...]
    behind: int
    listed: tuple[Candidate, ...]
    dropped: int

    @property
    def empty(self) -> bool:
        """Whether the second pass reads no candidate at all."""
        return not self.listed


def second_pass_rows(
    lm: "FrozenLM",
    questions: Sequence[str],
    candidates: Sequence[Sequence[Candidate]],
    template: SecondPassTemplate,
    *,
    before: Sequence[Sequence[int]] | None = None,
    soft_tokens: int = 0,
    answer_reserve: int = 32,
    max_tokens: int | None = None,
    clean: Callable[[str], str] = str,
) -> list[SecondPassRow]:
    """B rows. The budget of ids is the window less `answer_reserve` and `soft_tokens`.

    candidates: of each question, best first
    before: ids in front of the template: control tokens, an opening, passages; the LM's `bos_ids` where None
    soft_tokens: length of the prompt that will stand in the row
    answer_reserve: tokens kept free for the answer
    max_tokens: a window smaller than the LM's
    clean: takes from a question or a candidate what could be read as the template's own words

    Raises: ShapeError when the question does not fit even without candidates, or for lists of different lengths.
    """
    opened = [lm.bos_ids] * len(questions) if before is None else before
    if not len(questions) == len(candidates) == len(opened):
        raise ShapeError(
            f"{len(questions)} questions, {len(candidates)} lists of candidates and {len(opened)} beginnings; "
            "give one of each a question"
        )
    windows = [size for size in (lm.window, max_tokens) if size is not None]
    room = min(windows) - answer_reserve - soft_tokens - len(lm.close_ids) if windows else None
    drafts = [
        _Draft.of(clean(question), ranked, template, clean)
        for question, ranked in zip(questions, candidates, strict=True)
    ]
    encoded = lm.encode_batch([draft.text(len(draft.usable)) for draft in drafts])
    rows = []
    for number, (draft, ids, first) in enumerate(zip(drafts, encoded, opened, strict=True)):
        kept = len(draft.usable)
        while room is not None and len(first) + len(ids) > room:
            if kept == 0:
                raise ShapeError(
                    f"question {number} takes {len(ids)} tokens without any candidate, behind {len(first)} others; "
                    f"{room} are there after answer_reserve={answer_reserve} and {soft_tokens} soft tokens; "
                    "shorten it, pack less or raise the window"
                )
            kept -= 1
            ids = lm.encode(draft.text(kept))
        rows.append(
            SecondPassRow(
                text=draft.text(kept),
                context=(*first, *ids, *lm.close_ids),
                behind=len(first),
                listed=tuple(draft.listed(kept)),
                dropped=draft.offered - kept,
            )
        )
    return rows


@dataclass(frozen=True)
class _Draft:
    """A question and its candidates on the way into the template; usable: cleaned, best first."""

    question: str
    usable: tuple[Candidate, ...]
    offered: int
    template: SecondPassTemplate

    @classmethod
    def of(
        cls, question: str, ranked: Sequence[Candidate], template: SecondPassTemplate, clean: Callable[[str], str]
    ) -> "_Draft":
        shown = [Candidate(template.free_of_separator(clean(c.text)), c.count, c.logprob) for c in ranked]
        return cls(question, tuple(one for one in shown if one.text), len(ranked), template)

    def listed(self, kept: int) -> list[Candidate]:
        return self.template.arranged(self.question, self.usable[:kept])

    def text(self, kept: int) -> str:
        return self.template.fill(self.question, [one.text for one in self.listed(kept)])


def _parse(text: str) -> tuple[tuple[str, str | None], ...]:
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError as error:
        raise ConfigError(f"template {text!r} cannot be read ({error}); write {{{{ and }}}} for braces") from error
    for _, slot, form, conversion in parts:
        if slot is not None and (slot not in SLOTS or form or conversion):
            raise ConfigError(f"template {text!r} has the slot {{{slot}}}; allowed are {{candidates}} and {{question}}")
    for wanted in SLOTS:
        if (found := sum(slot == wanted for _, slot, _, _ in parts)) != 1:
            raise ConfigError(f"template {text!r} has the slot {{{wanted}}} {found} times; expected it once")
    return tuple((literal, slot) for literal, slot, _, _ in parts)
