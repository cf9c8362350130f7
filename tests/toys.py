"""Toy LMs with fixed weights and a tiny tokenizer: every architecture of the tests, in a few thousand parameters.

    lm = toy_lm("llama")                       # a FrozenLM
    encoder = toy_encoder("bert")              # a FrozenEncoder
    folder = toy_folder("t5", tmp_path)        # the same, saved as transformers saves it

The tokenizer drops spaces, lower-cases, takes runs of letters and digits as words and everything else one by one. It
knows `WORDS`, the letters, digits and punctuation, "\\n" among it; anything else is [UNK].
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

from frozenlm.encoder import FrozenEncoder
from frozenlm.lm import FrozenLM
from frozenlm.prompting.masked import FrozenMaskedLM

NAMES = ("gpt2", "opt", "llama", "qwen2", "t5", "bart")
DECODERS = ("gpt2", "opt", "llama", "qwen2")
ENCODER_DECODERS = ("t5", "bart")
ENCODERS = ("t5", "bert")

SPECIAL = ("[PAD]", "[UNK]", "[BOS]", "[EOS]", "[SEP]")
PAD, UNK, BOS, EOS, SEP = range(5)
# fmt: off
WORDS = (
    "title", "text", "question", "answer", "passage", "context", "the", "a", "of", "in", "is", "was", "who", "what",
    "when", "where", "city", "river", "king", "year", "capital", "france", "paris", "london", "berlin", "germany",
    "england", "nile", "egypt", "amazon", "brazil", "blue", "red", "green", "cat", "dog", "sat", "on", "mat", "one",
    "two", "three",
)
# fmt: on
LETTERS = [*"abcdefghijklmnopqrstuvwxyz0123456789"]
PUNCTUATION = [*".,:;?!'\"()[]<>|/-_", "\n"]
VOCAB_SIZE = 128
_KNOWN = [*SPECIAL, *dict.fromkeys([*WORDS, *LETTERS, *PUNCTUATION])]
VOCABULARY = [*_KNOWN, *(f"word{n}" for n in range(VOCAB_SIZE - len(_KNOWN)))]
WINDOW = 96
EMBEDDED = Path(__file__).resolve().parents[1] / "models" / "wiki-opt-22m"  # the small real LM of the project


def toy_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer of `VOCABULARY`; adds no control token of its own accord."""
    backend = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|[a-z0-9]+|[^\sa-z0-9]"), behavior="removed", invert=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        bos_token="[BOS]",
        eos_token="[EOS]",
        sep_token="[SEP]",
        clean_up_tokenization_spaces=False,
    )


def toy_model(name: str, *, seed: int = 0, **changes: Any) -> Any:
    """A transformers model of that architecture: H 32, 2 layers, 4 heads (over 2 key-value heads in llama and qwen2).

    Args:
        name: one of `NAMES`.
        seed: of the weights.
        changes: config fields to set otherwise.
    """
    ids = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
    small = {"vocab_size": VOCAB_SIZE, "max_position_embeddings": WINDOW, **ids}
    grouped = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    config: Any
    if name == "gpt2":
        config = GPT2Config(**{**small, "n_positions": WINDOW, "n_embd": 32, "n_layer": 2, "n_head": 4, **changes})
        model: Any = GPT2LMHeadModel(config)
    elif name == "opt":
        sizes = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = OPTConfig(**{**small, **sizes, "word_embed_proj_dim": 32, **changes})
        model = OPTForCausalLM(config)
    elif name == "llama":
        model = LlamaForCausalLM(LlamaConfig(**{**small, **grouped, **changes}))
    elif name == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**{**small, **grouped, "tie_word_embeddings": True, **changes}))
    elif name == "t5":
        sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
        ids = {**ids, "decoder_start_token_id": PAD}
        model = T5ForConditionalGeneration(T5Config(**{"vocab_size": VOCAB_SIZE, **sizes, **ids, **changes}))
    elif name == "bart":
        sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "scale_embedding": True}
        sizes |= {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in _BART}
        more = {"decoder_start_token_id": EOS, "forced_eos_token_id": None}
        model = BartForConditionalGeneration(BartConfig(**{**small, **sizes, **more, **changes}))
        model.final_logits_bias.normal_(generator=torch.Generator().manual_seed(seed + 1))
    else:
        raise ValueError(f"no toy LM called {name!r}; there are {', '.join(NAMES)}")
    _fill(model, seed)
    return model.eval()


