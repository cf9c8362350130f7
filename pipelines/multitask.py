"""`MultitaskPipeline`: inputs of different tasks in one batch, one frozen LM, each row with its own prompt or none."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from frozenlm.deltas.attach import Delta, using
from frozenlm.fingerprint import digest_tensors, fingerprint
from frozenlm.mixed import PromptMemories, mixed_rows
from frozenlm.prompts.interface import PromptInput, PromptModule
from pipelines import build_tasks
from pipelines.answer import Answer
from pipelines.asked import Asked
from pipelines.build import module_folder
from pipelines.components import Components
from pipelines.config import Multitask, Route
from pipelines.errors import ConfigError
from pipelines.evaluation.task_answers import in_eval_mode
from pipelines.stages import check_questions
from pipelines.surface import clean
from pipelines.tasks.encoding import RowEncoder, too_long
from retrievers.files import sha256_file

if TYPE_CHECKING:
    from frozenlm.decoding import Generation
    from frozenlm.encoder import FrozenEncoder
    from frozenlm.lm import FrozenLM
    from retrievers.types import Hit

_Asked = tuple[Sequence[int], PromptModule | Delta | None, PromptInput]
GIVEN = "(given)"  # name of a prompt that was handed in where the config has none; no config can hold this name


class MultitaskPipeline(Asked[str]):
    """A pipeline of kind `multitask`. Make it with `Pipeline.from_config`.

    Which module answers an input: the one that the caller names, else the first route whose words the input begins
    with, else the config's own `prompt` or `delta`. Rows with different prompts share one call of the LM, and each
    answer is what it would be alone, up to floating point; so do attention prefixes of a decoder-only LM, while rows of
    any other delta have a call of their own. Soft prompts in front of the text are read once. An input that is too long
    is cut as in training (`pipelines/tasks/encoding.py`), and its answer says so.

    Raises:
        ConfigError: a component that this kind has no use for, or a prompt that is no prompt method.
    """

    def __init__(self, config: Multitask, parts: Components) -> None:
        _check_given(parts.given)
        self.config, self.parts = config, parts
        self.blocks = {block.name: block for block in [config.trained, *config.modules] if block is not None}
        self._modules: dict[str, PromptModule | Delta] = {}
        self._hashes: dict[str, str | None] = {}
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
            given = getattr(self.parts.given.get("prompt"), "length", 0)
            self._coder = build_tasks.row_encoder(self.config, self.lm, soft_tokens=given)
        return self._coder

    @property
    def own_name(self) -> str | None:
        """Name of the config's own prompt, or of the one that was handed in; None where the LM answers as it is."""
        if self.parts.given.get("prompt", self) is None:
            return None
        if self.config.trained is None:
            return GIVEN if "prompt" in self.parts.given else None
        name: str = self.config.trained.name
        return name

    def module(self, name: str) -> PromptModule | Delta:
        """A trained prompt method or delta by name.

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
            module: Any = build_tasks.trained_module(self.config, self.blocks[name], self.lm, self.encoder)
            self._modules[name] = module.eval()
            self._hashes[name] = self._card_hash(name)
        return self._modules[name]

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
            tasks: N names of tasks, for prompts that go by the task, None where unknown. Without it routes decide.

        Raises:
            ConfigError: a blank or over-long input, an unknown module, or lists of another length.
        """
        if hits is not None:
            raise ConfigError("a pipeline of kind multitask reads no passages; leave hits out")
        check_questions(questions)
        if not questions:
            return []
        routes = [self._route(text) for text in questions]
        names = self._chosen(routes, modules)
        of_tasks = list(tasks) if tasks is not None else [None if route is None else route.task for route in routes]
        if len(of_tasks) != len(questions):
            raise ConfigError(f"tasks has {len(of_tasks)} names for {len(questions)} inputs; give one each")
        start = time.perf_counter()
        contexts, cut_for_lm = zip(*[self.coder.fitted(text) for text in questions], strict=True)
        chosen = [None if name is None else self.module(name) for name in names]
        inputs = [PromptInput(text, task) for text, task in zip(questions, of_tasks, strict=True)]
        cut_for_encoder = [too_long(module, [one])[0] for module, one in zip(chosen, inputs, strict=True)]
        asked = list(zip(contexts, chosen, inputs, strict=True))
        generations, seconds = self._generated(asked)
        timings = {"prompt": seconds / len(questions)}
        timings["read"] = (time.perf_counter() - start - seconds) / len(questions)
        return [
            Answer(
                question=question,
                text=clean(made.text, [], join_digits=self.config.surface.join_digits, as_in_passage=False),
                score=made.logprob,
                timings=timings,
                prompt=self._hash(name),
                module=name,
                cut=("lm",) * for_lm + ("encoder",) * for_encoder,
            )
            for question, name, made, for_lm, for_encoder in zip(
                questions, names, generations, cut_for_lm, cut_for_encoder, strict=True
            )
        ]

    def _generated(self, asked: Sequence[_Asked]) -> tuple[list[Generation], float]:
        """What the LM writes after each input, and the seconds that the prompts took. Rows with prompts, prefixes or
        nothing are one call of the LM; each other delta changes what the LM computes, and has a call of its own."""
        memories = self._memories = self._memories or PromptMemories(self.lm)
        block = self.config.generation
        settings = block.model_dump(exclude={"stop"}) | {"stop": tuple(block.stop), "seed": self.config.seed}
        calls: dict[int | None, list[int]] = {}
        for place, (_, module, _) in enumerate(asked):
            alone = isinstance(module, Delta) and memories.of(module) is None
            calls.setdefault(id(module) if alone else None, []).append(place)
        found: dict[int, Generation] = {}
        seconds = 0.0
        for key, places in calls.items():
            contexts, modules, inputs = zip(*[asked[place] for place in places], strict=True)
            delta = None if key is None else modules[0]
            began = time.perf_counter()
            with in_eval_mode(self.parts.given.get("prompt")), torch.no_grad(), using(self.lm, delta):
                prompts = [None] * len(places) if delta is not None else modules
                rows, memory = mixed_rows(contexts, prompts, inputs, memories)
                seconds += time.perf_counter() - began
                made = self.lm.generate(rows, memory=memory, row_numbers=places, **settings)
            found |= zip(places, made, strict=True)
        return [found[place] for place in range(len(asked))], seconds

    def provenance(self) -> dict[str, Any]:
        """What an answer came from: hashes of LM, encoder and modules."""
        return {
            "kind": self.config.kind,
            "seed": self.config.seed,
            "lm_fingerprint": self.lm.fingerprint,
            "lm_dtype": str(self.lm.dtype).removeprefix("torch."),
            "encoder_fingerprint": self.encoder.fingerprint if self.encoder is not None else None,
            "modules": {name: self._hash(name) for name in self._served()},
        }

    def warmup(self) -> MultitaskPipeline:
        """Load everything now, so that the first input does not wait."""
        for name in self._served():
            self.module(name)
        _ = self.coder
        return self

    def close(self) -> None:
        """Release the models."""
        self._modules.clear()
        self._hashes.clear()
        self._encoder = self._memories = self._coder = None
        self.parts.close()

    def _served(self) -> list[str]:
        """Names of the modules that an input may meet without being sent there by the caller."""
        routed = [route.module for route in self.config.routes]
        names = [self.own_name, *(block.name for block in self.config.modules), *routed]
        return list(dict.fromkeys(name for name in names if name is not None))

    def _route(self, text: str) -> Route | None:
        return next((route for route in self.config.routes if text.startswith(route.starts_with)), None)

    def _chosen(self, routes: Sequence[Route | None], modules: Sequence[str | None] | str | None) -> list[str | None]:
        if modules is None:
            return [self.own_name if route is None else route.module for route in routes]
        if isinstance(modules, str):
            return [modules] * len(routes)
        if len(modules) != len(routes):
            raise ConfigError(f"modules has {len(modules)} names for {len(routes)} inputs; give one each")
        return list(modules)

    def _hash(self, name: str | None) -> str | None:
        """SHA-256 of a module's card, which holds that of its tensors; of a module that was handed in, its tensors'."""
        if name is None:
            return None
        if name == self.own_name and "prompt" in self.parts.given and name not in self._hashes:
            given = self.parts.given["prompt"]
            self._hashes[name] = fingerprint(digest_tensors(given)) if hasattr(given, "named_parameters") else None
        return self._hashes[name] if name in self._hashes else self._card_hash(name)

    def _card_hash(self, name: str) -> str | None:
        card = module_folder(self.config, name) / "module.json"
        return sha256_file(card) if card.exists() else None


def _check_given(given: Mapping[str, Any]) -> None:
    for name, component in given.items():
        if name not in ("lm", "prompt"):
            raise ConfigError(f"a pipeline of kind multitask has no use for a {name}; leave it out")
        if name == "prompt" and component is not None and not isinstance(component, PromptModule):
            raise ConfigError(
                f"prompt={type(component).__name__} is no prompt method: it needs position, length and segments(); see "
                "frozenlm/prompts/interface.py"
            )
