"""The promise, over every method and every LM: nothing that is trained, evaluated or served around the LM changes it.

A new method adds one entry to `METHODS`, and what is trained and kept in parts to `TOGETHER`.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from frozenlm.attention_places import places
from frozenlm.checkpoint import load_module
from frozenlm.deltas.adapter import Adapter, find_places
from frozenlm.deltas.attach import Delta, attach, key
from frozenlm.deltas.bitfit import BitFit
from frozenlm.deltas.diff_pruning import DiffPruning
from frozenlm.deltas.full_copy import FullCopy
from frozenlm.deltas.intrinsic_dimension import IntrinsicDimension
from frozenlm.deltas.lora import PeftDelta
from frozenlm.deltas.masking import Masking, pack
from frozenlm.deltas.p_tuning_v2 import PTuningV2
from frozenlm.deltas.partial_layers import PartialLayers
from frozenlm.deltas.peft_methods import choose_targets
from frozenlm.deltas.prefix_tuning import PrefixTuning
from frozenlm.deltas.random_subset import RandomSubset
from frozenlm.encoder import FrozenEncoder
from frozenlm.encoder_tasks import LabelledText, TunedEncoder, classification_loss, predict
from frozenlm.lm import FrozenLM
from frozenlm.lm_tasks import Example, mean_loss, prompt_loss
from frozenlm.prompting.classify import Prompt, label_loss
from frozenlm.prompting.learned import LearnedPrompt
from frozenlm.prompting.learned_verbalizers import PrototypicalVerbalizer, SoftVerbalizer
from frozenlm.prompting.soft_slots import SoftSlots
from frozenlm.prompting.template import Template
from frozenlm.prompting.verbalizer import Verbalizer
from frozenlm.prompts.attempt import Attempt
from frozenlm.prompts.idpg import IDPG
from frozenlm.prompts.input_dependent import InputDependentPrompt
from frozenlm.prompts.interface import PromptInput, PromptModule, prompted
from frozenlm.prompts.intrinsic import IntrinsicPrompt
from frozenlm.prompts.low_rank import LowRankPrompt
from frozenlm.prompts.p_tuning import PTuning
from frozenlm.prompts.prompt_autoencoder import PromptAutoEncoder, reconstruction_loss
from frozenlm.prompts.slots import SlottedPrompt
from frozenlm.prompts.soft_prompt import SoftPrompt
from frozenlm.prompts.task_prompts import TaskPrompts
from frozenlm.recursion.connector import Connector
from frozenlm.recursion.loss import mean_recursion_loss, recursion_loss
from frozenlm.recursion.neural import RecursiveLM
from frozenlm.rows import Tokens
from frozenlm.task_heads import ClassificationHead
from frozenlm.train_settings import TrainSettings
from frozenlm.training import fit
from tests.toys import ENCODERS, toy_encoder, toy_lm, toy_model

LMS = ("gpt2", "opt", "llama", "t5", "bart")
DECODERS = ("gpt2", "opt", "llama")
NOT_ON_ENCODERS = {("partial_layers_with_states_kept", "t5")}  # its blocks give back more than one tensor


def serve_prompt(lm: FrozenLM, module: PromptModule) -> None:
    """Measure and use a prompt as the pipelines do."""
    mean_loss(lm, module, EXAMPLES)
    contexts = [[Tokens.of(example.context)] for example in EXAMPLES]
    rows = prompted(module, contexts, [example.source for example in EXAMPLES])
    lm.generate(rows, max_new_tokens=4)
    lm.generate(rows[:2], max_new_tokens=4, num_beams=2)
    lm.score(rows, [list(example.answer) for example in EXAMPLES])


SLOTTED = Template.parse("{soft:lead*2} {text} {soft:tail:it is} {answer}")


def words() -> Verbalizer:
    return Verbalizer({"task0": ["blue", "red"], "task1": "the king"})


def label_prompt(module: Any) -> tuple[Prompt, list[dict[str, Any]]]:
    """What is learned about a template or its labels, as a prompt that tells the examples' tasks apart."""
    slotted = isinstance(module, SoftSlots)
    prompt = Prompt(SLOTTED, words(), slots=module) if slotted else Prompt(Template.parse("{text} is {answer}"), module)
    return prompt, [{"text": one.source.text, "label": one.source.task} for one in EXAMPLES]


