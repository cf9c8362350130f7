"""The methods of the library `peft` that may stand around a frozen model, and the settings of each that may.

    lora      Hu et al. 2021, arXiv 2106.09685: W x + (alpha / r) B A x, B zero at first
    rslora    Kalajdzievski 2023, arXiv 2312.03732: LoRA scaled by alpha / sqrt(r)
    dora      Liu et al. 2024, arXiv 2402.09353: LoRA on the direction of W, its columns' magnitudes trained apart
    loha      Hyeon-Woo et al. 2021, arXiv 2108.06098: the Hadamard product of two low-rank matrices
    lokr      Yeh et al. 2023, arXiv 2309.14859: a Kronecker product
    vera      Kopiczko et al. 2023, arXiv 2310.11454: one random A and B for all layers, vectors trained between them
    ia3       Liu et al. 2022, arXiv 2205.05638: keys, values and the feed-forward network's inner activations, rescaled

Everything that peft would do to the model beyond adding its layers is refused: initialisations that rewrite weights
(PiSSA, OLoRA, CorDA, LoftQ, EVA, LoRA-GA), trained copies of whole modules, biases, embeddings, repeated layers.
Without targets, our choice follows the papers where layers have names of their own: queries and values for the LoRA
family, keys, values and the feed-forward network's last layer (whose input is rescaled) for (IA)3; where a model keeps
queries, keys and values in one layer, as GPT-2, that layer.
Shapes: a dense layer takes `i` numbers and gives `o`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from peft import (
    IA3Config,
    IA3Model,
    LoHaConfig,
    LoHaModel,
    LoKrConfig,
    LoKrModel,
    LoraConfig,
    LoraModel,
    VeraConfig,
    VeraModel,
)
from torch import nn

from frozenlm.deltas.adapter import FEED_FORWARD_ENDS
from frozenlm.deltas.attach import Part, target_modules
from frozenlm.errors import ConfigError

QUERY_VALUE = ("q_proj", "v_proj", "q", "v", "query", "value", "q_lin", "v_lin")
KEY_VALUE = ("k_proj", "v_proj", "k", "v", "key", "value", "k_lin", "v_lin")
FUSED = ("c_attn", "query_key_value", "qkv_proj", "Wqkv")
# What a peft config says about the file or the training, not about the layers.
BESIDE = (
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("feedforward_modules", "megatron_core", "loftq_config", "qalora_group_size", "fan_in_fan_out", "save_projection"),
)
INITS = {"init_lora_weights": (True, False, "gaussian", "orthogonal")}
NOT_FOR_CONV1D = ("loha", "lokr")  # peft has no such layers


@dataclass(frozen=True)
class PeftMethod:
    """One method: peft's config and model classes, what is fixed, which settings there are."""

    config: Any
    tuner: Any
    settings: tuple[str, ...]
    fixed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def peft_type(self) -> str:
        """The name in peft's files."""
        return str(self.config().peft_type.value)


_LORA = ("r", "lora_alpha", "lora_dropout", "init_lora_weights", "rank_pattern", "alpha_pattern")
_LYCORIS = ("r", "alpha", "rank_dropout", "module_dropout", "init_weights", "rank_pattern", "alpha_pattern")
METHODS: dict[str, PeftMethod] = {
    "lora": PeftMethod(LoraConfig, LoraModel, _LORA),
    "rslora": PeftMethod(LoraConfig, LoraModel, _LORA, {"use_rslora": True}),
    "dora": PeftMethod(LoraConfig, LoraModel, (*_LORA, "use_rslora"), {"use_dora": True}),
    "loha": PeftMethod(LoHaConfig, LoHaModel, _LYCORIS),
    "lokr": PeftMethod(LoKrConfig, LoKrModel, (*_LYCORIS, "decompose_both", "decompose_factor", "rank_dropout_scale")),
    "vera": PeftMethod(
        VeraConfig, VeraModel, ("r", "vera_dropout", "d_initial", "projection_prng_key", "init_weights")
    ),
    "ia3": PeftMethod(IA3Config, IA3Model, ("init_ia3_weights",)),
}


def peft_method(name: str) -> PeftMethod:
    """One of `METHODS`.

    Raises: ConfigError for another name.
    """
    if name not in METHODS:
        raise ConfigError(f"there is no peft method {name!r} here; expected one of {', '.join(METHODS)}")
    return METHODS[name]


