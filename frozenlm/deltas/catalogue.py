"""All trained methods in one table: what each is called, where it acts, what it is defined for, what it trains.

    for method in methods():
        method.name, method.acts_on, method.hosts, method.mixes, method.peft_type, method.paper

Whether rows of a method can share a batch with rows of others follows from where it acts. What lives in a row (soft
tokens) or before its keys and values (a prefix) belongs to that row, so any mixture is one batch. What changes the
model itself (weights, biases, sublayers) holds for all rows of a call, so such tasks take turns, a batch for each.
Deltas are the three families of the Delta Tuning survey (arXiv 2203.06904): addition, specification, reparametrisation.
Symbols: P soft tokens or prefix, H hidden size, L layers, T tasks, K D the key-value heads' width, i and o of a dense
layer, r rank, m bottleneck, d dimensions, N weights covered, V vocabulary, C labels.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from frozenlm.errors import ConfigError

Family = Literal["prompt", "addition", "specification", "reparametrisation", "full"]
HostKind = Literal["decoder", "encoder-decoder", "encoder", "masked"]
LMS: tuple[HostKind, ...] = ("decoder", "encoder-decoder")
HOSTS: tuple[HostKind, ...] = (*LMS, "encoder", "masked")


@dataclass(frozen=True)
class Method:
    """One trained method.

    name: unique; what configs call it, but for adapters, whose three forms are told apart here
    family: prompts, or which family of deltas; "full" is the yardstick
    where: "module:Class"
    acts_on: what it changes
    trains: how many numbers, by formula
    paper: arXiv id; "" where there is none
    hosts: kinds of models it is defined for
    mixes: whether its rows can share a batch with rows of other methods and of other modules of its own
    peft_type: what `peft`'s files call it; None where we neither read nor write such files of it
    settings: what `create` needs to make this form of the class
    """

    name: str
    family: Family
    where: str
    acts_on: str
    trains: str
    paper: str
    hosts: tuple[HostKind, ...] = HOSTS
    mixes: bool = False
    peft_type: str | None = None
    settings: tuple[tuple[str, str], ...] = ()

    @property
    def module_class(self) -> Any:
        """The class, imported when asked for."""
        module, name = self.where.split(":")
        return getattr(import_module(module), name)

    @property
    def kind(self) -> str:
        """What its checkpoints are saved as."""
        found = self.module_class
        return str(getattr(found, "KIND", None) or import_module(self.where.split(":")[0]).KIND)


def methods() -> tuple[Method, ...]:
    """All methods: prompts first, then deltas by family, full fine-tuning of a copy last."""
    return (*_PROMPTS, *_DELTAS)


def method(name: str) -> Method:
    """The method of that name.

    Raises: ConfigError for another name.
    """
    found = {one.name: one for one in methods()}
    if name not in found:
        raise ConfigError(f"there is no method {name!r}; expected one of {', '.join(found)}")
    return found[name]


def _prompt(name: str, where: str, trains: str, paper: str, **more: Any) -> Method:
    more = {"acts_on": "the input", "hosts": LMS, **more}
    return Method(name, "prompt", f"frozenlm.{where}", trains=trains, paper=paper, mixes=True, **more)


def _prefix(name: str, where: str, paper: str) -> Method:
    trains, acts_on = "2 L P K D in each of encoder, decoder and cross-attention", "keys and values"
    return Method(
        name, "addition", f"frozenlm.deltas.{where}", acts_on, trains, paper, mixes=True, peft_type="PREFIX_TUNING"
    )


def _adapter(form: str, acts_on: str, paper: str, trains: str = "2 H m + H + m a block") -> Method:
    where = "frozenlm.deltas.adapter:Adapter"
    return Method(f"adapter_{form}", "addition", where, acts_on, trains, paper, settings=(("form", form),))


def _peft(name: str, peft_type: str, trains: str, paper: str, acts_on: str = "weights") -> Method:
    where, settings = "frozenlm.deltas.lora:PeftDelta", (("method", name),)
    family: Family = "addition" if name == "ia3" else "reparametrisation"
    return Method(name, family, where, acts_on, trains, paper, peft_type=peft_type, settings=settings)


def _specification(name: str, where: str, trains: str, paper: str, acts_on: str = "weights") -> Method:
    return Method(name, "specification", f"frozenlm.deltas.{where}", acts_on, trains, paper)


_PROMPTS = (
    _prompt("soft_prompt", "prompts.soft_prompt:SoftPrompt", "P H", "2104.08691", peft_type="PROMPT_TUNING"),
    _prompt("task_prompts", "prompts.task_prompts:TaskPrompts", "T P H", "2104.08691"),
    _prompt(
        "p_tuning", "prompts.p_tuning:PTuning", "the encoder; P H once collapsed", "2103.10385", peft_type="P_TUNING"
    ),
    _prompt("slotted_prompt", "prompts.slots:SlottedPrompt", "P H", "2103.10385", peft_type="P_TUNING"),
    _prompt("low_rank_prompt", "prompts.low_rank:LowRankPrompt", "r (P + H), or 2 r H", "2406.19486"),
    _prompt("prompt_autoencoder", "prompts.prompt_autoencoder:PromptAutoEncoder", "the auto-encoder", "2110.07867"),
    _prompt("intrinsic_prompt", "prompts.intrinsic:IntrinsicPrompt", "d", "2110.07867"),
    _prompt("input_dependent_prompt", "prompts.input_dependent:InputDependentPrompt", "the network", "2204.10019"),
    _prompt("idpg", "prompts.idpg:IDPG", "the network", "2204.04497"),
    _prompt("attempt", "prompts.attempt:Attempt", "T P H + 2 H m + 2 H", "2205.11961"),
    _prompt("soft_slots", "prompting.soft_slots:SoftSlots", "P H", "2111.01998", hosts=(*LMS, "masked")),
    _prompt(
        "soft_verbalizer",
        "prompting.learned_verbalizers:SoftVerbalizer",
        "C H",
        "2101.00121",
        acts_on="the answer",
        hosts=(*LMS, "masked"),
    ),
    _prompt(
        "prototypical_verbalizer",
        "prompting.learned_verbalizers:PrototypicalVerbalizer",
        "d (H + C)",
        "2203.09770",
        acts_on="the answer",
        hosts=(*LMS, "masked"),
    ),
)
_DELTAS = (
    _prefix("prefix_tuning", "prefix_tuning:PrefixTuning", "2101.00190"),
    _prefix("p_tuning_v2", "p_tuning_v2:PTuningV2", "2110.07602"),
    _adapter("houlsby", "attention and feed-forward outputs", "1902.00751", "2 (2 H m + H + m) a block"),
    _adapter("pfeiffer", "feed-forward outputs", "2005.00247"),
    _adapter("parallel", "feed-forward outputs", "2110.04366"),
    _peft("ia3", "IA3", "o of keys and values, i of the feed-forward network's end", "2205.05638", "activations"),
    _specification("bitfit", "bitfit:BitFit", "the biases", "2106.10199", "biases"),
    _specification("partial_layers", "partial_layers:PartialLayers", "the last blocks", "1911.03090"),
    _specification("diff_pruning", "diff_pruning:DiffPruning", "2 N, then a share of N", "2012.07463"),
    _specification("masking", "masking:Masking", "N; one bit each is kept", "2004.12406"),
    _specification("random_subset", "random_subset:RandomSubset", "a share of N", "2203.06904"),
    _peft("lora", "LORA", "r (i + o) a layer", "2106.09685"),
    _peft("rslora", "LORA", "r (i + o) a layer", "2312.03732"),
    _peft("dora", "LORA", "r (i + o) + o a layer", "2402.09353"),
    _peft("loha", "LOHA", "2 r (i + o) a layer", "2108.06098"),
    _peft("lokr", "LOKR", "a small W1, and W2 or r times its sides", "2309.14859"),
    _peft("vera", "VERA", "r + o a layer", "2310.11454"),
    Method(
        "intrinsic_dimension",
        "reparametrisation",
        "frozenlm.deltas.intrinsic_dimension:IntrinsicDimension",
        "weights",
        "d",
        "2012.13255",
    ),
    Method("full_copy", "full", "frozenlm.deltas.full_copy:FullCopy", "weights", "N", ""),
)