def labels_loss(lm: FrozenLM, module: Any, examples: Sequence[Example]) -> tuple[Tensor, int]:
    records = [{"text": one.source.text, "label": one.source.task} for one in examples]
    return label_loss(lm, label_prompt(module)[0], records)


def serve_labels(lm: FrozenLM, module: Any) -> None:
    prompt, records = label_prompt(module)
    prompt.classify(lm, records)


def learned_loss(lm: FrozenLM, module: Any, examples: Sequence[Example]) -> tuple[Tensor, int]:
    records, labels = [{"text": one.source.text} for one in examples], words().labels
    prompt = module.prompt(SLOTTED, words())
    places = [labels.index(one.source.task or "") for one in examples]
    return module.loss(lm, prompt, prompt.fill(lm, records), places)


def serve_learned(lm: FrozenLM, module: Any) -> None:
    module.prompt(SLOTTED, words()).classify(lm, label_prompt(module.slots)[1])


def connector_loss(lm: FrozenLM, connector: Connector, examples: Sequence[Example]) -> tuple[Tensor, int]:
    return recursion_loss(RecursiveLM(lm, connector), examples)


def serve_connector(lm: FrozenLM, connector: Connector) -> None:
    """Measure and use two passes."""
    model = RecursiveLM(lm, connector)
    mean_recursion_loss(model, EXAMPLES)
    rows = [[Tokens.of(example.context)] for example in EXAMPLES]
    model.generate(rows, max_new_tokens=4)
    model.generate(rows[:2], max_new_tokens=4, num_beams=2)
    model.forward(rows)


def delta_loss(lm: FrozenLM, delta: Delta, examples: Sequence[Example]) -> tuple[Tensor, int]:
    with attach(lm, delta):
        return prompt_loss(lm, None, examples)


def serve_delta(lm: FrozenLM, delta: Delta) -> None:
    """Measure and use an LM with a delta as the pipelines do."""
    rows = [[Tokens.of(example.context)] for example in EXAMPLES]
    with attach(lm, delta):
        mean_loss(lm, None, EXAMPLES)
        lm.generate(rows, max_new_tokens=4)
        lm.generate(rows[:2], max_new_tokens=4, num_beams=2)
        lm.score(rows, [list(example.answer) for example in EXAMPLES])


@dataclass(frozen=True)
class Method:
    """How a method is made, trained and used. keys: exactly what its checkpoint holds, or that of an LM; kind: what it
    is saved as.

    A method that hosts a frozen encoder shows it as the attribute `encoder`. lms: those it can stand around. kept: what
    of it is saved.
    """

    name: str
    kind: str
    keys: frozenset[str] | Callable[[FrozenLM], frozenset[str]]
    make: Callable[[FrozenLM], Any]
    loss: Callable[[FrozenLM, Any, Sequence[Example]], tuple[Tensor, int]] = prompt_loss
    serve: Callable[[FrozenLM, Any], None] = serve_prompt
    lms: tuple[str, ...] = LMS
    kept: Callable[[Any], nn.Module] = lambda module: module

    def keys_for(self, lm: FrozenLM) -> frozenset[str]:
        return self.keys(lm) if callable(self.keys) else self.keys


ID_PT_KEYS = frozenset(
    {
        *("encoder_prompt", "anchor", "out.weight", "resampler.queries"),
        *(f"resampler.{norm}.{part}" for norm in ("feature_norm", "norm") for part in ("weight", "bias")),
        *(
            f"resampler.blocks.0.{norm}.{part}"
            for norm in ("cross_norm", "forward_norm")
            for part in ("weight", "bias")
        ),
        *(f"resampler.blocks.0.cross.{part}.weight" for part in ("query", "key", "value", "out")),
        *(f"resampler.blocks.0.{part}.weight" for part in ("widen", "narrow")),
    }
)

