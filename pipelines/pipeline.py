"""`Pipeline`: a config made runnable. Questions in, answers with their sources out; nothing is loaded before it is
needed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import stages
from pipelines.answer import Answer
from pipelines.asked import Asked
from pipelines.components import Components
from pipelines.config import (
    READS,
    Classification,
    Job,
    MethodComparison,
    Multitask,
    PromptingJob,
    PromptSearch,
    retrieves,
)
from pipelines.corpora import corpus_sha256, passages
from pipelines.errors import ConfigError, retrieval_errors
from pipelines.loader import load_config
from pipelines.readers import reader_of
from pipelines.reading import Reader
from retrievers.check import fingerprint_of
from retrievers.types import Hit

if TYPE_CHECKING:
    from frozenlm.lm import FrozenLM
    from pipelines.classification import ClassificationPipeline
    from pipelines.evaluation.questions import Question
    from pipelines.multitask import MultitaskPipeline
    from pipelines.prompting import PromptingPipeline


class Pipeline(Asked[str]):
    """One runnable job. Make it with `Pipeline.from_config`.

    A pipeline of kind `frozen_reader` retrieves, re-ranks, packs and reads; `closed_book` only reads; the two kinds of
    recursion do either, in several passes; `retrieval` and `reranker` stop at the passages (their answers have no
    text). A config of kind `multitask` makes a `pipelines.multitask.MultitaskPipeline` instead, which is used alike.
    Answers do not depend on how questions are batched, up to floating point.
    """

    def __init__(self, config: Any, parts: Components) -> None:
        self.config = config
        self.parts = parts
        self._reader: Reader | None = None

    @classmethod
    def from_config(
        cls,
        source: str | Path | Mapping[str, Any] | Job,
        *,
        overrides: Sequence[str] = (),
        allow_import: bool = False,
        log: Callable[[str], None] = lambda _: None,
        **components: Any,
    ) -> Pipeline | MultitaskPipeline | ClassificationPipeline | PromptingPipeline:
        """A pipeline from a config. Nothing is read but the config itself: models and indexes load on first use.

        Args:
            source: path of a YAML file, name of a packaged config such as "frozen_reader.yaml", a mapping, or a
            config object.
            overrides: settings such as "retriever.members.bm25.k1=1.2".
            allow_import: let the config name a retriever as `module:Class`. A config file alone can never import code.
            log: told what is done on the user's behalf.
            components: `retriever=`, `reranker=`, `lm=`, `prompt=`, and of recursion `second_prompt=`, `connector=`,
                `plain_prompt=`: objects that replace the config's own.

        Raises:
            ConfigError: every fault of the config, an unknown component, or a config of a comparison or a search.
        """
        config = load_config(source, overrides=overrides)
        if isinstance(config, MethodComparison):
            raise ConfigError("a config of kind method_comparison is run by `frozenlm compare-methods`")
        if isinstance(config, PromptSearch):
            raise ConfigError("a config of kind prompt_search is run by `frozenlm search-prompts`")
        if isinstance(config, Classification):
            from pipelines.classification import ClassificationPipeline

            return ClassificationPipeline(config, components)
        if isinstance(config, PromptingJob):
            from pipelines.prompting import PromptingPipeline

            return PromptingPipeline(config, components)
        parts = Components(config, components, allow_import=allow_import, log=log)
        if isinstance(config, Multitask):
            from pipelines.multitask import MultitaskPipeline

            return MultitaskPipeline(config, parts)
        return cls(config, parts)

    def answer(self, questions: Sequence[str], hits: Sequence[Sequence[Hit]] | None = None) -> list[Answer]:
        """Answer a batch.

        Args:
            questions: N questions.
            hits: N lists of passages to read instead of retrieving any.

        Raises:
            ConfigError: a blank or over-long question, or `hits` of another length than `questions`.
            RetrieverError: the retriever broke its contract.
        """
        stages.check_questions(questions)
        if hits is not None and len(hits) != len(questions):
            raise ConfigError(f"hits has {len(hits)} lists for {len(questions)} questions; give one list a question")
        if not questions:
            return []
        clock = _Clock(len(questions))
        searches = retrieves(self.config)
        found: list[list[Hit]] = [list(h) for h in hits] if hits is not None else [[] for _ in questions]
        if searches and hits is None:
            found = clock("retrieve", lambda: stages.retrieve(self.parts, questions, self.config.retrieve_k))
        ranked = found
        if (searches and getattr(self.config, "reranker", None) is not None) or "reranker" in self.parts.given:
            ranked = clock("rerank", lambda: stages.rerank(self.parts, questions, found))
        if not isinstance(self.config, READS):
            return [
                Answer(question=q, text=None, passages=r, retrieved=f, timings=clock.seconds)
                for q, r, f in zip(questions, ranked, found, strict=True)
            ]
        packed = clock("pack", lambda: stages.pack_all(self.parts, questions, ranked))
        readings = clock("read", lambda: self.reader.read(questions, packed))
        return [
            Answer(
                question=q,
                text=said.text,
                score=said.score,
                passages=r,
                retrieved=f,
                context=list(p.kept),
                packing=p.report,
                timings=clock.with_parts_of("read", said.timings),
                prompt=said.prompt,
                passes=said.passes,
                candidates=said.candidates,
                candidates_dropped=said.candidates_dropped,
                confidence=said.confidence,
            )
            for q, f, r, p, said in zip(questions, found, ranked, packed, readings, strict=True)
        ]

    @property
    def lm(self) -> FrozenLM | None:
        """The frozen LM, or None in a pipeline that has none."""
        return self.parts.lm if isinstance(self.config, READS) or "lm" in self.parts.given else None

    @property
    def reader(self) -> Reader:
        """What reads the packed windows; its modules load on first use."""
        if self._reader is None:
            self._reader = reader_of(self.parts)
        return self._reader

    def gold_hits(self, questions: Sequence[Question]) -> list[list[Hit]]:
        """The gold passages of each question, read from the corpus: what an oracle retriever would return.

        Raises:
            ConfigError: the config has no corpus, or a gold passage is not in it.
        """
        block = getattr(self.config, "corpus", None)
        if block is None:
            raise ConfigError("oracle passages need a corpus block in the config")
        wanted = {passage_id for question in questions for passage_id in question.gold_passages}
        if not wanted:
            raise ConfigError("these questions name no gold passages; name their qrels (questions.qrels, --qrels FILE)")
        with retrieval_errors():
            texts = {p.id: p for p in passages(block) if p.id in wanted}
        if missing := sorted(wanted - set(texts)):
            raise ConfigError(f"{len(missing)} gold passages are not in {block.path}, the first is {missing[0]!r}")
        return [
            [Hit(p, 1.0, texts[p].text, texts[p].title, texts[p].meta) for p in dict.fromkeys(question.gold_passages)]
            for question in questions
        ]

    def provenance(self) -> dict[str, Any]:
        """What an answer came from, for result files: hashes of corpus, index, LM, re-ranker and prompt."""
        facts: dict[str, Any] = {"kind": self.config.kind, "seed": self.config.seed}
        if retrieves(self.config):
            path = self.parts.corpus_path()
            with retrieval_errors():
                facts["corpus_sha256"] = corpus_sha256(path) if path is not None else None
                facts["index_fingerprint"] = fingerprint_of(self.parts.retriever)
                facts["reranker_fingerprint"] = (
                    fingerprint_of(self.parts.reranker) if hasattr(self.config, "reranker") else None
                )
        if self.lm is not None:
            facts |= {"lm_fingerprint": self.lm.fingerprint, "lm_dtype": str(self.lm.dtype).removeprefix("torch.")}
            facts |= self.reader.provenance() if isinstance(self.config, READS) else {}
        return facts

    def warmup(self) -> Pipeline:
        """Load everything now, so that the first question does not wait."""
        if retrieves(self.config):
            with retrieval_errors():
                _ = self.parts.retriever
                _ = self.parts.reranker if hasattr(self.config, "reranker") else None
        if self.lm is not None:
            _ = self.reader
            _ = self.parts.prompt if hasattr(self.config, "prompt") else None
        return self

    def close(self) -> None:
        """Release models and index files."""
        self._reader = None
        self.parts.close()


class _Clock:
    """Seconds a question by stage."""

    def __init__(self, questions: int) -> None:
        self.questions = questions
        self.seconds: dict[str, float] = {}

    def __call__(self, stage: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        self.seconds[stage] = (time.perf_counter() - start) / self.questions
        return result

    def with_parts_of(self, stage: str, parts: Mapping[str, float]) -> dict[str, float]:
        """The seconds, with a stage replaced by its own parts where there are any."""
        if not parts:
            return self.seconds
        return {name: seconds for name, seconds in self.seconds.items() if name != stage} | dict(parts)
