"""One batch for rows of different tasks: each row with its own prompt method, or with none.

Rows are lists of segments (`rows.py`), so a batch whose rows use ID-PT, several soft prompts and no prompt is one call
of the LM. A soft prompt that stands in front of the text is the same for all its inputs: the LM reads it once
(`PromptMemories`), and every row of that task goes on from there. An attention prefix is such a memory as it stands. No
paper; arXiv 2204.10019, section 2, is where one
frozen LM serves a mixture of tasks. Shapes: B rows.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch

from frozenlm.deltas.prefix_parameters import holds_prefixes
from frozenlm.errors import ShapeError
from frozenlm.memory import Memory
from frozenlm.prompts.interface import Constant, PromptInput, PromptModule, prompted
from frozenlm.rows import Row, Tokens

if TYPE_CHECKING:
    from frozenlm.lm import FrozenLM


@runtime_checkable
class Prefix(Protocol):
    """A trained attention prefix (`deltas/prefix_tuning.py`)."""

    def as_memory(self, lm: "FrozenLM") -> Memory:
        """The prefix as a memory of one row."""
        ...


class PromptMemories:
    """What the LM has read of soft prompts known in advance, and attention prefixes.

    lm: the LM that serves. For an encoder-decoder nothing is kept, since its encoder reads prompt and text together.
    """

    def __init__(self, lm: "FrozenLM") -> None:
        self.lm = lm
        self._read: dict[int, tuple[Any, Memory]] = {}

    def of(self, module: Any) -> Memory | None:
        """The memory of one row that has read the prompt, or holds the prefix; None where what is trained is not the
        same for every input, or is no memory of this LM."""
        if id(module) not in self._read:
            memory = self._made(module)
            if memory is None:
                return None
            self._read[id(module)] = (module, memory)  # the module is held, so that its id stays its own
        return self._read[id(module)][1]

    def _made(self, module: Any) -> Memory | None:
        if isinstance(module, Prefix):
            return module.as_memory(self.lm) if holds_prefixes(self.lm) else None
        if not isinstance(module, Constant) or module.position != "prefix" or self.lm.kind != "decoder":
            return None
        return self.lm.read([[module.segment()]])


def mixed_rows(
    contexts: Sequence[Sequence[int]],
    modules: Sequence[PromptModule | Prefix | None],
    inputs: Sequence[PromptInput],
    memories: PromptMemories,
) -> tuple[list[Row], Memory | None]:
    """Rows and memory for `FrozenLM.generate`, `score` and `forward`.

    contexts: B lists of token ids, opening and closing tokens included
    modules: B prompt methods, or prefixes that are memories of this LM; None leaves the LM as it is
    inputs: B things the prompts are written from

    Raises: ShapeError unless there are as many modules and inputs as contexts; what a module raises.
    """
    if not len(contexts) == len(modules) == len(inputs):
        raise ShapeError(f"{len(contexts)} contexts, {len(modules)} modules, {len(inputs)} inputs; give one each a row")
    rows: list[Row] = [[Tokens.of(context)] for context in contexts]
    read: list[Memory | None] = [memories.of(module) for module in modules]
    for module in {id(m): m for m in modules if isinstance(m, PromptModule)}.values():
        own = [i for i, m in enumerate(modules) if m is module and read[i] is None]
        if own:
            made = prompted(module, [rows[i] for i in own], [inputs[i] for i in own])
            for i, row in zip(own, made, strict=True):
                rows[i] = row
    return rows, _joined(read)


def _joined(read: Sequence[Memory | None]) -> Memory | None:
    """The rows' memories as one; a row without any gets one of length 0."""
    kinds = {id(memory): memory for memory in read if memory is not None}
    if not kinds:
        return None
    distinct = list(kinds.values())
    places = {key: place for place, key in enumerate(kinds)}
    if None in read:
        distinct.append(_nothing_read(distinct[0]))
    index = [places[id(memory)] if memory is not None else len(kinds) for memory in read]
    return Memory.concatenate(distinct).select(index)


def _nothing_read(like: Memory) -> Memory:
    return Memory(
        tuple(torch.zeros_like(t) for t in like.keys),
        tuple(torch.zeros_like(t) for t in like.values),
        torch.zeros_like(like.mask),
        torch.zeros_like(like.lengths),
        like.lm_fingerprint,
    )