TASKS = ("task0", "task1")

LSTM_KEYS = tuple(
    f"lstm.{part}_l{layer}{way}"
    for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    for layer in (0, 1)
    for way in ("", "_reverse")
)
P_TUNING_KEYS = {
    form: frozenset({"embedding", *lstm, *(f"head.{layer}.{part}" for layer in (0, 2) for part in ("weight", "bias"))})
    for form, lstm in {
        "lama": (*LSTM_KEYS, "anchor"),
        "fewshot": LSTM_KEYS,
        "mlp": ("anchor",),
    }.items()
}


def p_tuning(lm: FrozenLM, form: Any) -> PTuning:
    return PTuning.create(lm, (1, 2), form=form, anchor="anchor" in P_TUNING_KEYS[form])


def autoencoder(lm: FrozenLM) -> PromptAutoEncoder:
    return PromptAutoEncoder.create(lm, TaskPrompts.create(lm, TASKS, 3), dimension=6)


CONNECTOR_KEYS = frozenset(
    f"bridges.0.{name}"
    for name in (
        *("gate", "enter.0.weight", "enter.1.weight", "leave.0.weight", "leave.1.weight"),
        *(f"blocks.0.norm_{part}.weight" for part in ("attention", "feed_forward")),
        *(f"blocks.0.{part}.weight" for part in ("query_key_value", "out", "up", "down")),
    )
)

BOTTLENECK = ("down.weight", "down.bias", "up.weight", "up.bias")


def adapter(form: Any) -> Method:
    return Method(
        f"adapter_{form}",
        "adapter",
        lambda lm: frozenset(
            f"adapters.{key(place.after)}.{part}" for place in find_places(lm.model, form) for part in BOTTLENECK
        ),
        lambda lm: Adapter.create(lm, form=form, width=4, activation="tanh"),
        delta_loss,
        serve_delta,
    )


NETWORK = ("embedding", "widen.weight", "widen.bias", "out.weight", "out.bias")


def prefix_keys(lm: FrozenLM) -> frozenset[str]:
    return frozenset(f"prefixes.{place}" for place in places(lm.model))


def gated_loss(lm: FrozenLM, delta: DiffPruning, examples: Sequence[Example]) -> tuple[Tensor, int]:
    value, units = delta_loss(lm, delta, examples)
    return value + units * delta.penalty(), units


def pruned_diff(lm: FrozenLM) -> DiffPruning:
    """As after a first phase in which the last weights moved most."""
    gated = DiffPruning.create(lm, structured=None, targets="blocks")
    with torch.no_grad():
        gated.values.copy_(torch.linspace(1e-5, 1e-4, len(gated.values)))
    return gated.pruned()


def partial_layers_with_states_kept(lm: FrozenLM) -> PartialLayers:
    made = PartialLayers.create(lm)
    made.keep_lower_states(lm, max_bytes=2**20)
    return made


def mask_bits(masking: Masking) -> nn.Module:
    kept = nn.Module()
    kept.register_buffer("bits", pack(masking.mask()))
    return kept


def bitfit(lm: FrozenLM) -> BitFit:
    return BitFit.create(lm, extra=lm.model.config.model_type in ("llama", "t5"))


PEFT_TENSORS = {
    "lora": ("lora_A.weight", "lora_B.weight"),
    "rslora": ("lora_A.weight", "lora_B.weight"),
    "dora": ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector"),
    "vera": ("vera_lambda_b", "vera_lambda_d"),
    "loha": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
    "lokr": ("lokr_w1", "lokr_w2"),
    "ia3": ("ia3_l",),
}


def peft_method(name: str) -> Method:
    sizes = {} if name == "ia3" else {"r": 4}
    plain = tuple(lm for lm in LMS if lm != "gpt2" or name not in ("loha", "lokr"))  # not made for Conv1D
    return Method(
        name,
        "peft",
        lambda lm: frozenset(
            f"tensors.{key(target)}/{tensor.replace('.', '/')}"
            for target in choose_targets(lm.model, name, None)
            for tensor in PEFT_TENSORS[name]
        ),
        lambda lm: PeftDelta.create(lm, method=name, **sizes),
        delta_loss,
        serve_delta,
        plain,
    )