def check_settings(name: str, settings: Mapping[str, Any]) -> None:
    """Refuses what would change the model, and what the method does not have.

    Raises: ConfigError.
    """
    method = peft_method(name)
    for setting, value in settings.items():
        allowed = INITS.get(setting, (True, False)) if setting.startswith("init") else None
        if allowed is not None and value not in allowed:
            raise ConfigError(
                f"{setting} is {value!r}, which may rewrite the model's weights; expected one of {allowed}: the model "
                "stays as it is (initialise such a method on a copy, with peft, and convert it to plain LoRA there)"
            )
        if setting not in method.settings:
            raise ConfigError(
                f"{name} has no setting {setting!r} here (got {value!r}); expected some of {', '.join(method.settings)}"
            )
        if isinstance(value, float) and not isfinite(value):
            raise ConfigError(f"{setting} is {value}; expected a finite number")
        if setting.endswith("dropout") and not (isinstance(value, int | float) and 0 <= value < 1):
            raise ConfigError(f"{setting} is {value!r}; expected a share of at least 0 and below 1")


def method_of(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The method and the settings of a peft config read from a file.

    Raises: ConfigError for a method or a setting that we do not take.
    """
    kind = config.get("peft_type")
    fixed = {flag: True for flag in ("use_dora", "use_rslora") if config.get(flag)}
    names = [name for name, method in METHODS.items() if method.peft_type == kind]
    if not names:
        known = sorted({method.peft_type for method in METHODS.values()})
        raise ConfigError(f"peft_type is {kind!r}; expected one of {', '.join(known)}")
    name = "dora" if "use_dora" in fixed else "rslora" if "use_rslora" in fixed else names[0]
    method = METHODS[name]
    usual = method.config().to_dict()
    settings = {
        setting: value
        for setting, value in config.items()
        if setting in method.settings and setting not in method.fixed and value != usual.get(setting)
    }
    settings |= {flag: True for flag in fixed if flag in method.settings}
    for setting, value in config.items():
        if setting not in (*BESIDE, *method.settings, *method.fixed) and value and value != usual.get(setting):
            raise ConfigError(
                f"{setting} is {value!r}, which a frozen model cannot take; expected {usual.get(setting)!r}"
            )
    check_settings(name, settings)
    return name, settings


def choose_targets(model: nn.Module, name: str, targets: Part | Sequence[str] | None) -> list[str]:
    """Names of the dense layers that a method adapts; None for those of its paper.

    Raises: ConfigError when none is meant.
    """
    if targets is not None:
        return target_modules(model, targets)
    attention = target_modules(model, "attention")
    wanted = KEY_VALUE if name == "ia3" else QUERY_VALUE
    chosen = [one for one in attention if one.split(".")[-1] in (*wanted, *FUSED)]
    if name == "ia3":
        ends = tuple(f".{ending}" for ending in FEED_FORWARD_ENDS)
        chosen += [one for one in target_modules(model, "feed_forward") if one.endswith(ends)]
    return chosen or target_modules(model, wanted)


def parameter_count(name: str, shapes: Sequence[tuple[int, int]], *, r: int = 0, rescaled_inputs: int = 0) -> int:
    """What is trained, given [(i, o)] of the layers; loKr with its usual factors.

    rescaled_inputs: (IA)3 only: how many of the layers, the last ones, have their input rescaled

    Raises: ConfigError for an unknown method.
    """
    peft_method(name)
    if name == "ia3":
        outputs, inputs = shapes[: len(shapes) - rescaled_inputs], shapes[len(shapes) - rescaled_inputs :]
        return sum(o for _, o in outputs) + sum(i for i, _ in inputs)
    each = {"loha": 2, "dora": 1, "lora": 1, "rslora": 1}
    if name in each:
        return sum(each[name] * r * (i + o) + (o if name == "dora" else 0) for i, o in shapes)
    if name == "vera":
        return sum(r + o for _, o in shapes)
    return sum(_kronecker_count(i, o, r) for i, o in shapes)


def _kronecker_count(i: int, o: int, r: int) -> int:
    """W1 [o1, i1] in full, W2 [o2, i2] as two factors where that is smaller."""
    (i1, i2), (o1, o2) = _squarest(i), _squarest(o)
    return o1 * i1 + (r * (o2 + i2) if r < max(o2, i2) / 2 else o2 * i2)


def _squarest(number: int) -> tuple[int, int]:
    small = max(n for n in range(1, int(number**0.5) + 1) if number % n == 0)
    return small, number // small
