"""`PromptingPipeline`: labels of texts from a frozen LM as it is, asked by templates, learned or not."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from frozenlm.saved_parts import PARTS_FILE
from pipelines import build_prompting
from pipelines.answer import Answer
from pipelines.asked import Asked
from pipelines.build import frozen_encoder, module_folder
from pipelines.config import PromptingJob
from pipelines.config_prompting import all_fields
from pipelines.errors import ConfigError
from pipelines.stages import check_questions
from retrievers.files import sha256_file, sha256_json

if TYPE_CHECKING:
    from frozenlm.encoder import FrozenEncoder
    from frozenlm.prompting.classify import Prediction
    from frozenlm.prompting.ensemble import Ensemble
    from frozenlm.prompting.filled import PromptHost
    from retrievers.types import Hit

Input = str | Mapping[str, Any]


class PromptingPipeline(Asked[Input]):
    """A pipeline of kind `prompting`. Make it with `Pipeline.from_config`.

    An answer's text is the verbalizer's word for the likeliest label, its score the natural logarithm of the label's
    probability. Where a question had to be cut its answer says `lm`, and `demonstrations` where some did not fit; a
    batch that no demonstration fits at all is refused.

    Raises:
        ConfigError: a component, since this kind takes none.
    """

    def __init__(self, config: PromptingJob, given: Mapping[str, Any]) -> None:
        if given:
            raise ConfigError(f"a pipeline of kind prompting has no use for a {next(iter(given))}; leave it out")
        self.config = config
        self.fields = all_fields(config.prompting, config.task)
        self._host: PromptHost | None = None
        self._encoder: FrozenEncoder | None = None
        self._ensemble: Ensemble | None = None
        self._words: dict[str, str] | None = None

    @property
    def host(self) -> PromptHost:
        """The frozen LM, or masked LM."""
        if self._host is None:
            self._host = build_prompting.host(self.config)
        return self._host

    @property
    def encoder(self) -> FrozenEncoder | None:
        """The frozen encoder that chooses demonstrations; None where none is needed."""
        block = self.config.encoder
        if self._encoder is None and block is not None and self.config.prompting.needs_encoder:
            self._encoder = frozen_encoder(block)
        return self._encoder

    @property
    def ensemble(self) -> Ensemble:
        """The prompts, with their demonstrations.

        Raises:
            CheckpointError: what is learned has not been trained yet, is damaged, or of another LM.
        """
        if self._ensemble is None:
            learned = build_prompting.trained_learned(self.config, self.host)
            self._ensemble = build_prompting.ensemble(self.config, lambda: self.encoder.vectors, learned)  # type: ignore[union-attr]
        return self._ensemble

    def predict(self, inputs: Sequence[Input]) -> list[Prediction]:
        """The probability of every label, as the data have it, for each input.

        Args:
            inputs: N texts, or mappings with the templates' fields.

        Raises:
            ConfigError: another number of texts than the templates have fields, a word that the LM cannot write, or
                demonstrations that do not fit.
        """
        return self.ensemble.classify(self.host, [self._record(one) for one in inputs])

    def answer(self, questions: Sequence[Input], hits: Sequence[Sequence[Hit]] | None = None) -> list[Answer]:
        """Label a batch of inputs.

        Args:
            questions: N texts, each the value of the templates' field, without the template's own words (of a
                promptsource task: what its template writes); where there are several fields, their values in order of
                first use with tabs between; or mappings of fields.
            hits: not used by this kind.

        Raises:
            ConfigError: a blank or over-long text, or as `predict`.
        """
        if hits is not None:
            raise ConfigError("a pipeline of kind prompting reads no passages; leave hits out")
        records = [self._record(one) for one in questions]
        if not records:
            return []
        texts = ["\t".join(str(record.get(field)) for field in self.fields) for record in records]
        check_questions(texts)
        start = time.perf_counter()
        found = self.predict(records)
        seconds = (time.perf_counter() - start) / len(records)
        words = self.words
        return [
            Answer(
                question=text,
                text=words[predicted.label],
                score=math.log(max(predicted.probabilities[predicted.label], 1e-45)),
                timings={"read": seconds},
                module=self.config.prompting.name,
                cut=("lm",) * bool(predicted.cut) + ("demonstrations",) * bool(predicted.dropped),
            )
            for text, predicted in zip(texts, found, strict=True)
        ]

    @property
    def words(self) -> dict[str, str]:
        """Label as the data have it -> the word of the task's verbalizer, which is what is answered; of a promptsource
        task its answer choices, which are both."""
        if self._words is None:
            self._words = build_prompting.label_words(self.config.task)
        return self._words

    def provenance(self) -> dict[str, Any]:
        """What a label came from: hashes of LM, encoder, settings and what was learned."""
        config, encoder = self.config, self.encoder
        settings = config.model_dump(mode="json", include={"prompting", "input"})
        task = config.task.model_dump(mode="json", include={"template", "verbalizer", "fields", "label"})
        if config.task.promptsource is not None:  # its wording is in the inputs, which are hashed too
            task["choices"] = list(self.words)
        return {
            "kind": config.kind,
            "seed": config.seed,
            "lm_fingerprint": self.host.fingerprint,
            "lm_dtype": str(self.host.dtype).removeprefix("torch."),
            "encoder_fingerprint": encoder.fingerprint if encoder is not None else None,
            "prompting": config.prompting.name,
            "config_sha256": sha256_json(settings | {"task": task}),
            "module": self._module_sha256() if config.prompting.learns else None,
        }

    def warmup(self) -> PromptingPipeline:
        """Load everything now, so that the first text does not wait."""
        _ = self.host, self.ensemble
        return self

    def close(self) -> None:
        """Release the models."""
        self._host = self._encoder = self._ensemble = None

    def _module_sha256(self) -> str:
        return sha256_file(module_folder(self.config, self.config.prompting.name) / PARTS_FILE)

    def _record(self, given: Input) -> Mapping[str, Any]:
        if isinstance(given, Mapping):
            return given
        check_questions([given])
        values = given.split("\t", len(self.fields) - 1)
        if len(values) != len(self.fields):
            raise ConfigError(
                f"this config reads {len(self.fields)} texts ({', '.join(self.fields)}), got {len(values)} in "
                f"{given[:60]!r}; put a tab between them"
            )
        return dict(zip(self.fields, values, strict=True))