METHODS = (
    Method(
        "prefix_prompt",
        "soft_prompt",
        frozenset({"vectors"}),
        lambda lm: SoftPrompt.create(lm, 3, position="prefix"),
    ),
    Method(
        "suffix_prompt",
        "soft_prompt",
        frozenset({"vectors"}),
        lambda lm: SoftPrompt.create(lm, 3, position="suffix"),
    ),
    Method(
        "input_dependent_prompt",
        "input_dependent_prompt",
        ID_PT_KEYS,
        lambda lm: InputDependentPrompt.create(lm, toy_encoder(), 3, encoder_prompt=4, width=16, depth=1, heads=2),
    ),
    Method(
        "task_prompts",
        "task_prompts",
        frozenset({"prompts.0", "prompts.1"}),
        lambda lm: TaskPrompts.create(lm, TASKS, 3),
    ),
    Method(
        "idpg",
        "idpg",
        frozenset({"prompt", "rule", "down", "bias", "up"}),
        lambda lm: IDPG.create(lm, toy_encoder("bert"), 3, phm=4),
    ),
    Method("slotted_prompt", "slotted_prompt", frozenset({"vectors"}), lambda lm: SlottedPrompt.create(lm, (1, 2))),
    *(
        Method(f"p_tuning_{form}", "p_tuning", P_TUNING_KEYS[form], lambda lm, form=form: p_tuning(lm, form))
        for form in P_TUNING_KEYS
    ),
    Method(
        "low_rank_prompt",
        "low_rank_prompt",
        frozenset({"left", "right"}),
        lambda lm: LowRankPrompt.create(lm, 3, rank=2),
    ),
    Method(
        "projected_prompt",
        "low_rank_prompt",
        frozenset({"left", "right", "initial"}),
        lambda lm: LowRankPrompt.create(lm, 3, rank=2, form="projection"),
    ),
    Method(
        "prompt_autoencoder",
        "prompt_autoencoder",
        frozenset(
            {"prompts", *(f"{layer}.{part}" for layer in ("down", "hidden", "up") for part in ("weight", "bias"))}
        ),
        autoencoder,
        reconstruction_loss,
    ),
    Method(
        "intrinsic_prompt",
        "intrinsic_prompt",
        frozenset({"code"}),
        lambda lm: IntrinsicPrompt.create(lm, autoencoder(lm).decoder()),
    ),
    Method(
        "attempt",
        "attempt",
        frozenset(
            {"sources", "down", "up", "norm.weight", "norm.bias", *(f"targets.prompts.{k}" for k in range(len(TASKS)))}
        ),
        lambda lm: Attempt.create(lm, [SoftPrompt.create(lm, 3, seed=k) for k in (1, 2)], tasks=TASKS, width=8),
    ),
    Method("connector", "connector", CONNECTOR_KEYS, Connector.create, connector_loss, serve_connector, DECODERS),
    Method(
        "prefix_tuning",
        "prefix_tuning",
        lambda lm: frozenset(f"networks.{place}.{part}" for place in places(lm.model) for part in NETWORK),
        lambda lm: PrefixTuning.create(lm, 3, middle_size=8),
        delta_loss,
        serve_delta,
        kept=PrefixTuning.collapse,
    ),
    Method(
        "prefix_tuning_direct",
        "prefix_tuning",
        prefix_keys,
        lambda lm: PrefixTuning.create(lm, 3, reparametrise=False),
        delta_loss,
        serve_delta,
    ),
    Method("p_tuning_v2", "p_tuning_v2", prefix_keys, lambda lm: PTuningV2.create(lm, 3), delta_loss, serve_delta),
    *(adapter(form) for form in ("houlsby", "pfeiffer", "parallel")),
    Method(
        "bitfit",
        "bitfit",
        lambda lm: frozenset(f"offsets.{name}" for name in bitfit(lm).offsets),
        bitfit,
        delta_loss,
        serve_delta,
    ),
    *(peft_method(name) for name in PEFT_TENSORS),
    Method(
        "diff_pruning",
        "diff_pruning",
        frozenset({"values", "alpha", "group_alpha"}),
        DiffPruning.create,
        gated_loss,
        serve_delta,
    ),
    *(
        Method(
            f"diff_pruning_by_{structured}",
            "diff_pruning",
            frozenset({"values", "alpha", *(["group_alpha"] if structured else [])}),
            lambda lm, structured=structured: DiffPruning.create(lm, structured=structured),
            gated_loss,
            serve_delta,
        )
        for structured in (None, "layer")
    ),
    Method("pruned_diff", "diff_pruning", frozenset({"values", "index"}), pruned_diff, delta_loss, serve_delta),
    Method(
        "masking",
        "masking",
        frozenset({"scores"}),
        Masking.create,
        delta_loss,
        serve_delta,
        kept=mask_bits,
    ),
    Method("partial_layers", "partial_layers", frozenset({"offsets"}), PartialLayers.create, delta_loss, serve_delta),
    Method(
        "partial_layers_with_states_kept",
        "partial_layers",
        frozenset({"offsets"}),
        partial_layers_with_states_kept,
        delta_loss,
        serve_delta,
        DECODERS,
    ),
    Method("random_subset", "random_subset", frozenset({"values"}), RandomSubset.create, delta_loss, serve_delta),
    Method(
        "intrinsic_dimension",
        "intrinsic_dimension",
        frozenset({"theta", "scales"}),
        lambda lm: IntrinsicDimension.create(lm, dimension=40),
        delta_loss,
        serve_delta,
    ),
    *(
        Method(
            f"intrinsic_dimension_{projection}",
            "intrinsic_dimension",
            frozenset({"theta"}),
            lambda lm, projection=projection: IntrinsicDimension.create(
                lm, dimension=40, scales=None, projection=projection
            ),
            delta_loss,
            serve_delta,
        )
        for projection in ("fastfood", "dense")
    ),
    Method(
        "soft_slots",
        "soft_slots",
        frozenset({"vectors.lead", "vectors.tail"}),
        lambda lm: SoftSlots.create(lm, SLOTTED),
        labels_loss,
        serve_labels,
    ),
    Method(
        "soft_verbalizer",
        "soft_verbalizer",
        frozenset({"vectors"}),
        lambda lm: SoftVerbalizer.create(lm, words()),
        labels_loss,
        serve_labels,
    ),
    Method(
        "prototypical_verbalizer",
        "prototypical_verbalizer",
        frozenset({"projection", "prototypes"}),
        lambda lm: PrototypicalVerbalizer.create(lm, words()),
        labels_loss,
        serve_labels,
    ),
    Method("full_copy", "full_copy", frozenset({"weights"}), FullCopy.create, delta_loss, serve_delta),
)
# Each part has a file of its own, which the parts' own entries above are about.
TOGETHER = (
    Method(
        "learned_prompt",
        "",
        frozenset({"slots.vectors.lead", "slots.vectors.tail", "verbalizer.projection", "verbalizer.prototypes"}),
        lambda lm: LearnedPrompt.create(lm, SLOTTED, words(), verbalizer="prototypical"),
        learned_loss,
        serve_learned,
    ),
)

