"""The masked host: the plain model's logits at the mask, whatever stands beside it in row and batch."""

import pytest
import torch
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from frozenlm.deltas.attach import Host
from frozenlm.errors import ConfigError, ShapeError
from frozenlm.prompting.masked import FrozenMaskedLM
from frozenlm.rows import Soft, Tokens
from tests.toys import MASK, VOCAB_SIZE, WINDOW, toy_encoder_tokenizer, toy_masked_lm, toy_model, toy_tokenizer

SMALL = {"vocab_size": VOCAB_SIZE + 1, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4}
BODY = {**SMALL, "intermediate_size": 32, "max_position_embeddings": 64, "pad_token_id": 0}
OTHERS = {
    "roberta": lambda: RobertaForMaskedLM(RobertaConfig(**BODY)),
    "albert": lambda: AlbertForMaskedLM(AlbertConfig(**BODY, embedding_size=16)),
    "electra": lambda: ElectraForMaskedLM(ElectraConfig(**BODY, embedding_size=16)),
    "distilbert": lambda: DistilBertForMaskedLM(
        DistilBertConfig(vocab_size=VOCAB_SIZE + 1, dim=24, hidden_dim=32, n_layers=1, n_heads=4, pad_token_id=0)
    ),
    "modernbert": lambda: ModernBertForMaskedLM(
        ModernBertConfig(**BODY, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=4)
    ),
}
ROWS = [[2, 7, MASK, 9, 4], [2, MASK, 4], [2, 30, 31, 32, 33, 34, MASK, 4]]


def tokenizer():
    made = toy_encoder_tokenizer("bert")
    made.add_special_tokens({"mask_token": "[MASK]"})
    return made


@torch.no_grad()
def plain(lm: FrozenMaskedLM, ids: list[int]) -> torch.Tensor:
    return lm.model(input_ids=torch.tensor([ids])).logits[0, ids.index(MASK)]


def test_logits_are_the_models_own_alone_and_in_a_batch() -> None:
    lm = toy_masked_lm()
    batch = lm.mask_logits([[Tokens.of(ids)] for ids in ROWS])
    assert batch.shape == (3, VOCAB_SIZE + 1)
    for ids, found in zip(ROWS, batch, strict=True):
        torch.testing.assert_close(found, plain(lm, ids), atol=1e-5, rtol=0)
        torch.testing.assert_close(found, lm.mask_logits([[Tokens.of(ids)]])[0], atol=1e-5, rtol=0)
    assert isinstance(lm, Host)


@pytest.mark.parametrize("name", OTHERS)
def test_other_families(name: str) -> None:
    torch.manual_seed(0)
    lm = FrozenMaskedLM.from_model(OTHERS[name](), tokenizer())
    for ids, found in zip(ROWS, lm.mask_logits([[Tokens.of(ids)] for ids in ROWS]), strict=True):
        torch.testing.assert_close(found, plain(lm, ids), atol=1e-5, rtol=0)


def test_soft_segments_stand_anywhere_and_learn() -> None:
    lm = toy_masked_lm()
    words = lm.embed(torch.tensor([7, 9])).clone().requires_grad_(True)
    soft = lm.mask_logits([[Tokens((2,)), Soft(words[:1]), Tokens((MASK,)), Soft(words[1:]), Tokens((4,))]])
    torch.testing.assert_close(soft[0], plain(lm, ROWS[0]), atol=1e-5, rtol=0)
    soft[0, 50].backward()
    assert bool((words.grad.abs().sum(dim=1) > 0).all())
    assert all(p.grad is None for p in lm.model.parameters())
    lm.assert_unchanged()


def test_saved_and_loaded(tmp_path) -> None:
    lm = toy_masked_lm()
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    again = FrozenMaskedLM.load(tmp_path, device="cpu")
    assert again.fingerprint == lm.fingerprint and str(again.verify()).startswith("LM weights changed: 0 of ")
    torch.testing.assert_close(again.mask_logits([[Tokens.of(ROWS[0])]]), lm.mask_logits([[Tokens.of(ROWS[0])]]))


def test_what_is_refused(tmp_path) -> None:
    lm = toy_masked_lm()
    for row, message in [([2, 4], "row 0 has no mask"), ([2, MASK, MASK, 4], "2 masks"), ([2] * WINDOW + [MASK], "97")]:
        with pytest.raises(ShapeError, match=message):
            lm.mask_logits([[Tokens.of(row)]])
    with pytest.raises(ConfigError, match="no mask token"):
        FrozenMaskedLM.from_model(lm.model, toy_tokenizer())
    toy_model("gpt2").save_pretrained(tmp_path)
    toy_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="does not fill masks"):
        FrozenMaskedLM.load(tmp_path)
