"""`ClassificationPipeline`: labels of texts from a frozen encoder with a trained head, and a delta or none."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from frozenlm.saved_parts import PARTS_FILE
from pipelines import build_classification
from pipelines.answer import Answer
from pipelines.asked import Asked
from pipelines.build import frozen_encoder, module_folder
from pipelines.config import Classification
from pipelines.errors import ConfigError
from pipelines.stages import check_questions
from retrievers.files import sha256_file

if TYPE_CHECKING:
    from frozenlm.encoder import FrozenEncoder
    from frozenlm.encoder_tasks import PredictedLabel, TunedEncoder
    from retrievers.types import Hit

Input = str | tuple[str, str]


class ClassificationPipeline(Asked[Input]):
    """A pipeline of kind `classification`. Make it with `Pipeline.from_config`.

    An answer's text is the likeliest label, its score the natural logarithm of the label's probability. A text that is
    too long is cut as in training, and its answer says so.

    Raises:
        ConfigError: a component, since this kind takes none.
    """

    def __init__(self, config: Classification, given: Mapping[str, Any]) -> None:
        if given:
            raise ConfigError(f"a pipeline of kind classification has no use for a {next(iter(given))}; leave it out")
        self.config = config
        self._encoder: FrozenEncoder | None = None
        self._tuned: TunedEncoder | None = None

    @property
    def encoder(self) -> FrozenEncoder:
        """The frozen encoder."""
        if self._encoder is None:
            self._encoder = frozen_encoder(self.config.encoder)
        return self._encoder

    @property
    def tuned(self) -> TunedEncoder:
        """Head and delta.

        Raises:
            CheckpointError: not trained yet, damaged, or of another encoder.
        """
        if self._tuned is None:
            self._tuned = build_classification.trained_tuned(self.config, self.encoder)
        return self._tuned

    def predict(self, inputs: Sequence[Input]) -> list[PredictedLabel]:
        """The probability of every label for each text, or pair of texts.

        Raises:
            ConfigError: a pair where the config has no `text_b`, or one text where it has.
        """
        from frozenlm.encoder_tasks import LabelledText, predict

        pairs = [(one, None) if isinstance(one, str) else one for one in inputs]
        for first, second in pairs:
            if (second is None) != (self.config.text_b is None):
                raise ConfigError(
                    f"this config reads {'one text' if self.config.text_b is None else 'pairs of texts'}, got "
                    f"{first!r} {'alone' if second is None else 'and another'}"
                )
        return predict(self.encoder, self.tuned.head, self.tuned.delta, [LabelledText(*pair) for pair in pairs])  # type: ignore[arg-type]

    def answer(self, questions: Sequence[Input], hits: Sequence[Sequence[Hit]] | None = None) -> list[Answer]:
        """Label a batch of texts, or of pairs.

        Args:
            questions: N texts or pairs, worded as in the task's template. A text with a tab in it is a pair.
            hits: not used by this kind.

        Raises:
            ConfigError: a blank or over-long text, or as `predict`.
        """
        if hits is not None:
            raise ConfigError("a pipeline of kind classification reads no passages; leave hits out")
        inputs = [self._pair(one) if isinstance(one, str) else one for one in questions]
        check_questions([one if isinstance(one, str) else " ".join(one) for one in inputs])
        if not inputs:
            return []
        start = time.perf_counter()
        found = self.predict(inputs)
        seconds = (time.perf_counter() - start) / len(inputs)
        return [
            Answer(
                question=one if isinstance(one, str) else "\t".join(one),
                text=predicted.label,
                score=math.log(max(predicted.probabilities[predicted.label], 1e-45)),
                timings={"read": seconds},
                module=self.config.name,
                cut=("encoder",) * predicted.cut,
            )
            for one, predicted in zip(inputs, found, strict=True)
        ]

    def provenance(self) -> dict[str, Any]:
        """What a label came from: hashes of encoder, head and delta."""
        return {
            "kind": self.config.kind,
            "seed": self.config.seed,
            "encoder_fingerprint": self.encoder.fingerprint,
            "encoder_max_length": self.config.encoder.max_length,
            "module": sha256_file(module_folder(self.config, self.config.name) / PARTS_FILE),
        }

    def warmup(self) -> ClassificationPipeline:
        """Load everything now, so that the first text does not wait."""
        _ = self.tuned
        return self

    def close(self) -> None:
        """Release the model."""
        self._encoder = self._tuned = None

    def _pair(self, text: str) -> Input:
        first, tab, second = text.partition("\t")
        return (first, second) if tab and self.config.text_b is not None else text