QUESTIONS = ("who was the king", "what is blue", "the cat sat on the mat", "", "where is paris in france", "a dog")
EXAMPLES = [
    Example.of(range(5, 10 + k), [40 + k, 41], PromptInput(text, task=TASKS[k % 2])) for k, text in enumerate(QUESTIONS)
]
TEXT = tuple(range(20, 32))
SETTINGS = TrainSettings(steps=4, batch_size=4, gradient_accumulation=2, eval_every=2, learning_rate=0.05)

every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
every_pair = pytest.mark.parametrize(
    ("method", "lm_name"),
    [pytest.param(method, lm, id=f"{method.name}-{lm}") for method in (*METHODS, *TOGETHER) for lm in method.lms],
)


def state_of(model: Any) -> dict[str, Any]:
    """All that must stay: every bit of weights and buffers, classes, configs, hooks, flags, overridden methods."""
    digest = hashlib.sha256()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor.requires_grad} {tensor.grad}".encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")
    return {
        "weights": digest.hexdigest(),
        "config": model.config.to_json_string(),
        "generation_config": model.generation_config.to_json_string() if hasattr(model, "generation_config") else None,
        "modules": {
            name: (type(part), part.training, "forward" in vars(part), *(len(getattr(part, hook)) for hook in hooks))
            for name, part in model.named_modules()
        },
        "tensor_hooks": [name for name, p in model.named_parameters() if p._backward_hooks],
        "attention": model.config._attn_implementation,
    }


