"""A real grouped-head Llama against its published greedy sample, word for word (`shared/models/stories260K`)."""

import re
import struct

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from frozenlm import FrozenLM, Tokens

pytestmark = pytest.mark.shared_data
BOS = 1


def half_split(weight, heads, head_size):
    """llama2.c rotates neighbouring pairs of rows, transformers the two halves of a head."""
    return weight.reshape(heads, head_size // 2, 2, -1).swapaxes(1, 2).reshape(heads * head_size, -1)


def read_model(path):
    data = path.read_bytes()
    dim, hidden, layers, heads, kv_heads, vocabulary, length = struct.unpack("7i", data[:28])
    floats = np.frombuffer(data, dtype="<f4", offset=28)
    head = dim // heads
    used = 0

    def take(*shape):
        nonlocal used
        used += int(np.prod(shape))
        return floats[used - int(np.prod(shape)) : used].reshape(shape)

    embedding = take(vocabulary, dim)
    parts = {
        "input_layernorm": take(layers, dim),
        "self_attn.q_proj": take(layers, dim, dim),
        "self_attn.k_proj": take(layers, kv_heads * head, dim),
        "self_attn.v_proj": take(layers, kv_heads * head, dim),
        "self_attn.o_proj": take(layers, dim, dim),
        "post_attention_layernorm": take(layers, dim),
        "mlp.gate_proj": take(layers, hidden, dim),
        "mlp.down_proj": take(layers, dim, hidden),
        "mlp.up_proj": take(layers, hidden, dim),
    }
    tensors = {"model.embed_tokens.weight": embedding, "model.norm.weight": take(dim), "lm_head.weight": embedding}
    for name, weights in parts.items():
        for layer, weight in enumerate(weights):
            if name.endswith(("q_proj", "k_proj")):
                weight = half_split(weight, len(weight) // head, head)
            tensors[f"model.layers.{layer}.{name}.weight"] = weight
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=dim,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=length,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=BOS,  # the stories were trained one after another: the next <s> is the end of this one
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    model.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in tensors.items()})
    return model


def read_tokenizer(path):
    data, pieces, at = path.read_bytes(), [], 4
    while at < len(data):
        _, length = struct.unpack("<fi", data[at : at + 8])
        pieces.append(data[at + 8 : at + 8 + length].decode())
        at += 8 + length
    backend = Tokenizer(models.WordLevel({piece.strip("\n"): i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )


@pytest.fixture(scope="module")
def stories(shared_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stories")
    source = shared_data / "models" / "stories260K"
    read_model(source / "stories260K.bin").save_pretrained(folder)
    read_tokenizer(source / "tok512.bin").save_pretrained(folder)
    return FrozenLM.load(folder)


@pytest.fixture(scope="module")
def published(shared_data):
    page = (shared_data / "models" / "stories260K" / "published-sample.md").read_text()
    return re.search(r"-t 0\.0\n(.*?)\n```", page, flags=re.DOTALL).group(1)


def test_the_published_greedy_sample(stories, published):
    (story,) = stories.generate([[Tokens((BOS,))]], max_new_tokens=256, stop=())
    assert story.text.strip() == published


def test_the_same_from_a_memory_and_in_a_batch(stories):
    (story,) = stories.generate([[Tokens((BOS,))]], max_new_tokens=60, stop=())
    begun = [BOS, *story.ids[:20]]
    memory = stories.read([[Tokens.of(begun[:-1])], [Tokens.of(begun[:4])]])
    rows = [[Tokens.of(begun[-1:])], [Tokens.of(begun[4:])]]
    for one in stories.generate(rows, memory=memory, max_new_tokens=40, stop=()):
        assert one.ids == story.ids[20:]
