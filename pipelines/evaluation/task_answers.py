"""Asking the LM: rows of tasks in, what it chose or wrote out.

Rows with choices are ranked (`frozenlm/ranking.py`), rows without are generated. Everything in `metrics.json` is
computed from the records made here, so training's dev scores, an evaluation and a comparison cannot disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from frozenlm.context_cache import ContextCache
from frozenlm.deltas.attach import Delta, using
from frozenlm.lm import BATCH_TOKENS, FrozenLM
from frozenlm.prompts.interface import PromptInput, PromptModule, prompted
from frozenlm.ranking import Normalize, rank_choices
from frozenlm.rows import Row, Tokens
from pipelines.errors import ConfigError, ShapeError
from pipelines.tasks.task import TaskRow

Encoded = tuple[Sequence[int], Sequence[Sequence[int]], PromptInput]
"""A row as the LM gets it: context ids, ids of each candidate (none for free text), what a prompt is written from."""
EncodeRow = Callable[[TaskRow], Encoded]
Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Asker:
    """The LM, what was trained around it, and how they are asked.

    Args:
        lm: the frozen LM.
        module: a prompt method or a delta; None asks the LM as it is.
        normalize: of choices, see `rank_choices`.
        max_new_tokens: of a free-text answer.
        stop: strings that end a free-text answer.
        clean: what is made of a generated text before it is scored.
        batch_tokens: the most tokens of a batch.
        memory_cache: of contexts, see `rank_choices`.
    """

    lm: FrozenLM
    module: PromptModule | Delta | None
    normalize: Normalize = "none"
    max_new_tokens: int = 32
    stop: tuple[str, ...] = ("\n",)
    clean: Callable[[str], str] = str.strip
    batch_tokens: int = BATCH_TOKENS
    memory_cache: ContextCache | None = None

    def records(self, task_names: Sequence[str], rows: Sequence[TaskRow], encoded: Sequence[Encoded]) -> list[Record]:
        """One record a row, in order: `id`, `task`, `prediction`, `references`; for a choice also `choice` and `gold`
        (positions in `choices`) and the `scores` of all.

        Raises:
            ConfigError: a row whose target is not among its choices.
            ShapeError: a row that does not fit the LM's window, or has another number of candidates than choices.
        """
        ranked = [i for i, row in enumerate(rows) if row.choices]
        written = [i for i, row in enumerate(rows) if not row.choices]
        for i in range(len(rows)):
            if len(rows[i].choices) != len(encoded[i][1]):
                raise ShapeError(
                    f"row {rows[i].id!r} has {len(rows[i].choices)} choices, but {len(encoded[i][1])} were encoded"
                )
        found: dict[int, Record] = {}
        try:
            with in_eval_mode(self.module), torch.no_grad(), using(self.lm, self.module) as prompt:
                chosen = self._chosen(prompt, [rows[i] for i in ranked], [encoded[i] for i in ranked])
                found |= zip(ranked, chosen, strict=True)
                found |= zip(written, self._written(prompt, [encoded[i] for i in written]), strict=True)
        except ShapeError as error:
            raise ShapeError(f"among the rows {rows[0].id!r} to {rows[-1].id!r}: {error}") from error
        return [
            {"id": row.id, "task": name} | found[i] | {"references": list(row.references or (row.target,))}
            for i, (name, row) in enumerate(zip(task_names, rows, strict=True))
        ]

    def _chosen(self, prompt: PromptModule | None, rows: Sequence[TaskRow], encoded: Sequence[Encoded]) -> list[Record]:
        gold = [gold_of(row) for row in rows]
        contexts, candidates, sources = (
            [one[0] for one in encoded],
            [one[1] for one in encoded],
            [e[2] for e in encoded],
        )
        scores = rank_choices(
            self.lm,
            contexts,
            candidates,
            prompt,
            sources,
            normalize=self.normalize,
            batch_tokens=self.batch_tokens,
            memory_cache=None if self.lm.is_changed else self.memory_cache,
        )
        records = []
        for row, right, own in zip(rows, gold, scores, strict=True):
            best = max(range(len(own)), key=own.__getitem__)  # of equals the first
            choice = {"prediction": row.choices[best], "choice": best, "gold": right}
            records.append({**choice, "choices": list(row.choices), "scores": own})
        return records

    def _written(self, prompt: PromptModule | None, encoded: Sequence[Encoded]) -> list[Record]:
        if not encoded:
            return []
        contexts: list[Row] = [[Tokens.of(context)] for context, _, _ in encoded]
        rows = prompted(prompt, contexts, [source for _, _, source in encoded])
        generations = self.lm.generate(
            rows, max_new_tokens=self.max_new_tokens, stop=self.stop, batch_tokens=self.batch_tokens
        )
        return [{"prediction": self.clean(made.text), "stopped": made.stopped} for made in generations]


@contextmanager
def in_eval_mode(module: Any) -> Iterator[None]:
    """Dropout off for as long as it lasts; anything but an `nn.Module` is left alone."""
    if not isinstance(module, torch.nn.Module):
        yield
        return
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)


def gold_of(row: TaskRow) -> int:
    """The place of the target among the choices.

    Raises:
        ConfigError: it is not there.
    """
    if row.target not in row.choices:
        raise ConfigError(
            f"row {row.id!r}: its target {row.target!r} is not among its choices {list(row.choices)}; check the task"
        )
    return row.choices.index(row.target)
