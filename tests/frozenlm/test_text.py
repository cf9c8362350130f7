"""Text is only ever text, whatever the tokenizer is made of."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from frozenlm.errors import ConfigError
from frozenlm.text import TextCodec
from tests.toys import EMBEDDED


def unigram():
    """As T5's: the control tokens lie in the model's own vocabulary, with the best score of all."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("<extra_id_0>", 0.0), ("▁cat", -3.0)]
    pieces += [(letter, -5.0) for letter in "abcdefghijklmnopqrstuvwxyz</>_0"]
    backend = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens=["<extra_id_0>"],
    )


def byte_level():
    """As GPT-2's: one token that begins, ends and stands for the unknown."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["the cat sat on the mat <|endoftext|>"] * 3, trainer)
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end, bos_token=end, unk_token=end)


def words():
    """As BERT's, framed; a word-level model would find "[SEP]" by a plain look-up."""
    vocabulary = {piece: i for i, piece in enumerate(["[UNK]", "[CLS]", "[SEP]", "the", "cat"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


@pytest.mark.parametrize("make", [unigram, byte_level, words, ByT5Tokenizer])
@pytest.mark.parametrize("text", ["cat</s>", "</s>", "<|endoftext|>", "the [SEP] cat [CLS]", "<extra_id_0> <pad>"])
def test_no_control_token_comes_out_of_text(make, text):
    tokenizer = make()
    control = set(tokenizer.all_special_ids) - ({tokenizer.unk_token_id} if make in (unigram, words) else set())
    before = tokenizer(text)["input_ids"]
    codec = TextCodec(tokenizer, closes=True)
    assert not control & set(codec.encode(text))
    assert tokenizer(text)["input_ids"] == before  # the caller's tokenizer is as it was


@pytest.mark.parametrize("make", [unigram, byte_level, ByT5Tokenizer])
def test_the_text_survives_as_text(make):
    codec = TextCodec(make(), closes=False)
    assert codec.decode(codec.encode("cat</s>")) == "cat</s>"


@pytest.mark.parametrize("make", [unigram, byte_level, words, ByT5Tokenizer])
def test_plain_text_is_encoded_as_by_the_tokenizer_itself(make):
    tokenizer = make()
    codec = TextCodec(tokenizer, closes=False)
    for text in ("cat", "the cat", "the cat sat é"):
        assert codec.encode(text) == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert codec.encode_batch(["", "cat", ""]) == [[], codec.encode("cat"), []]


@pytest.mark.parametrize(
    ("make", "bos", "close"),
    [(unigram, (), (1,)), (byte_level, (), ()), (words, (1,), (2,)), (ByT5Tokenizer, (), (1,))],
)
def test_what_opens_and_closes_a_text(make, bos, close):
    assert (TextCodec(make(), closes=True).bos_ids, TextCodec(make(), closes=True).close_ids) == (bos, close)
    assert TextCodec(make(), closes=False).close_ids == ()  # a causal prompt is not ended


def test_control_tokens_leave_no_trace_in_decoded_text():
    assert TextCodec(words(), closes=False).decode([1, 3, 4, 2]) == "the cat"


def test_the_embedded_tokenizer():
    codec = TextCodec(AutoTokenizer.from_pretrained(EMBEDDED), closes=False)
    ids = codec.encode("[CLS] the nile [SEP] [MASK] [PAD] [UNK]")
    assert not {0, 100, 101, 102, 103} & set(ids)
    assert codec.decode(ids).replace(" ", "") == "[cls]thenile[sep][mask][pad][unk]"


def test_a_million_characters():
    assert len(TextCodec(words(), closes=False).encode("cat " * 250_000)) == 250_000


def test_what_is_no_tokenizer_is_refused():
    with pytest.raises(ConfigError, match="expected a transformers tokenizer, got str"):
        TextCodec("bert", closes=False)
