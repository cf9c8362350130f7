"""The frozen LM against plain transformers, for every architecture: logits, padding, mixtures, scores, refusals."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BertConfig, BertForMaskedLM, BertLMHeadModel
from transformers.utils import logging as hf_logging

import frozenlm
from frozenlm import FrozenLM, Soft, Tokens
from frozenlm.errors import CheckpointError, ConfigError, FrozenLMError, FrozenViolationError, ShapeError
from tests.toys import (
    BOS,
    DECODERS,
    EMBEDDED,
    ENCODER_DECODERS,
    EOS,
    NAMES,
    PAD,
    toy_folder,
    toy_lm,
    toy_model,
    toy_tokenizer,
)

SHORT, LONG = [20, 21, 22], [30, 31, 32, 33, 34, 35, 36]
EXACT = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module", params=NAMES)
def lm(request):
    return toy_lm(request.param)


def soft(lm, n, seed=0, requires_grad=False):
    vectors = torch.randn(n, lm.hidden_size, generator=torch.Generator().manual_seed(seed))
    return Soft(vectors.requires_grad_(requires_grad))


def logits(lm, rows, **options):
    if lm.kind == "encoder-decoder":
        options.setdefault("decoder_rows", [[Tokens((*lm.start_ids, *SHORT))] for _ in rows])
    return lm.forward(rows, **options).logits


def plain_logits(lm, ids):
    extra = {}
    if lm.kind == "encoder-decoder":
        extra = {"decoder_input_ids": torch.tensor([[*lm.start_ids, *SHORT]])}
    with torch.no_grad():
        return lm.model(input_ids=torch.tensor([ids]), **extra).logits[0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_text_alone_gives_the_models_own_logits(name, side):
    lm = toy_lm(name, padding_side=side)
    found = logits(lm, [[Tokens.of(SHORT)], [Tokens.of(LONG)]])
    for ids, mine in zip((SHORT, LONG), found, strict=True):
        torch.testing.assert_close(mine, plain_logits(lm, ids), **EXACT)


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_different_structure_in_one_batch_equal_the_rows_alone(name):
    right, left = toy_lm(name), toy_lm(name, padding_side="left")
    rows = [
        [soft(right, 4), Tokens.of(SHORT)],
        [Tokens.of(LONG)],
        [Tokens.of(SHORT), soft(right, 2, seed=1), Tokens.of(LONG), soft(right, 3, seed=2)],
        [Tokens((7,)), Tokens(()), soft(right, 1, seed=3), Tokens((8, 9))],
    ]
    together, padded_left = logits(right, rows), logits(left, rows)
    for number, row in enumerate(rows):
        (alone,) = logits(right, [row])
        torch.testing.assert_close(together[number], alone, **EXACT)
        torch.testing.assert_close(padded_left[number], alone, **EXACT)


def test_soft_vectors_that_are_embeddings_equal_the_tokens(lm):
    embedded = Soft(lm.embed(torch.tensor(LONG)))
    (with_soft,) = logits(lm, [[Tokens.of(SHORT), embedded, Tokens((9,))]])
    (with_text,) = logits(lm, [[Tokens.of([*SHORT, *LONG, 9])]])
    torch.testing.assert_close(with_soft[-1], with_text[-1], **EXACT)
    assert lm.embed(torch.tensor([[1, 2], [3, 4]])).shape == (2, 2, lm.hidden_size)


@pytest.mark.parametrize("name", DECODERS)
def test_logits_stand_in_line_with_the_text(name):
    lm = toy_lm(name)
    (whole,) = logits(lm, [[Tokens.of(SHORT), soft(lm, 2), Tokens.of(LONG)]])
    assert whole.shape == (len(SHORT) + len(LONG), lm.vocab_size)
    torch.testing.assert_close(whole[:3], plain_logits(lm, SHORT), **EXACT)  # before the soft tokens: as without them


def test_token_logprobs_equal_those_of_the_plain_model(lm):
    answers = [[40, 41, EOS], [50]]
    found = lm.token_logprobs([[Tokens.of(SHORT)], [Tokens.of(LONG)]], answers)
    for ids, answer, mine in zip((SHORT, LONG), answers, found, strict=True):
        with torch.no_grad():
            if lm.kind == "decoder":
                plain = lm.model(torch.tensor([[*ids, *answer]])).logits[0, len(ids) - 1 : -1]
            else:
                decoder = torch.tensor([[*lm.start_ids, *answer[:-1]]])
                plain = lm.model(torch.tensor([ids]), decoder_input_ids=decoder).logits[0]
        wanted = plain.log_softmax(dim=1)[range(len(answer)), answer]
        torch.testing.assert_close(mine, wanted, **EXACT)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_soft_vectors_and_nothing_of_the_lm(name):
    lm = FrozenLM.from_model(toy_model(name).double(), toy_tokenizer())
    prompt = soft(lm, 3, requires_grad=True)
    rows = [[prompt, Tokens.of(SHORT)], [Tokens.of(LONG), prompt]]
    loss = -torch.stack([one.sum() for one in lm.token_logprobs(rows, [[40, 41], [42]])]).sum()
    loss.backward()
    assert prompt.vectors.grad is not None and bool((prompt.vectors.grad != 0).all())
    assert all(p.grad is None and not p.requires_grad for p in lm.model.parameters())
    # Against a finite difference along one direction.
    direction = torch.randn(prompt.vectors.shape, generator=torch.Generator().manual_seed(5))
    step = 1e-3
    values = []
    for sign in (1, -1):
        moved = Soft(prompt.vectors.detach() + sign * step * direction)
        values.append(-sum(lm.score([[moved, Tokens.of(SHORT)], [Tokens.of(LONG), moved]], [[40, 41], [42]])))
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(
        float((prompt.vectors.grad * direction).sum()), rel=0.02
    )


def test_scores_do_not_depend_on_how_rows_are_batched(lm):
    rows = [[Tokens.of(range(10, 10 + n))] for n in (3, 9, 1, 6, 2)]
    answers = [[40], [41, 42, 43], [44, 45], [46], [47, 48]]
    one_by_one = [float(lm.token_logprobs([r], [a])[0].sum()) for r, a in zip(rows, answers, strict=True)]
    assert lm.score(rows, answers) == pytest.approx(one_by_one, abs=1e-4)
    assert lm.score(rows, answers, batch_tokens=12) == pytest.approx(one_by_one, abs=1e-4)


def test_score_texts_is_score_of_the_encoded_texts(lm):
    found = lm.score_texts(["the cat", "question who"], ["sat on", "king"])
    wanted = lm.score(
        [[Tokens.of(lm.encode("the cat"))], [Tokens.of(lm.encode("question who"))]],
        [lm.encode("sat on"), lm.encode("king")],
    )
    assert found == wanted
    with pytest.raises(ShapeError, match="2 prompts, but 1 continuations"):
        lm.score_texts(["a", "b"], ["c"])


def test_hidden_states_are_the_last_layers_at_the_text(lm):
    rows = [[soft(lm, 2), Tokens.of(SHORT)], [Tokens.of(LONG)]]
    found = lm.hidden_states(rows, batch_tokens=8)
    assert [one.shape for one in found] == [(3, lm.hidden_size), (7, lm.hidden_size)]
    with torch.no_grad():
        body = lm.model.get_encoder() if lm.kind == "encoder-decoder" else lm.model.base_model
        plain = body(input_ids=torch.tensor([LONG])).last_hidden_state[0]
    torch.testing.assert_close(found[1], plain, **EXACT)


def test_using_the_lm_leaves_it_unchanged(lm):
    before = lm.fingerprint
    lm.generate([[Tokens.of(SHORT)]], max_new_tokens=3)
    assert str(lm.verify()) == f"LM weights changed: 0 of {lm.verify().total}"
    lm.assert_unchanged()
    assert lm.fingerprint == before
    assert not isinstance(lm, torch.nn.Module)


def test_a_module_that_holds_the_lm_does_not_own_its_weights():
    class Holder(torch.nn.Module):
        def __init__(self, lm):
            super().__init__()
            self.lm = lm

    holder = Holder(toy_lm())
    assert list(holder.parameters()) == [] and holder.state_dict() == {}
    holder.train()
    assert not holder.lm.model.training


def test_a_thawed_lm_is_found():
    lm = toy_lm()
    next(iter(lm.model.parameters())).requires_grad_(True)
    with pytest.raises(FrozenViolationError, match="require gradient"):
        lm.assert_unchanged()
    other = toy_lm()
    other.model.train()
    with pytest.raises(FrozenViolationError, match="training mode"):
        other.assert_unchanged()


@pytest.mark.parametrize("changes", [{"word_embed_proj_dim": 16}, {"do_layer_norm_before": False}])
def test_opt_variants(changes):
    """opt-350m projects its embeddings (so H is the embeddings' width, not the layers'), and norms after the block."""
    lm = toy_lm("opt", **changes)
    assert lm.hidden_size == changes.get("word_embed_proj_dim", 32)
    torch.testing.assert_close(logits(lm, [[Tokens.of(LONG)]])[0], plain_logits(lm, LONG), **EXACT)


def test_an_untied_t5_does_not_scale_its_head():
    lm = toy_lm("t5", tie_word_embeddings=False)
    torch.testing.assert_close(logits(lm, [[Tokens.of(LONG)]])[0], plain_logits(lm, LONG), **EXACT)


def test_a_forced_first_token_is_part_of_the_decoders_start():
    model = toy_model("bart")
    model.generation_config.forced_bos_token_id = BOS
    assert FrozenLM.from_model(model, toy_tokenizer()).start_ids == (EOS, BOS)


@pytest.mark.parametrize("name", ["gemma2", "granite", "cohere"])
def test_peculiar_heads(name):
    """Soft cap, logit divisor, logit factor, embedding scale: driven as the model itself does."""
    transformers = pytest.importorskip("transformers")
    settings = {
        "gemma2": {"head_dim": 8, "final_logit_softcapping": 2.0, "query_pre_attn_scalar": 8, "sliding_window": 64},
        "granite": {"logits_scaling": 3.0, "embedding_multiplier": 2.0},
        "cohere": {"logit_scale": 0.3},
    }[name]
    config_class, model_class = {
        "gemma2": (transformers.Gemma2Config, transformers.Gemma2ForCausalLM),
        "granite": (transformers.GraniteConfig, transformers.GraniteForCausalLM),
        "cohere": (transformers.CohereConfig, transformers.CohereForCausalLM),
    }[name]
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
    config = config_class(vocab_size=128, num_key_value_heads=2, max_position_embeddings=96, **sizes, **ids, **settings)
    torch.manual_seed(0)
    lm = FrozenLM.from_model(model_class(config).eval(), toy_tokenizer())
    torch.testing.assert_close(logits(lm, [[Tokens.of(LONG)]])[0], plain_logits(lm, LONG), **EXACT)


def test_a_model_that_does_something_unknown_is_refused():
    model = toy_model("llama")
    forward = model.forward
    model.forward = lambda *args, **kwargs: _doubled(forward(*args, **kwargs))
    with pytest.raises(ConfigError, match="our logits differ"):
        FrozenLM.from_model(model, toy_tokenizer())


def _doubled(output):
    output.logits = output.logits * 2
    return output


def test_padding_in_a_sliding_window_is_refused_only_where_it_would_matter():
    lm = toy_lm("qwen2", use_sliding_window=True, sliding_window=16, max_window_layers=0)
    long = [[Tokens.of(range(10, 40))]]
    torch.testing.assert_close(logits(lm, long)[0], plain_logits(lm, list(range(10, 40))), **EXACT)
    memory = lm.read([[Tokens.of(range(10, 30))], [Tokens((9,))]])
    with pytest.raises(ShapeError, match="sliding window of 16"):
        lm.forward([[Tokens((5,))], [Tokens((5,))]], memory=memory)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", NAMES)
def test_cuda_gives_the_tokens_of_the_cpu(name):
    rows = [[Tokens.of(SHORT)], [Tokens.of(LONG)]]
    lm = FrozenLM.from_model(toy_model(name), toy_tokenizer(), device="cuda")
    assert lm.fingerprint == toy_lm(name).fingerprint
    for options in ({}, {"num_beams": 3}, {"do_sample": True, "seed": 1}):
        found = lm.generate(rows, max_new_tokens=6, **options)
        wanted = toy_lm(name).generate(rows, max_new_tokens=6, **options)
        assert [one.ids for one in found] == [one.ids for one in wanted]
    lm.assert_unchanged()


# --- text ---


@pytest.mark.parametrize("text", ["[SEP]", "[EOS] the cat", "</s><|endoftext|>", "[BOS][PAD]", "[sep]"])
def test_special_tokens_in_text_are_text(text):
    lm = toy_lm()
    tokenizer = lm.tokenizer
    before = tokenizer("[SEP]")["input_ids"]
    assert not set(lm.encode(text)) & (set(tokenizer.all_special_ids) - {tokenizer.unk_token_id})
    assert tokenizer("[SEP]")["input_ids"] == before == [4]  # the caller's tokenizer still knows it


def test_encode_adds_nothing_and_the_empty_text_is_nothing():
    lm = toy_lm()
    assert lm.encode("") == []
    assert lm.decode(lm.encode("the cat sat")) == "the cat sat"
    assert lm.encode_batch(["the", "", "cat"]) == [lm.encode("the"), [], lm.encode("cat")]


@pytest.mark.parametrize("bad", [None, 3, b"bytes", "\ud800"])
def test_what_is_not_text_is_refused(bad):
    with pytest.raises(FrozenLMError):
        toy_lm().encode(bad)


def test_the_embedded_lm_reads_and_ends():
    lm = FrozenLM.load(EMBEDDED)
    assert (lm.bos_ids, lm.eos_ids, lm.pad_id, lm.window) == ((101,), (102,), 0, 512)
    assert (lm.kind, lm.hidden_size, lm.vocab_size, lm.dtype) == ("decoder", 384, 30522, torch.float32)
    assert not {100, 101, 102, 103} & set(lm.encode("[CLS] who [SEP] [MASK] [PAD]"))
    passage = "title : nile text : the nile is a river in egypt . question : where is the nile ? answer :"
    (found,) = lm.generate([[Tokens((*lm.bos_ids, *lm.encode(passage)))]])
    assert found.text and "[SEP]" not in found.text
    lm.assert_unchanged()


# --- loading ---


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_loads_as_the_model_in_memory(name, tmp_path):
    loaded, built = FrozenLM.load(toy_folder(name, tmp_path)), toy_lm(name)
    assert loaded.fingerprint == built.fingerprint
    assert loaded.window == built.window
    row = [[Tokens.of(SHORT)]]
    assert loaded.generate(row, max_new_tokens=4)[0].ids == built.generate(row, max_new_tokens=4)[0].ids


def test_windows():
    assert toy_lm("gpt2").window == 96 and toy_lm("t5").window is None
    assert FrozenLM.from_model(toy_model("opt"), toy_tokenizer(), window=10).window == 10
    with pytest.raises(ConfigError, match=r"window must be in 1\.\.96, got 97"):
        FrozenLM.from_model(toy_model("opt"), toy_tokenizer(), window=97)


@pytest.mark.parametrize("name", ["gpt2", "opt", "bart"])
def test_a_row_of_exactly_the_window_fits_and_one_more_does_not(name):
    lm = toy_lm(name)
    rows = [[Tokens((9,))], [Tokens((9,) * 96)]]
    logits(lm, rows)
    rows[1] = [Tokens((9,) * 97)]
    for use in (lambda: logits(lm, rows), lambda: lm.score(rows, [[1], [1]]), lambda: lm.read(rows)):
        with pytest.raises(ShapeError, match=r"row 1 is too long: 97 tokens.*window is 96"):
            use()
    if lm.kind == "decoder":
        with pytest.raises(ShapeError, match="row 0 is too long: 96 tokens and 1 more"):
            lm.generate([[Tokens((9,) * 96)]], max_new_tokens=2)
        assert len(lm.generate([[Tokens((9,) * 96)]], max_new_tokens=1)[0].ids) == 1
    else:
        with pytest.raises(ShapeError, match="decoder would read 97"):
            lm.generate([[Tokens((9,))]], max_new_tokens=97)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    lm = FrozenLM.from_model(toy_model("llama").to(dtype), toy_tokenizer(), padding_side="left")
    assert lm.dtype == dtype
    prompt = soft(lm, 2, requires_grad=True)
    (first, second) = lm.token_logprobs([[prompt, Tokens.of(SHORT)], [Tokens.of(LONG)]], [[40], [41, 42]])
    assert first.dtype == torch.float32 and bool(torch.isfinite(torch.cat([first, second])).all())
    first.sum().backward()
    assert bool(torch.isfinite(prompt.vectors.grad).all())


@pytest.mark.parametrize("name", ["sdpa", "eager"])
def test_the_attention_is_chosen_at_load(tmp_path, name):
    folder = toy_folder("opt", tmp_path)
    lm = FrozenLM.load(folder, device="cpu", attn_implementation=name)
    assert lm.model.config._attn_implementation == name
    assert lm.fingerprint == FrozenLM.load(folder, device="cpu").fingerprint
    torch.testing.assert_close(
        logits(lm, [[Tokens((7, 8, 9))]])[0], logits(FrozenLM.load(folder, device="cpu"), [[Tokens((7, 8, 9))]])[0]
    )


def test_an_attention_that_is_unknown_or_not_installed_is_refused(tmp_path):
    folder = toy_folder("opt", tmp_path)
    with pytest.raises(ConfigError, match="unknown attn_implementation 'fast'"):
        FrozenLM.load(folder, device="cpu", attn_implementation="fast")
    with pytest.raises(ConfigError, match="FlashAttention2"):
        FrozenLM.load(folder, device="cpu", attn_implementation="flash_attention_2")


def test_dtype_of_load(tmp_path):
    folder = toy_folder("gpt2", tmp_path)
    assert FrozenLM.load(folder).dtype == torch.float32
    assert FrozenLM.load(folder, dtype="bfloat16", device="cpu").dtype == torch.bfloat16
    for options, message in (({"dtype": "int8"}, "unknown dtype"), ({"device": "tpu9"}, "unknown device")):
        with pytest.raises(ConfigError, match=message):
            FrozenLM.load(folder, **options)


def test_padding_side_is_checked():
    with pytest.raises(ConfigError, match="padding_side"):
        toy_lm(padding_side="up")


def broken(tmp_path, change):
    folder = toy_folder("gpt2", tmp_path)
    change(folder)
    return folder


def _without(*names):
    def change(folder):
        for name in names:
            (folder / name).unlink()

    return change


def _edit(**fields):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


def _truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def _drop_a_weight(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors.pop("transformer.h.0.mlp.c_fc.weight")
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("tokenizer.json", "tokenizer_config.json"), "no tokenizer"),
        (_without("config.json"), "no config.json"),
        (_without("model.safetensors"), "cannot load the weights"),
        (_truncate, "cannot load the weights"),
        (_drop_a_weight, "lacks 1 of the LM's weights"),
        (_edit(n_embd=64), "config and weights do not belong together"),
        (_edit(model_type="no-such-model"), "cannot load the config"),
    ],
)
def test_a_damaged_folder_gives_one_clear_error(tmp_path, change, message):
    with pytest.raises(CheckpointError, match=message):
        FrozenLM.load(broken(tmp_path, change))


def test_a_missing_folder(tmp_path):
    with pytest.raises(CheckpointError, match="no LM folder"):
        FrozenLM.load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no LM folder"):
        FrozenLM.load("./nowhere")


def test_an_encoder_is_refused(tmp_path):
    config = BertConfig(
        vocab_size=128, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    BertForMaskedLM(config).save_pretrained(tmp_path)
    toy_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="does not generate text"):
        FrozenLM.load(tmp_path)
    torch.manual_seed(0)
    with pytest.raises(ConfigError, match="our logits differ"):
        FrozenLM.from_model(BertLMHeadModel(config), toy_tokenizer())


def test_code_in_a_model_folder_is_never_run(tmp_path):
    folder = toy_folder("gpt2", tmp_path)
    _edit(model_type="evil", auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})(folder)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(CheckpointError):
        FrozenLM.load(folder)
    assert not (tmp_path / "ran").exists()


# --- bad calls ---


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_bad_calls_get_one_clear_error(name):
    lm = toy_lm(name)
    row = [Tokens.of(SHORT)]
    calls = {
        "empty batch": lambda: lm.score([], []),
        "empty batch ": lambda: lm.generate([]),
        "1 rows, but 2 answers": lambda: lm.score([row], [[1], [2]]),
        "answer 0 is empty": lambda: lm.score([row], [[]]),
        "answer 0: token id 128": lambda: lm.score([row], [[128]]),
        "row 1 is empty": lambda: lm.score([row, []], [[1], [2]]),
        "row 1, segment 0: token id 500": lambda: lm.generate([row, [Tokens((500,))]]),
        r"ids must lie in 0\.\.127": lambda: lm.embed(torch.tensor([128])),
        "soft vectors are 5 wide": lambda: lm.forward([[Soft(torch.ones(1, 5))]], decoder_rows=_for(lm, 1)),
    }
    for message, call in calls.items():
        with pytest.raises(ShapeError, match=message.strip()):
            call()


def _for(lm, n):
    return [[Tokens((0,))]] * n if lm.kind == "encoder-decoder" else None


def test_decoder_rows_go_with_encoder_decoders_only():
    with pytest.raises(ShapeError, match="decoder-only"):
        toy_lm("gpt2").forward([[Tokens((5,))]], decoder_rows=[[Tokens((5,))]])
    with pytest.raises(ShapeError, match="one decoder row"):
        toy_lm("bart").forward([[Tokens((5,))]])


def test_names():
    assert set(DECODERS) | set(ENCODER_DECODERS) == set(NAMES)


def test_the_package_is_lazy_and_complete():
    code = "import sys, frozenlm, frozenlm.errors; assert 'torch' not in sys.modules; print(len(frozenlm.__all__))"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=EMBEDDED.parents[1])
    assert made.stdout.strip() == str(len(frozenlm.__all__)), made.stderr
    assert all(getattr(frozenlm, name) is not None for name in frozenlm.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = frozenlm.nonsense


def test_loading_is_quiet_and_leaves_transformers_as_it_was(tmp_path, capfd):
    folder = toy_folder("llama", tmp_path)
    before = hf_logging.get_verbosity()
    hook = hf_logging.set_tqdm_hook(lambda bar, args, options: bar(*args, **options))
    try:
        capfd.readouterr()
        FrozenLM.load(folder)
        assert capfd.readouterr() == ("", "")
        assert hf_logging.get_verbosity() == before
        mine = hf_logging.set_tqdm_hook(None)
        assert mine is not None and mine.__module__ == __name__
        AutoModelForCausalLM.from_pretrained(folder)
        assert "Loading weights" in capfd.readouterr().err
    finally:
        hf_logging.set_tqdm_hook(hook)