def frozen_models(lm: FrozenLM, module: Any) -> list[Any]:
    """The LM, and the encoder where the method has one."""
    return [lm.model, module.encoder.model] if hasattr(module, "encoder") else [lm.model]


def states_of(lm: FrozenLM, module: Any) -> list[dict[str, Any]]:
    return [state_of(model) for model in frozen_models(lm, module)]


def logits(model: Any) -> Tensor:
    """Of the plain transformers model, called as transformers is called."""
    more = {"decoder_input_ids": torch.tensor([TEXT[:4]])} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=torch.tensor([TEXT]), **more).logits[0]


def logits_with_the_module_off(lm: FrozenLM) -> Tensor:
    decoder_rows = [[Tokens(TEXT[:4])]] if lm.kind == "encoder-decoder" else None
    with torch.no_grad():
        return lm.forward([[Tokens(TEXT)]], decoder_rows=decoder_rows).logits[0]


def train(method: Method, lm: FrozenLM, module: nn.Module, out: Path, loss: Any = None) -> None:
    fit(
        module,
        examples=EXAMPLES,
        loss=loss or (lambda examples: method.loss(lm, module, examples)),
        evaluate=lambda: -sum(float(method.loss(lm, module, [example])[0]) for example in EXAMPLES),
        out=out,
        settings=SETTINGS,
        lm=lm,
        progress=False,
    )


@every_pair
def test_lm_is_untouched_and_every_part_of_the_module_moves(tmp_path: Path, method: Method, lm_name: str) -> None:
    lm = toy_lm(lm_name)
    module = method.make(lm)
    before, plain = states_of(lm, module), logits(toy_model(lm_name))
    start = {name: p.detach().clone() for name, p in module.named_parameters()}

    train(method, lm, module, tmp_path)
    method.serve(lm, module)

    assert states_of(lm, module) == before
    assert str(lm.verify()).startswith("LM weights changed: 0 of ")
    lm.assert_unchanged()
    assert torch.equal(logits(lm.model), plain)
    assert torch.equal(logits_with_the_module_off(lm), plain)
    assert [name for name, p in module.named_parameters() if torch.equal(p, start[name])] == []


@every_pair
def test_lm_is_untouched_after_an_exception_within_a_step(tmp_path: Path, method: Method, lm_name: str) -> None:
    lm = toy_lm(lm_name)
    module = method.make(lm)
    before, plain, calls = states_of(lm, module), logits(toy_model(lm_name)), []

    def loss(examples: Sequence[Example]) -> tuple[Tensor, int]:
        calls.append(examples)
        if len(calls) == 4:  # the second half of the second step, after a backward pass
            raise RuntimeError("out of memory")
        return method.loss(lm, module, examples)

    with pytest.raises(RuntimeError, match="out of memory"):
        train(method, lm, module, tmp_path, loss)
    assert states_of(lm, module) == before
    assert torch.equal(logits_with_the_module_off(lm), plain)


DELTAS = tuple(method for method in METHODS if method.serve is serve_delta)
every_delta_on_every_encoder = pytest.mark.parametrize(
    ("method", "encoder_name"),
    [pytest.param(d, e, id=f"{d.name}-{e}") for d in DELTAS for e in ENCODERS if (d.name, e) not in NOT_ON_ENCODERS],
)


