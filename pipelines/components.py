"""The parts of one running pipeline, each made on first use, or handed in by the caller and then never touched."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import build
from pipelines.errors import ConfigError
from retrievers.check import name_of
from retrievers.types import Reranker, Retriever

if TYPE_CHECKING:
    from frozenlm.lm import FrozenLM
    from frozenlm.prompts.soft_prompt import SoftPrompt
    from frozenlm.recursion.connector import Connector

_METHODS = {
    "retriever": "retrieve",
    "reranker": "rerank",
    "lm": "generate",
    "prompt": "forward",
    "second_prompt": "forward",
    "plain_prompt": "forward",
    "connector": "forward",
}
NAMES = tuple(_METHODS)


def prompt_sha256(prompt: SoftPrompt | None) -> str | None:
    """SHA-256 of a soft prompt's vectors; None without one."""
    if prompt is None:
        return None
    vectors = prompt().detach().float().cpu().contiguous()
    return hashlib.sha256(vectors.numpy().tobytes()).hexdigest()


class Components:
    """Retriever, re-ranker, LM and what is trained around it, of one config.

    Args:
        config: a validated config.
        given: components by name that replace the config's own.
        allow_import: let a config name a retriever as `module:Class`.
        log: told what is done on the user's behalf, such as building an index on first use.

    Raises:
        ConfigError: an unknown component name, or an object without the method that its name asks for.
    """

    def __init__(
        self, config: Any, given: Mapping[str, Any], *, allow_import: bool = False, log: build.Log = lambda _: None
    ) -> None:
        for name, component in given.items():
            if name not in NAMES:
                raise ConfigError(f"unknown component {name!r}, expected one of {', '.join(NAMES)}")
            if component is not None and not callable(getattr(component, _METHODS[name], None)):
                raise ConfigError(
                    f"{name}={type(component).__name__} has no method {_METHODS[name]}(); see docs/custom_retriever.md"
                )
        self.config, self.allow_import, self.log = config, allow_import, log
        self.given = dict(given)
        self._made: dict[str, Any] = {}
        self._lock = threading.RLock()

    def _get(self, name: str, make: Any) -> Any:
        if name in self.given:
            return self.given[name]
        with self._lock:
            if name not in self._made:
                self._made[name] = make()
            return self._made[name]

    @property
    def retriever(self) -> Retriever:
        """The retriever; the config's index is opened on first use."""
        return self._get(
            "retriever", lambda: build.retriever(self.config, allow_import=self.allow_import, log=self.log)
        )

    @property
    def reranker(self) -> Reranker | None:
        """The re-ranker, or None."""
        return self._get("reranker", lambda: build.reranker(self.config, lambda: self.lm))

    @property
    def lm(self) -> FrozenLM:
        """The frozen LM."""
        return self._get("lm", lambda: build.frozen_lm(self.config.lm))

    @property
    def prompt(self) -> SoftPrompt | None:
        """The learned prompt, or None for zero-shot."""
        return self._get("prompt", self._load_prompt)

    def _load_prompt(self) -> SoftPrompt | None:
        prompt = build.trained_prompt(self.config, self.lm)
        if prompt is None and self.config.prompt is not None:
            self.log("no trained prompt in this workspace: reading zero-shot (prompt.missing: zero_shot)")
        return prompt

    @property
    def second_prompt(self) -> SoftPrompt | None:
        """The learned prompt of textual recursion's second pass, or None."""
        return self._get("second_prompt", self._load_second_prompt)

    def _load_second_prompt(self) -> SoftPrompt | None:
        block = self.config.second_pass.prompt
        prompt = build.soft_prompt(self.config, block, self.lm, key="second_pass.prompt")
        if prompt is None and block is not None:
            self.log(f"no trained prompt {block.name!r}: the second pass reads zero-shot (missing: zero_shot)")
        return prompt

    @property
    def plain_prompt(self) -> SoftPrompt | None:
        """The learned prompt of the plain pass that answers first in neural recursion, or None."""
        return self._get("plain_prompt", self._load_plain_prompt)

    def _load_plain_prompt(self) -> SoftPrompt | None:
        block = self.config.plain_prompt
        prompt = build.soft_prompt(self.config, block, self.lm, key="plain_prompt")
        if prompt is None and block is not None:
            self.log(f"no trained prompt {block.name!r}: the plain pass reads zero-shot (missing: zero_shot)")
        return prompt

    @property
    def connector(self) -> Connector:
        """The connector of neural recursion."""
        from pipelines import build_recursion

        return self._get("connector", lambda: build_recursion.connector(self.config, self.lm, self.log))

    @property
    def prompt_hash(self) -> str | None:
        """SHA-256 of the prompt's vectors, None for zero-shot."""
        return prompt_sha256(self.prompt)

    def corpus_path(self) -> Path | None:
        """The corpus file, where the config has one."""
        corpus = getattr(self.config, "corpus", None)
        return corpus.path if corpus is not None else None

    def close(self) -> None:
        """Release what was made here; components that were handed in are the caller's. A plug-in that cannot be closed
        does not cost the answers that are there: its error is logged."""
        with self._lock:
            for component in self._made.values():
                close = getattr(component, "close", None)
                if callable(close):
                    try:
                        close()
                    except Exception as error:
                        self.log(f"{name_of(component)}: close raised {type(error).__name__}: {error}")
            self._made.clear()
