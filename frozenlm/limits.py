"""What may be fed to an LM: each refusal says which row, what it was and what was expected.

A row is never cut to fit. The window is the LM's number of positions, or less where the user says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from frozenlm.errors import CheckpointError, ConfigError, ShapeError
from frozenlm.memory import Memory
from frozenlm.rows import Row, row_length


def positions(config: Any) -> int | None:
    """How many positions the LM has; None if it has no such limit (T5, ALiBi models)."""
    text_config = config.get_text_config(decoder=True)
    limit = getattr(text_config, "max_position_embeddings", None)
    return int(limit) if isinstance(limit, int) and limit > 0 else None


@dataclass(frozen=True)
class Limits:
    """The window and the checks against it.

    Args:
        window: most tokens of a row with its memory and answer; None for no limit.
        positions: the LM's own limit.
        encodes: whether rows are an encoder's input, apart from the answer.
    """

    window: int | None
    positions: int | None
    encodes: bool

    @classmethod
    def of(cls, config: Any, window: int | None) -> "Limits":
        """From the model's config and the user's choice.

        Raises:
            ConfigError: a window below 1 or above what the LM has.
        """
        limit = positions(config)
        if window is not None and (window < 1 or (limit is not None and window > limit)):
            raise ConfigError(f"window must be in 1..{limit or 'any'}, got {window}: the LM has {limit} positions")
        return cls(window if window is not None else limit, limit, bool(config.is_encoder_decoder))

    def check_window(self, rows: Sequence[Row], memory: Memory | None, *, extra: Sequence[int]) -> None:
        """Every row fits, with its memory and `extra` tokens after it (of its answer, or to generate).

        Raises:
            ShapeError: naming the first row that does not.
        """
        if self.window is None:
            return
        before = [0] * len(rows) if memory is None else memory.lengths.tolist()
        for number, (row, read, more) in enumerate(zip(rows, before, extra, strict=True)):
            if read + row_length(row) + more > self.window:
                parts = f"{row_length(row)} tokens"
                parts += f" after a memory of {read}" if read else ""
                parts += f" and {more} more after it" if more else ""
                raise ShapeError(
                    f"row {number} is too long: {parts}, the window is {self.window}; shorten it or pack less"
                )

    def check_answers(self, rows: Sequence[Row], answers: Sequence[Sequence[int]], start: int, vocab_size: int) -> None:
        """One answer a row, none empty, ids in range; for an encoder-decoder also that they fit the decoder.

        Raises:
            ShapeError: otherwise.
        """
        if len(rows) != len(answers):
            raise ShapeError(f"{len(rows)} rows, but {len(answers)} answers; give one answer for each row")
        for number, answer in enumerate(answers):
            if len(answer) == 0:
                raise ShapeError(f"answer {number} is empty; give at least one token id (an eos id, for instance)")
            bad = [i for i in answer if not 0 <= i < vocab_size]
            if bad:
                raise ShapeError(
                    f"answer {number}: token id {bad[0]} is outside the LM's vocabulary 0..{vocab_size - 1}"
                )
            if self.encodes:
                self.check_decoder(start + len(answer) - 1)

    def check_decoder(self, length: int) -> None:
        """So many tokens fit the decoder of an encoder-decoder.

        Raises:
            ShapeError: otherwise.
        """
        if self.positions is not None and length > self.positions:
            raise ShapeError(
                f"the decoder would read {length} tokens, it has {self.positions} positions; ask for fewer"
            )


def shortened(fingerprint: str) -> str:
    """For messages: its beginning, and what is attached (`FrozenLM.changed`)."""
    name, plus, attached = fingerprint.partition("+")
    return f"{name[:16]}...{plus}{attached}"


def check_memory(rows: Sequence[Row], memory: Memory | None, fingerprint: str, dtype: Any) -> None:
    """The memory belongs to these rows and this LM.

    Raises:
        ShapeError: another number of rows, or another dtype.
        CheckpointError: read by another LM, or with something else attached.
    """
    if memory is None:
        return
    if memory.lm_fingerprint != fingerprint:
        raise CheckpointError(
            f"the memory was read by another LM, or with something else attached ({shortened(memory.lm_fingerprint)}, "
            f"this one is {shortened(fingerprint)}); read the rows again with this LM as it is now"
        )
    if len(memory) != len(rows):
        raise ShapeError(
            f"{len(rows)} rows go on from a memory of {len(memory)}; use memory.expand(n) or select(indices)"
        )
    if memory.dtype != dtype:
        raise ShapeError(f"the memory is {memory.dtype}, the LM {dtype}; read it again with the LM in this dtype")
