"""Keys and values in front of those of the text: real ones do what the text they are of does, and off is off."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError
from transformers import (
    AlbertConfig,
    AlbertModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    ModernBertConfig,
    ModernBertModel,
    PegasusConfig,
    PegasusForConditionalGeneration,
    RobertaConfig,
    RobertaModel,
)

from frozenlm.attention import OURS, Call, _attention
from frozenlm.attention_places import Layers, keys_values, places, prefixed
from frozenlm.errors import ConfigError, ShapeError
from frozenlm.rows import Tokens
from tests.test_frozen import state_of
from tests.toys import DECODERS, ENCODER_DECODERS, ENCODERS, NAMES, WINDOW, toy_encoder_model, toy_lm, toy_model

IDS = (5, 6, 7, 8, 9, 10, 11)
ANSWER = (1, 20, 21, 22, 23)
P = 3


def random_prefix(layers: Layers, length: int = P, seed: int = 0) -> Tensor:
    return torch.randn(layers.shape(length), generator=torch.Generator().manual_seed(seed))


def exact_lm(name: str, **changes):
    """In double precision, where other sums show as 1e-12 and errors as 1."""
    lm = toy_lm(name, **changes)
    lm.model.double()
    return lm


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", DECODERS)
def test_real_keys_and_values_do_what_their_text_does(name: str, implementation: str) -> None:
    lm = exact_lm(name, attn_implementation=implementation)
    with torch.no_grad():
        whole = lm.forward([[Tokens(IDS)]]).logits[0][P:]
        prefix = keys_values(lm.model, IDS[:P])
        with prefixed(lm.model, prefix, position_offset=True):
            behind = lm.forward([[Tokens(IDS[P:])]]).logits[0]
            written = lm.generate([[Tokens(IDS[P:])]], max_new_tokens=6)[0].ids
    torch.testing.assert_close(behind, whole, rtol=0, atol=1e-11)
    assert written == lm.generate([[Tokens(IDS)]], max_new_tokens=6)[0].ids


@pytest.mark.parametrize("name", ENCODERS)
def test_real_keys_and_values_of_an_encoder(name: str) -> None:
    """The first columns of a text, put in as a prefix: what is left reads the same."""
    model = toy_encoder_model(name).double()
    ids = torch.tensor([IDS])
    with torch.no_grad():
        whole = model(input_ids=ids).last_hidden_state[:, P:]
        first = keys_values(model, IDS)["encoder"][:, :, :P]
        with prefixed(model, {"encoder": first}, position_offset=True):
            left = model(input_ids=ids[:, P:]).last_hidden_state
    torch.testing.assert_close(left, whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_real_keys_and_values_of_an_encoder_decoder(name: str) -> None:
    lm = exact_lm(name)
    with torch.no_grad():
        whole = lm.forward([[Tokens(IDS)]], decoder_rows=[[Tokens(ANSWER)]]).logits[0]
        real = keys_values(lm.model, IDS, ANSWER)
        with prefixed(lm.model, {"decoder": real["decoder"][:, :, :P]}, position_offset=True):
            decoded = lm.forward([[Tokens(IDS)]], decoder_rows=[[Tokens(ANSWER[P:])]]).logits[0]
        first = {place: real[place][:, :, :P] for place in ("encoder", "cross")}
        with prefixed(lm.model, first, position_offset=True):
            read = lm.forward([[Tokens(IDS[P:])]], decoder_rows=[[Tokens(ANSWER)]]).logits[0]
            written = lm.generate([[Tokens(IDS[P:])]] * 2, max_new_tokens=6, num_beams=2)
    torch.testing.assert_close(decoded, whole[P:], rtol=0, atol=1e-11)
    torch.testing.assert_close(read, whole, rtol=0, atol=1e-11)
    assert written[1].ids == lm.generate([[Tokens(IDS)]], max_new_tokens=6, num_beams=2)[0].ids


SMALL = {
    **{"vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
HALVES = {
    f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("attention_heads", 2), ("ffn_dim", 16))
}
OTHERS = {
    "roberta": lambda: RobertaModel(RobertaConfig(**SMALL)),
    "modernbert": lambda: ModernBertModel(ModernBertConfig(**SMALL, cls_token_id=1, sep_token_id=2)),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SMALL)),
    "pegasus": lambda: PegasusForConditionalGeneration(
        PegasusConfig(vocab_size=64, d_model=16, encoder_layers=2, decoder_layers=2, **HALVES)
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_real_keys_and_values_of_other_architectures(name: str) -> None:
    """Whose positions reach them in other ways."""
    torch.manual_seed(0)
    model = OTHERS[name]().eval().double()
    text, answer = torch.tensor([IDS]), torch.tensor([ANSWER])
    reads_twice = model.config.is_encoder_decoder

    def run(read: Tensor, write: Tensor) -> Tensor:
        return model(input_ids=read, **({"decoder_input_ids": write} if reads_twice else {}))[0]

    with torch.no_grad():
        whole = run(text, answer)[:, P:]
        first = {place: kv[:, :, :P] for place, kv in keys_values(model, IDS, ANSWER).items()}
        with prefixed(model, first, position_offset=True):
            torch.testing.assert_close(run(text[:, P:], answer[:, P:]), whole, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", DECODERS)
def test_a_memory_read_inside_holds_the_text_alone(name: str) -> None:
    lm = exact_lm(name)
    prefix = {"decoder": random_prefix(places(lm.model)["decoder"])}
    with torch.no_grad(), prefixed(lm.model, prefix, position_offset=True):
        memory = lm.read([[Tokens(IDS[:4])]])
        assert memory.keys[0].shape[2] == 4
        later = lm.forward([[Tokens(IDS[4:])]], memory=memory).logits[0]
        whole = lm.forward([[Tokens(IDS)]]).logits[0]
        written = lm.generate([[Tokens(IDS)]] * 2, max_new_tokens=5, num_beams=3)[1]
        assert written.ids == lm.generate([[Tokens(IDS[4:])]], memory=memory, max_new_tokens=5, num_beams=3)[0].ids
    torch.testing.assert_close(later, whole[4:], rtol=0, atol=1e-11)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", [*DECODERS, "t5", "bart"])
def test_each_row_its_own_prefix(name: str, side: str) -> None:
    """Rows of other lengths behind other prefixes, alone and in one batch."""
    lm = exact_lm(name, padding_side=side)
    rows = [[Tokens(IDS)], [Tokens(IDS[2:5])], [Tokens(IDS[1:6])]]
    answers = [[40, 41], [42], [43, 44, 45]]
    own = {place: [random_prefix(size, seed=k) for k in range(3)] for place, size in places(lm.model).items()}
    with torch.no_grad():
        with prefixed(lm.model, {place: torch.stack(one) for place, one in own.items()}, position_offset=True):
            together = lm.token_logprobs(rows, answers)
        for k in range(3):
            with prefixed(lm.model, {place: one[k] for place, one in own.items()}, position_offset=True):
                alone = lm.token_logprobs(rows[k : k + 1], answers[k : k + 1])[0]
            torch.testing.assert_close(together[k], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_off_is_off_and_nothing_stays(name: str) -> None:
    lm = toy_lm(name)
    decoder_rows = [[Tokens(ANSWER)]] if lm.kind == "encoder-decoder" else None
    before, plain = state_of(lm.model), lm.forward([[Tokens(IDS)]], decoder_rows=decoder_rows).logits[0]
    prefixes = {place: random_prefix(size) for place, size in places(lm.model).items()}
    with prefixed(lm.model, prefixes):
        assert lm.model.config._attn_implementation == OURS["sdpa"]
        assert not torch.allclose(lm.forward([[Tokens(IDS)]], decoder_rows=decoder_rows).logits[0], plain, atol=1e-3)
    with pytest.raises(RuntimeError, match="midway"), prefixed(lm.model, prefixes, position_offset=True):
        raise RuntimeError("midway")
    assert state_of(lm.model) == before
    assert torch.equal(lm.forward([[Tokens(IDS)]], decoder_rows=decoder_rows).logits[0], plain)


def test_two_prefixes_stand_one_after_the_other() -> None:
    lm = exact_lm("llama")
    size = places(lm.model)["decoder"]
    one, two = random_prefix(size, 2), random_prefix(size, 3, seed=1)
    with torch.no_grad():
        with prefixed(lm.model, {"decoder": torch.cat([one, two], dim=2)}, position_offset=True):
            joined = lm.forward([[Tokens(IDS)]]).logits[0]
        with prefixed(lm.model, {"decoder": one}, position_offset=True):
            with prefixed(lm.model, {"decoder": two}, position_offset=True):
                both = lm.forward([[Tokens(IDS)]]).logits[0]
            first = lm.forward([[Tokens(IDS)]]).logits[0]
        with prefixed(lm.model, {"decoder": one}, position_offset=True):
            assert torch.equal(lm.forward([[Tokens(IDS)]]).logits[0], first)
    torch.testing.assert_close(both, joined, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "bart"])
def test_gradient_checkpointing(name: str) -> None:
    """Layers that run again in the backward pass see the prefix again."""
    quiet = {"dropout": 0.0} if name == "bart" else {"dropout_rate": 0.0} if name == "t5" else {}
    quiet |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0} if name == "gpt2" else {}
    model = toy_model(name, **quiet).requires_grad_(False)
    inputs = {"input_ids": torch.tensor([IDS]), "use_cache": False}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.tensor([ANSWER])
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable()
            model.train()
        prefixes = {place: random_prefix(size).requires_grad_() for place, size in places(model).items()}
        with prefixed(model, prefixes, position_offset=True):
            model(**inputs).logits.square().mean().backward()
        gradients.append(prefixes)
    for place, prefix in gradients[0].items():
        assert prefix.grad.abs().min() > 0
        torch.testing.assert_close(gradients[1][place].grad, prefix.grad)


def test_layers_that_run_again_without_the_prefix_are_an_error() -> None:
    model = toy_model("llama").requires_grad_(False).train()
    model.activation_checkpointing_enable()
    prefix = random_prefix(places(model)["decoder"]).requires_grad_()
    with prefixed(model, {"decoder": prefix}):
        loss = model(input_ids=torch.tensor([IDS]), use_cache=False).logits.sum()
    with pytest.raises(CheckpointError, match="recomputation"):
        loss.backward()


def test_half_precision_takes_a_float32_prefix() -> None:
    lm = toy_lm("llama")
    lm.model.bfloat16()
    prefix = random_prefix(places(lm.model)["decoder"]).requires_grad_()
    with prefixed(lm.model, {"decoder": prefix}):
        lm.forward([[Tokens(IDS)]]).logits[0].float().sum().backward()
    assert prefix.grad.dtype == torch.float32 and prefix.grad.abs().sum() > 0


def test_grouped_heads_have_prefixes_of_their_own_number() -> None:
    assert places(toy_model("llama")) == {"decoder": Layers(2, 2, 8)}  # 4 heads over 2 key-value heads
    assert places(toy_model("gpt2")) == {"decoder": Layers(2, 4, 8)}
    assert places(toy_encoder_model("bert")) == {"encoder": Layers(2, 4, 6)}
    assert set(places(toy_model("t5"))) == {"encoder", "decoder", "cross"}


def test_prefixes_of_another_shape() -> None:
    model = toy_model("llama")
    wrong = [(2, 2, 3, 4, 8), (1, 2, 3, 2, 8), (2, 2, 0, 2, 8), (2, 2, 3, 2), (2, 1, 3, 2, 8)]
    for shape in wrong:
        with pytest.raises(ShapeError, match=r"\[2, 2, P, 2, 8\]"), prefixed(model, {"decoder": torch.zeros(shape)}):
            pass
    with (
        pytest.raises(ConfigError, match="no 'cross' attention"),
        prefixed(model, {"cross": torch.zeros(2, 2, 3, 2, 8)}),
    ):
        pass
    lm = toy_lm("gpt2")
    three = torch.zeros(3, *places(lm.model)["decoder"].shape(2))
    with pytest.raises(ShapeError, match="of 3 rows in a batch of 2"), prefixed(lm.model, {"decoder": three}):
        lm.forward([[Tokens(IDS)]] * 2)
    with pytest.raises(ShapeError, match="no token"):
        keys_values(lm.model, ())


@pytest.mark.parametrize("name", [*DECODERS, "bart"])
def test_a_text_that_does_not_fit_behind_the_prefix(name: str) -> None:
    lm = toy_lm(name)
    prefixes = {place: random_prefix(size, 10) for place, size in places(lm.model).items()}
    fits, too_long = [Tokens([5] * (WINDOW - 10))], [Tokens([5] * (WINDOW - 9))]
    with torch.no_grad(), prefixed(lm.model, prefixes, position_offset=True):
        lm.score([fits], [[7]])
        with pytest.raises(ShapeError, match=f"needs {WINDOW + 1} positions"):
            lm.score([too_long], [[7]])
    with torch.no_grad(), prefixed(lm.model, prefixes):
        lm.score([too_long], [[7]])  # positions are the text's own


def test_attention_that_takes_no_prefix() -> None:
    with pytest.raises(ConfigError, match="written in the model itself"):
        places(nn.Linear(2, 2))
    flash = toy_model("gpt2")
    flash.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ConfigError, match="flash_attention_2"):
        places(flash)
    sizes = {"embedding_size": 8, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    with pytest.raises(ConfigError, match="share a module"):
        places(AlbertModel(AlbertConfig(vocab_size=32, num_hidden_layers=3, **sizes)))


def test_a_call_without_a_prefix_is_the_models_own() -> None:
    query = torch.randn(1, 2, 3, 4)
    module = nn.Module()
    module.is_causal = True
    got, _ = _attention("sdpa", module, query, query, query, None)
    whole = torch.nn.functional.scaled_dot_product_attention(query, query, query, is_causal=True)
    assert torch.equal(got, whole.transpose(1, 2)) and Call(module, query, query, True).causal


def test_prefixes_of_single_rows_are_for_calls_that_keep_the_batch() -> None:
    lm = toy_lm("llama")
    sizes = places(lm.model)["decoder"]
    prefixes = torch.randn(3, *sizes.shape(2), generator=torch.Generator().manual_seed(0))
    rows, answers = [[Tokens((5,) * n)] for n in (2, 6, 3)], [(40, 41)] * 3
    alone = []
    for row, answer, prefix in zip(rows, answers, prefixes, strict=True):
        with prefixed(lm.model, {"decoder": prefix}):
            alone.append(lm.score([row], [answer])[0])
    with prefixed(lm.model, {"decoder": prefixes}):
        together = [float(one.sum()) for one in lm.token_logprobs(rows, answers)]
        for call in (lambda: lm.score(rows, answers), lambda: lm.generate(rows), lambda: lm.hidden_states(rows)):
            with pytest.raises(ShapeError, match="runs rows in an order of its own"):
                call()
    assert together == pytest.approx(alone, abs=1e-4)
    with prefixed(lm.model, {"decoder": prefixes[:1]}):  # one for all
        assert lm.score(rows, answers)[0] == pytest.approx(alone[0], abs=1e-4)
