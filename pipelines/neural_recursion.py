"""Reading by neural recursion (arXiv 2204.10019, section 4.2): the frozen LM, a connector, and the LM again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from frozenlm.recursion.neural import RecursiveLM
from frozenlm.recursion.sizes import require_decoder
from frozenlm.rows import Row, Tokens
from pipelines.build_recursion import module_sha256
from pipelines.components import Components
from pipelines.packing import Packed
from pipelines.reading import Reading
from pipelines.surface import clean

if TYPE_CHECKING:
    from pipelines.config import NeuralRecursion


class NeuralReader:
    """`pipelines.reading.Reader` of kind `neural_recursion`.

    Raises:
        ConfigError: the LM is not decoder-only.
        CheckpointError: connector or prompt are not trained yet, or of another LM, number of passes or size.
    """

    def __init__(self, parts: Components) -> None:
        require_decoder(parts.lm)
        self.config: NeuralRecursion = parts.config
        self.model = RecursiveLM(parts.lm, parts.connector, parts.prompt)
        self._prompt = parts.prompt_hash
        self._connector = module_sha256(parts.connector)

    def read(self, questions: Sequence[str], packed: Sequence[Packed]) -> list[Reading]:
        """See `Reader`."""
        block, surface = self.config.generation, self.config.surface
        rows: list[Row] = [[Tokens.of([*window.context_ids, *self.model.lm.close_ids])] for window in packed]
        generations = self.model.generate(
            rows, seed=self.config.seed, stop=tuple(block.stop), **block.model_dump(exclude={"stop"})
        )
        passes = tuple(f"pass_{number + 1}" for number in range(self.model.passes))
        found = []
        for window, made in zip(packed, generations, strict=True):
            texts = [kept.text for kept in window.kept]
            text = clean(made.text, texts, join_digits=surface.join_digits, as_in_passage=surface.as_in_passage)
            found.append(Reading(text, made.logprob, self._prompt, passes))
        return found

    def provenance(self) -> dict[str, Any]:
        """See `Reader`."""
        return {"prompt_sha256": self._prompt, "connector_sha256": self._connector}