_BART = (("ffn_dim", 64), ("attention_heads", 4))


def _fill(model: Any, seed: int) -> None:
    """Seeded weights, large enough that every layer shows in the logits (a fresh tiny model is all but constant)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.copy_(noise * 0.1 + (1.0 if "norm" in name.lower() or "ln_" in name else 0.0))
            elif "embed" in name or "shared" in name or ".wte" in name or ".wpe" in name:
                parameter.copy_(noise * 0.5)
            else:
                parameter.copy_(noise * 1.5 / parameter.shape[-1] ** 0.5)


def toy_lm(name: str = "gpt2", *, seed: int = 0, padding_side: Any = "right", **changes: Any) -> FrozenLM:
    """A FrozenLM over `toy_model(name)` and `toy_tokenizer()`, float32 on the CPU."""
    return FrozenLM.from_model(toy_model(name, seed=seed, **changes), toy_tokenizer(), padding_side=padding_side)


def toy_folder(name: str, folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """`toy_model(name)` and its tokenizer, saved to `folder / name`; returns that folder."""
    target = Path(folder) / name
    toy_model(name, seed=seed, **changes).save_pretrained(target)
    toy_tokenizer().save_pretrained(target)
    return target


def toy_encoder_model(name: str, *, seed: int = 0, **changes: Any) -> Any:
    """A transformers encoder of that architecture, one of `ENCODERS`: E 24 (not the LMs' 32), 2 layers, 4 heads."""
    model: Any
    if name == "t5":
        sizes = {"d_model": 24, "d_kv": 6, "d_ff": 48, "num_layers": 2, "num_heads": 4, "pad_token_id": PAD}
        model = T5EncoderModel(T5Config(**{"vocab_size": VOCAB_SIZE, **sizes, **changes}))
    elif name == "bert":
        sizes = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        small = {"vocab_size": VOCAB_SIZE, "max_position_embeddings": WINDOW, "pad_token_id": PAD}
        model = BertModel(BertConfig(**{**small, **sizes, **changes}))
    else:
        raise ValueError(f"no toy encoder called {name!r}; there are {', '.join(ENCODERS)}")
    _fill(model, seed)
    return model.eval()


def toy_encoder_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """`toy_tokenizer` that frames a text as the architecture's tokenizers do: x [EOS], or [BOS] x [SEP]."""
    tokenizer = toy_tokenizer()
    frame = "$A [EOS]" if name == "t5" else "[BOS] $A [SEP]"
    known = [("[EOS]", EOS), ("[BOS]", BOS), ("[SEP]", SEP)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=frame, special_tokens=known)
    return tokenizer


def toy_encoder(name: str = "t5", *, seed: int = 0, max_length: int | None = None, **changes: Any) -> FrozenEncoder:
    """A FrozenEncoder over `toy_encoder_model(name)`, float32 on the CPU."""
    model = toy_encoder_model(name, seed=seed, **changes)
    return FrozenEncoder.from_model(model, toy_encoder_tokenizer(name), max_length=max_length)


MASK = VOCAB_SIZE  # what is added to the vocabulary stands behind it


def toy_masked_lm(*, seed: int = 0, **changes: Any) -> FrozenMaskedLM:
    """A BERT that fills masks: `toy_encoder_tokenizer("bert")` with [MASK], H 24, 2 layers, 4 heads."""
    tokenizer = toy_encoder_tokenizer("bert")
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    sizes = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    small = {"vocab_size": VOCAB_SIZE + 1, "max_position_embeddings": WINDOW, "pad_token_id": PAD}
    model = BertForMaskedLM(BertConfig(**{**small, **sizes, **changes}))
    _fill(model, seed)
    return FrozenMaskedLM.from_model(model.eval(), tokenizer)


def toy_sentinel_lm(*, seed: int = 0, loud: float = 1.0) -> FrozenLM:
    """The toy T5 with three sentinels, <extra_id_0> to <extra_id_2>. loud: what their embeddings are multiplied by."""
    tokenizer = toy_encoder_tokenizer("t5")
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<extra_id_{n}>" for n in range(3)]})
    model = toy_model("t5", seed=seed, vocab_size=VOCAB_SIZE + 3)
    with torch.no_grad():
        model.shared.weight[VOCAB_SIZE:] *= loud
    return FrozenLM.from_model(model, tokenizer)
