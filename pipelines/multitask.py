"""`MultitaskPipeline`: inputs of different tasks in one batch, one frozen LM, each row with its own prompt or none."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, overload

from frozenlm.mixed import PromptMemories, mixed_rows
from frozenlm.prompts.interface import PromptInput, PromptModule
from pipelines import build_tasks
from pipelines.answer import Answer
from pipelines.build import module_folder
from pipelines.components import Components
from pipelines.config import Multitask
from pipelines.errors import ConfigError
from pipelines.stages import check_questions
from pipelines.surface import clean
from pipelines.tasks.encoding import RowEncoder
from retrievers.files import sha256_file

if TYPE_CHECKING:
    from frozenlm.encoder import FrozenEncoder
    from frozenlm.lm import FrozenLM
    from retrievers.types import Hit


class MultitaskPipeline:
    """A pipeline of kind `multitask`. Make it with `Pipeline.from_config`.

    Which module answers an input: the one that the caller names, else the first route whose words the input begins
    with, else the config's own `prompt`. Rows with different modules share one call of the LM, and each answer is what
    it would be alone, up to floating point. Soft prompts in front of the text are read once.
    """

    def __init__(self, config: Multitask, parts: Components) -> None:
        self.config, self.parts = config, parts
        self.blocks = {block.name: block for block in [config.prompt, *config.modules] if block is not None}
        self._modules: dict[str, PromptModule] = {}
        self._encoder: FrozenEncoder | None = None
        self._memories: PromptMemories | None = None
        self._coder: RowEncoder | None = None

    @property
    def lm(self) -> FrozenLM:
        """The frozen LM."""
        return self.parts.lm

    @property
    def encoder(self) -> FrozenEncoder | None:
        """The frozen encoder of the prompt generators; None where the config has none."""
        if self._encoder is None:
            self._encoder = build_tasks.encoder(self.config)
        return self._encoder

    @property
    def coder(self) -> RowEncoder:
        """How inputs become tokens."""
        if self._coder is None:
            self._coder = build_tasks.row_encoder(self.config, self.lm)
        return self._coder

    @property
    def own_name(self) -> str | None:
        """Name of the config's own prompt; None where the LM answers as it is."""
        if self.config.prompt is None or self.parts.given.get("prompt", self) is None:
            return None
        return self.config.prompt.name

    def module(self, name: str) -> PromptModule:
        """A trained prompt method by name.

        Raises:
            ConfigError: no such name in the config.
            CheckpointError: not trained yet, damaged, or of another LM or encoder.
        """
        if name == self.own_name and "prompt" in self.parts.given:
            given: PromptModule = self.parts.given["prompt"]
            return given
        if name not in self.blocks:
            raise ConfigError(f"no module {name!r} in this config; it has {sorted(self.blocks)}")
        if name not in self._modules:
            self._modules[name] = build_tasks.trained_prompt(self.config, self.blocks[name], self.lm, self.encoder)
        return self._modules[name]

    @overload
    def __call__(self, questions: str) -> Answer: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, questions: Sequence[str]) -> list[Answer]: ...
    def __call__(self, questions: str | Sequence[str]) -> Answer | list[Answer]:
        """One answer for one input, a list for a list. See `answer`."""
        return self.answer([questions])[0] if isinstance(questions, str) else self.answer(questions)

    def answer(
        self,
        questions: Sequence[str],
        hits: Sequence[Sequence[Hit]] | None = None,
        *,
        modules: Sequence[str | None] | str | None = None,
        tasks: Sequence[str | None] | None = None,
    ) -> list[Answer]:
        """Answer a batch of inputs.

        Args:
            questions: N inputs, worded as in the tasks' templates.
            hits: not used by this kind.
            modules: N names of prompts, a name that is None for the LM as it is; or one name for all. Without it routes
                decide.
            tasks: N names of tasks, for prompts that go by the task; None where unknown.

        Raises:
            ConfigError: a blank or over-long input, an unknown module, or lists of another length.
        """
        if hits is not None:
            raise ConfigError("a pipeline of kind multitask reads no passages; leave hits out")
        check_questions(questions)
        if not questions:
            return []
        names = self._chosen(questions, modules)
        of_tasks = list(tasks) if tasks is not None else [None] * len(questions)
        if len(of_tasks) != len(questions):
            raise ConfigError(f"tasks has {len(of_tasks)} names for {len(questions)} inputs; give one each")
        start = time.perf_counter()
        if self._memories is None:
            self._memories = PromptMemories(self.lm)
        rows, memory = mixed_rows(
            [self.coder.context(text) for text in questions],
            [None if name is None else self.module(name) for name in names],
            [PromptInput(text, task) for text, task in zip(questions, of_tasks, strict=True)],
            self._memories,
        )
        prompted = time.perf_counter()
        block = self.config.generation
        generations = self.lm.generate(
            rows, memory=memory, seed=self.config.seed, stop=tuple(block.stop), **block.model_dump(exclude={"stop"})
        )
        done = time.perf_counter()
        timings = {"prompt": (prompted - start) / len(questions), "read": (done - prompted) / len(questions)}
        return [
            Answer(
                question=question,
                text=clean(made.text, [], join_digits=self.config.surface.join_digits, as_in_passage=False),
                score=made.logprob,
                timings=timings,
                prompt=self._hash(name),
                module=name,
            )
            for question, name, made in zip(questions, names, generations, strict=True)
        ]

    def provenance(self) -> dict[str, Any]:
        """What an answer came from: hashes of LM, encoder and modules."""
        return {
            "kind": self.config.kind,
            "seed": self.config.seed,
            "lm_fingerprint": self.lm.fingerprint,
            "lm_dtype": str(self.lm.dtype).removeprefix("torch."),
            "encoder_fingerprint": self.encoder.fingerprint if self.encoder is not None else None,
            "modules": {name: self._hash(name) for name in self.blocks},
        }

    def warmup(self) -> MultitaskPipeline:
        """Load everything now, so that the first input does not wait."""
        for name in self.blocks:
            self.module(name)
        _ = self.coder
        return self

    def close(self) -> None:
        """Release the models."""
        self._modules.clear()
        self._encoder = self._memories = self._coder = None
        self.parts.close()

    def __enter__(self) -> MultitaskPipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _chosen(self, texts: Sequence[str], modules: Sequence[str | None] | str | None) -> list[str | None]:
        if modules is None:
            routes: Mapping[str, str | None] = {route.starts_with: route.module for route in self.config.routes}
            return [
                next((name for words, name in routes.items() if text.startswith(words)), self.own_name)
                for text in texts
            ]
        if isinstance(modules, str):
            return [modules] * len(texts)
        if len(modules) != len(texts):
            raise ConfigError(f"modules has {len(modules)} names for {len(texts)} inputs; give one each")
        return list(modules)

    def _hash(self, name: str | None) -> str | None:
        """SHA-256 of a module's card, which holds that of its tensors."""
        card: Path | None = None if name is None else module_folder(self.config, name) / "module.json"
        return sha256_file(card) if card is not None and card.exists() else None
