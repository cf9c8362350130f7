"""Reading by neural recursion (arXiv 2204.10019, section 4.2): the frozen LM, a connector, and the LM again; where the
config says so, only after a plain pass that was unsure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from frozenlm.recursion.neural import RecursiveLM
from frozenlm.recursion.selective import NeuralRecursion, Recurred
from frozenlm.recursion.sizes import require_decoder
from frozenlm.rows import Row, Tokens
from pipelines import build_recursion
from pipelines.components import Components, prompt_sha256
from pipelines.packing import Packed
from pipelines.reading import Reading
from pipelines.surface import clean

if TYPE_CHECKING:
    from frozenlm.prompts.soft_prompt import SoftPrompt
    from pipelines import config as c


def recurred(config: c.NeuralRecursion, recursion: NeuralRecursion, packed: Sequence[Packed]) -> list[Recurred]:
    """The answers to packed windows, decoded as the config says."""
    block, close = config.generation, recursion.model.lm.close_ids
    rows: list[Row] = [[Tokens.of([*window.context_ids, *close])] for window in packed]
    return recursion.answer(rows, seed=config.seed, stop=tuple(block.stop), **block.model_dump(exclude={"stop"}))


def modules(model: RecursiveLM, plain: SoftPrompt | None) -> dict[str, Any]:
    """SHA-256 of all that a threshold is tuned for."""
    last: Any = model.prompt
    prompts = [prompt_sha256(plain), prompt_sha256(last)]
    return {"prompts": prompts, "connector": build_recursion.module_sha256(model.connector)}


class NeuralReader:
    """`pipelines.reading.Reader` of kind `neural_recursion`.

    Raises:
        ConfigError: the LM is not decoder-only.
        CheckpointError: connector or a prompt are not trained yet, or of another LM, number of passes or size; no
            threshold has been tuned, and the config needs it.
    """

    def __init__(self, parts: Components) -> None:
        require_decoder(parts.lm)
        self.config: c.NeuralRecursion = parts.config
        model = RecursiveLM(parts.lm, parts.connector, parts.prompt)
        plain = parts.plain_prompt if self.config.when.rule == "below_confidence" else None
        self._modules = modules(model, plain)
        when = build_recursion.when(self.config, parts.lm, self._modules)
        self.recursion = NeuralRecursion(model, plain=plain, when=when)

    def read(self, questions: Sequence[str], packed: Sequence[Packed]) -> list[Reading]:
        """See `Reader`."""
        made = recurred(self.config, self.recursion, packed)
        return [self._reading(*pair) for pair in zip(made, packed, strict=True)]

    def provenance(self) -> dict[str, Any]:
        """See `Reader`."""
        plain, last = self._modules["prompts"]
        hashes = {"prompt_sha256": last, "plain_prompt_sha256": plain, "connector_sha256": self._modules["connector"]}
        return hashes | {"when_threshold": self.recursion.when.threshold}

    def _reading(self, one: Recurred, packed: Packed) -> Reading:
        surface = self.config.surface
        texts = [kept.text for kept in packed.kept]
        text = clean(one.generation.text, texts, join_digits=surface.join_digits, as_in_passage=surface.as_in_passage)
        prompt = self._modules["prompts"][len(one.passes) > 1]
        return Reading(text, one.generation.logprob, prompt, one.passes, confidence=one.confidence, timings=one.timings)