def of_an_encoder(method: Method, encoder: FrozenEncoder) -> tuple[TunedEncoder, list[LabelledText], Any]:
    """A head with the delta, what they learn from, and their loss."""
    tuned = TunedEncoder(ClassificationHead.create(encoder, TASKS), method.make(encoder))  # type: ignore[arg-type]
    examples = [LabelledText(text, label=TASKS[k % 2]) for k, text in enumerate(QUESTIONS)]

    def loss(part: Sequence[LabelledText]) -> tuple[Tensor, int]:
        value, units = classification_loss(encoder, tuned.head, tuned.delta, part)
        return (value + units * tuned.delta.penalty() if hasattr(tuned.delta, "penalty") else value), units

    return tuned, examples, loss


@every_delta_on_every_encoder
def test_an_encoder_is_untouched_and_every_part_moves(tmp_path: Path, method: Method, encoder_name: str) -> None:
    encoder = toy_encoder(encoder_name)
    tuned, examples, loss = of_an_encoder(method, encoder)
    before, plain = state_of(encoder.model), encoder.vectors(QUESTIONS[:3])
    start = {name: p.detach().clone() for name, p in tuned.named_parameters()}
    fit(tuned, examples=examples, loss=loss, out=tmp_path, settings=SETTINGS, lm=encoder, progress=False)
    predict(encoder, tuned.head, tuned.delta, examples)
    assert state_of(encoder.model) == before
    assert torch.equal(encoder.vectors(QUESTIONS[:3]), plain)
    assert [name for name, p in tuned.named_parameters() if torch.equal(p, start[name])] == []


@every_delta_on_every_encoder
def test_an_encoder_is_untouched_after_an_exception_within_a_step(
    tmp_path: Path, method: Method, encoder_name: str
) -> None:
    encoder = toy_encoder(encoder_name)
    tuned, examples, loss = of_an_encoder(method, encoder)
    before, plain, calls = state_of(encoder.model), encoder.vectors(QUESTIONS[:3]), []

    def failing(part: Sequence[LabelledText]) -> tuple[Tensor, int]:
        with attach(encoder, tuned.delta):
            calls.append(part)
            if len(calls) == 4:
                raise RuntimeError("out of memory")
        return loss(part)

    with pytest.raises(RuntimeError, match="out of memory"):
        fit(tuned, examples=examples, loss=failing, out=tmp_path, settings=SETTINGS, lm=encoder, progress=False)
    assert state_of(encoder.model) == before
    assert torch.equal(encoder.vectors(QUESTIONS[:3]), plain)


@every_pair
def test_module_never_reaches_the_lm(tmp_path: Path, method: Method, lm_name: str) -> None:
    lm = toy_lm(lm_name)
    before_it_was_made = state_of(lm.model)
    module = method.make(lm)
    before = states_of(lm, module)
    assert before[0] == before_it_was_made
    theirs = {tensor.data_ptr() for model in frozen_models(lm, module) for tensor in model.state_dict().values()}
    ours = [*module.parameters(), *module.buffers(), *module.state_dict().values()]
    assert not theirs & {tensor.data_ptr() for tensor in ours}
    assert set(module.state_dict()) == method.keys_for(lm)
    module.train().to(torch.float64).requires_grad_(True)
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    assert states_of(lm, module) == before


@every_method
def test_checkpoint_holds_the_module_and_nothing_else(tmp_path: Path, method: Method) -> None:
    lm = toy_lm(method.lms[0])
    module = method.make(lm)
    module.save(tmp_path, lm)
    tensors, _ = load_module(tmp_path, kind=method.kind, lm_fingerprint=lm.fingerprint)
    kept = method.kept(module)
    assert set(tensors) == set(kept.state_dict())
    own = [*kept.parameters(), *kept.buffers()]
    assert sum(t.numel() for t in tensors.values()) == sum(t.numel() for t in own)
