"""`frozenlm cost`: parameters of what is trained and of the LM, and the FLOPs of one input by component.

Nothing is loaded, read or downloaded but a model's config.json (`pipelines.model_sizes`), and the dev figures of a
tuned threshold. How many tokens a question, a passage and an answer have is assumed, and what was assumed stands in the
result; FLOPs are counted as `frozenlm.shapes` says. "One pass" is the frozen LM alone, reading the same text and
answering once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from frozenlm import cost as flops
from frozenlm.architectures import meta_model
from frozenlm.prompts.idpg import IDPG
from frozenlm.prompts.input_dependent_sizes import Sizes
from frozenlm.recursion import cost as recursion
from frozenlm.recursion.connector import Connector
from frozenlm.shapes import ModelShape
from pipelines import config as c
from pipelines import model_sizes
from pipelines.build_recursion import Recursion, sizes, tuned_share
from pipelines.cost_classification import encoder_cost
from pipelines.cost_comparison import comparison_cost, methods_table
from pipelines.cost_deltas import delta_sizes, with_delta
from pipelines.cost_prompting import prompting_cost
from pipelines.cost_prompts import trained_numbers
from pipelines.cost_words import said, short
from pipelines.errors import ConfigError, CorpusError, retrieval_errors
from retrievers.corpus import estimate_passages

SPECIAL = 3  # control tokens around a question and a passage
CANDIDATE_TOKENS = 6  # of one candidate and what parts it from the next; all samples different
_NOT_COUNTED = {"bm25": "BM25 looks words up and adds", "precomputed": "its hits are read from a file"}


@dataclass(frozen=True)
class Assumed:
    """Tokens that a config does not say.

    input_tokens: what the LM reads of text; None: as many passages as fit and are retrieved, with the question
    answer_tokens: None: `generation.max_new_tokens`, so an upper bound
    question_tokens, passage_tokens: with their templates; near the means of Natural Questions and passages of 100 words
    """

    input_tokens: int | None = None
    answer_tokens: int | None = None
    question_tokens: int = 16
    passage_tokens: int = 150


@dataclass(frozen=True)
class Component:
    """A part of the pipeline: FLOPs of one input, parameters of its own, how many of these are trained."""

    flops: int
    parameters: int = 0
    trained: int = 0


@dataclass
class Cost:
    """What one config costs.

    components: by name, in the order in which they run
    lm, one_pass: the frozen LM, and its FLOPs alone; None where there is none
    assumptions: what the figures rest on
    not_counted: what is missing from them, and why
    spared: FLOPs of an input that recursion spares its further passes; None where none is spared
    paying_share: of inputs that get a second pass, on dev; None where that is not known, and without recursion
    """

    components: dict[str, Component] = field(default_factory=dict)
    lm: ModelShape | None = None
    one_pass: int | None = None
    assumptions: dict[str, Any] = field(default_factory=dict)
    not_counted: list[str] = field(default_factory=list)
    spared: int | None = None
    paying_share: float | None = None

    @property
    def flops(self) -> int:
        """Of all components."""
        return sum(part.flops for part in self.components.values())

    def spare(self, config: Recursion, flops: int) -> None:
        """Note what an input costs that `when` spares, and on dev how many it does not spare."""
        self.spared, self.paying_share = flops, tuned_share(config)
        if self.paying_share is None:
            self.not_counted.append("the share of inputs that are spared: no threshold is tuned in this workspace")

    def read_by_lm(self, lm: ModelShape, tokens: int, answer_tokens: int, *, beams: int, soft_tokens: int) -> None:
        """Add one pass of the LM over a text, and what soft tokens beside the text add to it."""
        alone = flops.generate(lm, tokens, answer_tokens, beams=beams)
        self.lm, self.one_pass = lm, alone.total
        self.components["lm_prefill"] = Component(alone.reading, lm.parameters)
        self.components["lm_decoding"] = Component(alone.answering)
        if soft_tokens:
            more = flops.soft_tokens(lm, tokens, answer_tokens, soft_tokens, beams=beams)
            size = soft_tokens * lm.hidden_size
            self.components["prompt"] = Component(more, size, size)
        self.assumptions |= {"input_tokens": tokens, "answer_tokens": answer_tokens, "beams": beams}
        self.assumptions |= {"soft_tokens": soft_tokens}

    def record(self, kind: str) -> dict[str, Any]:
        """As JSON values."""
        trained = sum(part.trained for part in self.components.values())
        total, share, spared = self.flops, self.paying_share, self.spared
        mean = None if share is None or spared is None else round(share * total + (1 - share) * spared)
        return {
            "kind": kind,
            "trained_parameters": trained,
            "lm_parameters": self.lm.parameters if self.lm else None,
            "lm_embedding_parameters": self.lm.embeddings if self.lm else None,
            "parameter_ratio": trained / self.lm.parameters if self.lm else None,
            "flops_per_input": total,
            "flops_one_pass": self.one_pass,
            "flops_ratio_to_one_pass": total / self.one_pass if self.one_pass else None,
            "flops_spared_input": spared,
            "second_pass_share": share,
            "flops_mean": mean if spared is not None else total,
            "components": {
                name: {"flops": part.flops, "parameters": part.parameters, "trained_parameters": part.trained}
                for name, part in self.components.items()
            },
            "assumptions": self.assumptions | {"attention": "every query-key pair, masked ones too"},
            "not_counted": self.not_counted,
        }


def cost(config: Any, assumed: Assumed | None = None) -> dict[str, Any]:
    """Parameters and FLOPs of a config's pipeline for one input.

    Returns:
        kind, trained_parameters, lm_parameters, lm_embedding_parameters, parameter_ratio, flops_per_input,
        flops_one_pass, flops_ratio_to_one_pass, flops_spared_input, second_pass_share, flops_mean, components,
        assumptions, not_counted. Of recursion for unsure inputs only, flops_per_input is what such an input costs,
        flops_spared_input what another one does, and flops_mean what they cost with the share that dev had. Of a
        comparison of methods what `pipelines.cost_comparison` says.

    Raises:
        ConfigError: a model that is not at hand and whose architecture the config does not give; no room for the input.
        CheckpointError: a model folder whose config.json is missing or damaged.
    """
    if isinstance(config, c.MethodComparison):
        return comparison_cost(config, cost, assumed)
    function = COSTS.get(config.kind)
    if function is None:
        raise ConfigError(f"the cost of a config of kind {config.kind} is not known; it is of {', '.join(COSTS)}")
    return function(config, assumed or Assumed()).record(config.kind)


def _retrieval(config: c.Retrieval, assumed: Assumed) -> Cost:
    found = Cost()
    _retriever(found, config, config.retriever, assumed, "retriever")
    return found


def _reranker_job(config: c.RerankerJob, assumed: Assumed) -> Cost:
    found = _retrieval(config, assumed)
    block = config.reranker
    if isinstance(block, c.LMLikelihood):
        found.not_counted.append("reranker: this config names no LM that could rank")
    else:
        shape = model_sizes.cross_encoder_shape(block)
        _cross_encoder(found, config, block, shape, assumed)
    return found


def _reads(config: Any, assumed: Assumed) -> Cost:
    lm = model_sizes.lm_shape(config.lm)
    return _answered(_passages(config, lm, assumed), config, lm, assumed)


def _passages(config: Any, lm: ModelShape, assumed: Assumed) -> Cost:
    """What stands before the LM: nothing with a closed book."""
    if not c.retrieves(config):
        return Cost()
    found = _retrieval(config, assumed)
    block = config.reranker
    if isinstance(block, c.LMLikelihood):
        depth = min(config.rerank_depth, config.retrieve_k)
        one = flops.score(lm, assumed.passage_tokens, assumed.question_tokens).total
        found.components["reranker"] = Component(depth * one)
        found.assumptions["rerank_depth"] = depth
    elif block is not None:
        try:
            _cross_encoder(found, config, block, model_sizes.cross_encoder_shape(block), assumed)
        except ConfigError as error:
            found.not_counted.append(str(error))
    return found


def _answered(found: Cost, config: Any, lm: ModelShape, assumed: Assumed) -> Cost:
    tokens, passages = input_tokens(config, lm, assumed)
    block = config.generation
    answer = block.max_new_tokens if assumed.answer_tokens is None else assumed.answer_tokens
    soft = config.prompt.length if config.prompt else 0
    found.read_by_lm(lm, tokens, answer, beams=block.num_beams, soft_tokens=soft)
    found.assumptions |= {"passages": passages, "question_tokens": assumed.question_tokens}
    if passages:
        found.assumptions["passage_tokens"] = assumed.passage_tokens
    return found


def _neural(config: c.NeuralRecursion, assumed: Assumed) -> Cost:
    lm, beams = model_sizes.lm_shape(config.lm), config.generation.num_beams
    if lm.kind != "decoder":
        raise ConfigError("neural recursion needs a decoder-only LM")
    found = _passages(config, lm, assumed)
    before = found.flops
    found = _answered(found, config, lm, assumed)
    tokens, answer = found.assumptions["input_tokens"], found.assumptions["answer_tokens"]
    shape = sizes(config.connector)
    added = recursion.neural(lm, shape, tokens=tokens, answer_tokens=answer, beams=beams)
    count = Connector.parameter_count(lm.head // (2 * lm.vocab_size), lm.hidden_size, shape)
    found.components["earlier_passes"] = Component(added.earlier)
    found.components["connector"] = Component(added.connector, count, count)
    found.assumptions["passes"] = shape.passes
    found.paying_share = 1.0
    if config.when.rule == "below_confidence":
        plain = config.plain_prompt
        soft = plain.length if plain is not None else 0
        alone = flops.generate(lm, tokens + soft, answer).total
        read_once = plain is None or plain.position == "suffix"
        shared = flops.generate(lm, tokens, answer).reading if read_once else 0
        found.components["plain_pass"] = Component(alone - shared, soft * lm.hidden_size)
        found.assumptions["plain_pass_read_once"] = read_once
        found.spare(config, before + alone)
    return found


def _textual(config: c.TextualRecursion, assumed: Assumed) -> Cost:
    lm, n = model_sizes.lm_shape(config.lm), config.candidates.n
    found = _answered(_passages(config, lm, assumed), config, lm, assumed)
    alone = found.flops
    tokens = found.assumptions["input_tokens"]
    passes = textual_flops(config, lm, assumed)
    first = found.components.pop("prompt", Component(0))
    one_pass = first.flops + sum(found.components.pop(name).flops for name in ("lm_prefill", "lm_decoding"))
    shared = passages_read_once(config, lm, tokens, assumed)
    found.paying_share = float(config.answer_by == "second_pass")
    if config.when.rule == "below_confidence":
        # The first answer's reading of what stands before the question is the candidates' too.
        read = lm.body.at(tokens - question_tokens(config, tokens, assumed)) if shared else 0
        found.components["first_answer"] = Component(one_pass - read)
        found.spare(config, alone)
    found.components["first_pass_reading"] = Component(passes.candidates.reading, lm.parameters)
    found.components["candidates"] = Component(passes.candidates.answering, first.parameters, first.trained)
    second = config.second_pass.prompt
    if config.answer_by == "second_pass":
        size = (second.length if second is not None else 0) * lm.hidden_size
        found.components["second_pass"] = Component(passes.second.total, size, size)
    soft = [block.length if block is not None else 0 for block in (config.prompt, second)]
    found.assumptions |= {"candidates": n, "candidate_tokens": CANDIDATE_TOKENS, "soft_tokens": soft}
    found.assumptions["passages_read_once"] = shared
    return found


def second_pass_tokens(config: c.TextualRecursion, tokens: int) -> int:
    """What pass 2 of textual recursion reads of text, where pass 1 reads `tokens`; all samples different."""
    return tokens + config.candidates.n * CANDIDATE_TOKENS


def question_tokens(config: Any, tokens: int, assumed: Assumed) -> int:
    """Of `tokens` that the LM reads, those that stand behind the passages."""
    return min(tokens, assumed.question_tokens) if c.retrieves(config) else tokens


def passages_read_once(config: c.TextualRecursion, lm: ModelShape, tokens: int, assumed: Assumed) -> bool:
    """Whether both passes go on from one reading of what stands before the question."""
    behind = all(block is None or block.position == "suffix" for block in (config.prompt, config.second_pass.prompt))
    return tokens > question_tokens(config, tokens, assumed) and lm.kind == "decoder" and behind


def textual_flops(config: c.TextualRecursion, lm: ModelShape, assumed: Assumed) -> recursion.TextualCost:
    """Both passes of textual recursion."""
    tokens = input_tokens(config, lm, assumed)[0]
    question = question_tokens(config, tokens, assumed)
    soft = [block.length if block is not None else 0 for block in (config.prompt, config.second_pass.prompt)]
    most = config.generation.max_new_tokens
    return recursion.textual(
        lm,
        before=tokens - question,
        first=question + soft[0],
        second=second_pass_tokens(config, question) + soft[1],
        answer_tokens=most if assumed.answer_tokens is None else assumed.answer_tokens,
        n=config.candidates.n,
        shared=passages_read_once(config, lm, tokens, assumed),
    )


def _multitask(config: c.Multitask, assumed: Assumed) -> Cost:
    found, lm = Cost(), model_sizes.lm_shape(config.lm)
    tokens = config.input.max_tokens if assumed.input_tokens is None else assumed.input_tokens
    answer = config.generation.max_new_tokens if assumed.answer_tokens is None else assumed.answer_tokens
    block, beams = config.prompt, config.generation.num_beams
    found.read_by_lm(lm, tokens, answer, beams=beams, soft_tokens=0)
    if config.delta is not None:
        model = meta_model(model_sizes.model_config(config.lm, "lm"), "lm")
        sizes, tuned = delta_sizes(config.delta, model), with_delta(config.delta, model, lm)
        added = flops.generate(tuned, tokens, answer, beams=beams).total - found.flops
        found.components["delta"] = Component(added, sizes.served, sizes.trained)
        found.not_counted += sizes.not_counted
    if block is None:
        return found
    found.assumptions["soft_tokens"] = block.length
    size = block.length * lm.hidden_size
    trained, writing = size, 0
    if isinstance(block, c.PromptPerTask):
        trained = len(config.tasks) * size
    elif isinstance(block, c.Attempt):
        network = 2 * lm.hidden_size * block.width
        trained = network + 2 * lm.hidden_size + (len(config.tasks) if block.per_task else 1) * size
        writing = 2 * network + 2 * (len(block.sources) + 1) * size
    elif isinstance(block, c.InputDependent | c.IDPG):
        trained, writing = _written(found, config, block, lm, tokens)
    elif isinstance(block, c.PTuning | c.LowRank | c.AutoEncoder | c.Intrinsic):
        trained = trained_numbers(block, lm.hidden_size)
    beside = flops.soft_tokens(lm, tokens, answer, block.length, beams=beams)
    found.components["prompt"] = Component(writing, trained, trained)
    found.components["prompt_in_lm"] = Component(beside)
    return found


def _written(
    found: Cost, config: c.Multitask, block: c.InputDependent | c.IDPG, lm: ModelShape, tokens: int
) -> tuple[int, int]:
    """Trained parameters of a prompt generator and its FLOPs; its frozen encoder is added to what is found."""
    if config.encoder is None:
        raise ConfigError(f"prompt {block.name!r} of kind {block.kind} needs an encoder block")
    encoder = model_sizes.encoder_shape(config.encoder, "encoder")
    read = min(tokens, config.encoder.max_length or tokens)
    found.assumptions["encoder_tokens"] = read
    if isinstance(block, c.IDPG):
        found.components["encoder"] = Component(flops.encode(encoder, read), encoder.parameters)
        sizes = {"encoder_size": encoder.hidden_size, "hidden_size": lm.hidden_size, "length": block.length}
        count = IDPG.parameter_count(**sizes, bottleneck=block.bottleneck, phm=block.phm)
        # A PHM layer is counted as the plain one; the 2 n^2 a number in its input that it costs more are left out.
        return count, 2 * block.bottleneck * (encoder.hidden_size + block.length * lm.hidden_size)
    own = block.model_dump(exclude={"kind", "name", "position", "init"})
    shape = Sizes(hidden_size=lm.hidden_size, encoder_size=encoder.hidden_size, **own)
    read += shape.encoder_prompt
    found.components["encoder"] = Component(flops.encode(encoder, read), encoder.parameters)
    return shape.parameters, flops.prompt_writer(shape).at(read)


def _classification(config: c.Classification, assumed: Assumed) -> Cost:
    one = encoder_cost(config, assumed.input_tokens)
    found = Cost(lm=one.encoder, one_pass=one.encoder_flops, not_counted=list(one.not_counted))
    found.components["encoder"] = Component(one.encoder_flops, one.encoder.parameters)
    if one.delta is not None:
        found.components["delta"] = Component(one.delta_flops, one.delta.served, one.delta.trained)
    found.components["head"] = Component(one.head_flops, one.head, one.head)
    found.assumptions["input_tokens"] = one.tokens
    return found


def _prompting(config: c.PromptingJob, assumed: Assumed) -> Cost:
    one = prompting_cost(config, assumed.input_tokens)
    found = Cost(lm=one.lm, one_pass=one.one_pass, assumptions=one.assumptions, not_counted=one.not_counted)
    for name, (model, computed) in one.parts.items():
        found.components[name] = Component(computed, 0 if model is None else model.parameters)
    return found


def input_tokens(config: Any, lm: ModelShape, assumed: Assumed) -> tuple[int, int]:
    """Tokens of text that the LM reads, soft tokens left out, and how many passages are among them.

    Raises:
        ConfigError: they do not fit the window, or there is none.
    """
    question, passage, room = assumed.question_tokens, assumed.passage_tokens, _room(config, lm)
    wanted = question if assumed.input_tokens is None else assumed.input_tokens
    if wanted > room:
        raise ConfigError(
            f"{wanted} tokens of input do not fit: window, answer reserve and soft tokens leave {room}; assume fewer, "
            "or widen the window"
        )
    fitting = max(0, (room if assumed.input_tokens is None else wanted) - question) // passage
    passages = min(fitting, _offered(config)) if c.retrieves(config) else 0
    return (question + passages * passage if assumed.input_tokens is None else wanted), passages


def _offered(config: Any) -> int:
    """The most passages that the packer gets and may keep."""
    limits = [config.retrieve_k, config.packing.max_passages]
    limits += [config.rerank_depth, config.rerank_k] if config.reranker is not None else []
    return min(limit for limit in limits if limit is not None)


def _room(config: Any, lm: ModelShape) -> int:
    """Tokens that are left for the text."""
    limits = [limit for limit in (config.lm.window or lm.window, config.packing.max_tokens) if limit is not None]
    if not limits:
        raise ConfigError("this LM has no window of its own; set packing.max_tokens (tokens, question and answer too)")
    kept = config.packing.answer_reserve + getattr(config, "reserved_tokens", 0)
    return min(limits) - kept - (config.prompt.length if config.prompt else 0)


COSTS: dict[str, Callable[[Any, Assumed], Cost]] = {
    "retrieval": _retrieval,
    "reranker": _reranker_job,
    "frozen_reader": _reads,
    "closed_book": _reads,
    "textual_recursion": _textual,
    "neural_recursion": _neural,
    "multitask": _multitask,
    "classification": _classification,
    "prompting": _prompting,
}


def _retriever(found: Cost, config: c.Retrieval, block: Any, assumed: Assumed, name: str) -> None:
    if isinstance(block, c.Hybrid):
        for member, inner in block.members.items():
            _retriever(found, config, inner, assumed, f"{name}.{member}")
    elif isinstance(block, c.Dense):
        _dense(found, config, block, assumed, name)
    else:
        found.not_counted.append(f"{name}: {_NOT_COUNTED.get(block.kind, 'what the plug-in does')}")


def _dense(found: Cost, config: c.Retrieval, block: c.Dense, assumed: Assumed, name: str) -> None:
    try:
        shape = model_sizes.encoder_shape(block.encoder, "encoder", model=block.encoder.question_model)
    except ConfigError as error:
        found.not_counted.append(f"{name}: {error}")
        return
    tokens = min(assumed.question_tokens + SPECIAL - 1, block.encoder.max_length)
    found.components[name] = Component(flops.encode(shape, tokens), shape.parameters)
    found.assumptions["question_tokens"] = assumed.question_tokens
    passages = _indexed(config.corpus)
    if block.index not in ("exact", "flat"):
        found.not_counted.append(f"{name}: the search in its {block.index} index")
    elif passages is None:
        found.not_counted.append(f"{name}: the search in its index, since the corpus is not here")
    else:
        found.components[f"{name}.search"] = Component(2 * shape.hidden_size * passages)
        found.assumptions["indexed_passages"] = passages


def _indexed(corpus: c.Corpus | None) -> int | None:
    """About how many passages a corpus has; None where it is not here."""
    if corpus is None or corpus.limit is not None:
        return corpus.limit if corpus is not None else None
    try:
        with retrieval_errors():
            return estimate_passages(corpus.path, corpus.format)
    except CorpusError:
        return None


def _cross_encoder(
    found: Cost, config: c.RerankerJob | c.FrozenReader, block: c.CrossEncoder, shape: ModelShape, assumed: Assumed
) -> None:
    depth = min(config.rerank_depth, config.retrieve_k)
    tokens = min(assumed.question_tokens + assumed.passage_tokens + SPECIAL, block.max_length)
    trained = shape.parameters if block.checkpoint is not None else 0
    found.components["reranker"] = Component(flops.encode(shape, tokens, texts=depth), shape.parameters, trained)
    found.assumptions |= {"rerank_depth": depth, "rerank_tokens": tokens}


def cost_table(found: dict[str, Any], *, title: str | None = None) -> Group:
    """What `cost` returns, for the eye: one component a line, then the sums and what they rest on."""
    if "methods" in found:
        return methods_table(found, title=title)
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    for heading in ("component", "parameters", "trained", "FLOPs an input", "share"):
        table.add_column(heading, justify="left" if heading == "component" else "right")
    total = found["flops_per_input"]
    for name, part in found["components"].items():
        share = f"{100 * part['flops'] / total:.1f}%" if total else "-"
        numbers = (short(part["parameters"]), short(part["trained_parameters"]), short(part["flops"]))
        table.add_row(name.replace("_", " "), *numbers, share)
    table.add_section()
    everything = sum(part["parameters"] for part in found["components"].values())
    table.add_row("in all", short(everything), short(found["trained_parameters"]), short(total), "")
    if found["flops_spared_input"] is not None:
        spared, share, mean = found["flops_spared_input"], found["second_pass_share"], found["flops_mean"]
        table.add_row("an input that is spared", "", "", short(spared), "")
        if mean is not None:
            table.add_row(f"mean ({100 * share:.1f}% recurse, on dev)", "", "", short(mean), "")
    if found["flops_one_pass"]:
        ratios = f"{100 * found['parameter_ratio']:.3g}% of the LM", f"{found['flops_ratio_to_one_pass']:.3f} passes"
        table.add_row("beside the LM alone", "", *ratios, "")
    missing = [Text(f"not counted: {one}", style="yellow") for one in found["not_counted"]]
    return Group(table, said(found["assumptions"]), *missing)
