"""ID-PT: what its prompt depends on and what not, what it trains, how many numbers that are, and its files."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import ElectraConfig, ElectraModel

from frozenlm.checkpoint import load_module, save_module
from frozenlm.encoder import FrozenEncoder
from frozenlm.errors import CheckpointError, ConfigError, ShapeError
from frozenlm.lm import FrozenLM
from frozenlm.lm_tasks import Example, mean_loss, prompt_loss
from frozenlm.prompts.initializers import embedding_scale, from_text
from frozenlm.prompts.input_dependent import KIND, PAPER, InputDependentPrompt, Sizes
from frozenlm.prompts.interface import PromptInput, PromptModule, placed
from frozenlm.prompts.resampler import Attention
from frozenlm.prompts.soft_prompt import SoftPrompt
from frozenlm.rows import Row, Tokens
from tests.toys import (
    ENCODERS,
    VOCAB_SIZE,
    toy_encoder,
    toy_encoder_model,
    toy_encoder_tokenizer,
    toy_lm,
    toy_model,
    toy_tokenizer,
)

SMALL: dict[str, Any] = {"encoder_prompt": 4, "width": 16, "depth": 2, "heads": 2}
VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"self_attention": True, "norm": "rms"},
    {"encoder_prompt": 0, "depth": 1, "feed_forward": 8},
    {"anchor": False, "heads": 4},
)
TEXTS = ("the cat sat on the mat", "", "paris", "who was the king of england in the year one", "a dog " * 30)
LONG = "cat dog " * 12_500  # 10^5 characters
INPUTS = [PromptInput(text) for text in TEXTS]

every_encoder = pytest.mark.parametrize("encoder_name", ENCODERS)
every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(v) or "default")


def make(lm: FrozenLM | None = None, encoder: FrozenEncoder | None = None, **sizes: Any) -> InputDependentPrompt:
    return InputDependentPrompt.create(lm or toy_lm(), encoder or toy_encoder(), 5, **{**SMALL, **sizes})


class DeafEncoder(FrozenEncoder):
    """Makes the same of every text: features that do not depend on the input."""

    def features(self, texts: Sequence[str], prompt: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return super().features([""] * len(texts), prompt)


def deaf_encoder() -> DeafEncoder:
    found = DeafEncoder.from_model(toy_encoder_model("t5"), toy_encoder_tokenizer("t5"))
    assert isinstance(found, DeafEncoder)
    return found


@every_encoder
def test_a_prompt_has_one_length_whatever_the_text_is(encoder_name: str) -> None:
    encoder = toy_encoder(encoder_name)
    module = make(encoder=encoder)
    vectors = module([*INPUTS, PromptInput(LONG)])
    assert vectors.shape == (6, 5, 32) and bool(torch.isfinite(vectors).all())
    assert encoder.truncated == 1 and module.too_long([*INPUTS, PromptInput(LONG)]) == [False] * 5 + [True]
    assert [len(segment) for segment in module.segments(INPUTS)] == [5] * 5
    assert module([]).shape == (0, 5, 32) and module.segments([]) == []


@every_encoder
@every_variant
def test_a_prompt_does_not_depend_on_padding_batch_mates_or_order(encoder_name: str, variant: dict[str, Any]) -> None:
    module = make(encoder=toy_encoder(encoder_name), **variant)
    together = module(INPUTS)
    alone = torch.cat([module([one]) for one in INPUTS])
    backwards = module(INPUTS[::-1]).flip(0)
    assert torch.allclose(together, alone, atol=1e-5) and torch.allclose(together, backwards, atol=1e-5)


@every_encoder
@every_variant
def test_a_prompt_differs_between_inputs(encoder_name: str, variant: dict[str, Any]) -> None:
    vectors = make(encoder=toy_encoder(encoder_name), **variant)(INPUTS).detach()
    for row in range(len(vectors)):
        for other in range(row):
            assert float((vectors[row] - vectors[other]).abs().max()) > 1e-3


def test_a_prompt_does_not_depend_on_the_task() -> None:
    vectors = make()([PromptInput("the cat", task="one"), PromptInput("the cat", task="two")])
    assert torch.allclose(vectors[0], vectors[1], atol=1e-6)


def test_what_the_mask_hides_changes_nothing() -> None:
    module = make(self_attention=True).resampler
    features, mask = torch.randn(3, 7, 24), torch.arange(7) < torch.tensor([[7], [1], [4]])
    garbage = torch.where(mask.unsqueeze(2), features, torch.full((), 1e3))
    assert torch.equal(module(features, mask), module(garbage, mask))
    assert torch.allclose(module(features, mask)[1], module(features[1:2, :1], mask[1:2, :1])[0], atol=1e-5)


def test_attention_over_one_vector_is_that_vectors_value() -> None:
    attention = Attention(4, 2, heads=2)
    torch.nn.init.eye_(attention.out.weight)
    with torch.no_grad():
        attention.value.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, 0.0]]))
    source = torch.tensor([[[3.0, 5.0], [7.0, 7.0]]])
    found = attention(torch.randn(1, 3, 4), source, torch.tensor([[True, False]]))
    assert torch.allclose(found, torch.tensor([3.0, 5.0, 8.0, 6.0]).expand(1, 3, 4))


def test_it_begins_near_the_soft_prompt_of_its_seed() -> None:
    lm = toy_lm()
    for init in (None, from_text("the cat")):
        module = make(lm, init=init, seed=3)
        assert module.anchor is not None
        assert torch.equal(module.anchor, SoftPrompt.create(lm, 5, init=init, seed=3).vectors)
    generated = (module(INPUTS) - module.anchor).detach().square().mean().sqrt() / embedding_scale(lm)
    assert 0.05 < float(generated) < 0.2


def test_without_an_anchor_it_begins_at_the_size_of_embeddings() -> None:
    lm = toy_lm()
    size = make(lm, anchor=False)(INPUTS).detach().square().mean().sqrt() / embedding_scale(lm)
    assert 0.5 < float(size) < 2


def test_what_is_generated_has_the_scale_of_the_lm() -> None:
    small, large = toy_lm(), FrozenLM.from_model(_with_embeddings_times(3), toy_tokenizer())
    assert embedding_scale(large) == pytest.approx(3 * embedding_scale(small))
    first, second = make(small, anchor=False), make(large, anchor=False)
    assert torch.allclose(3 * first(INPUTS), second(INPUTS), rtol=1e-4)


def test_the_encoder_prompt_begins_as_tokens_of_the_encoder() -> None:
    encoder = toy_encoder()
    module = make(encoder=encoder)
    assert module.encoder_prompt is not None
    table = encoder.embed(torch.arange(VOCAB_SIZE))
    same = (module.encoder_prompt.unsqueeze(1) == table).all(dim=2)  # [Pe, V]
    assert same.sum(dim=1).tolist() == [1, 1, 1, 1] and int(same.any(dim=0).sum()) == 4


def test_the_seed_decides_all() -> None:
    first, again, other = make(seed=1), make(seed=1), make(seed=2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.resampler.queries, other.resampler.queries)
    assert not torch.equal(first.out.weight, other.out.weight)


@every_variant
@pytest.mark.parametrize("position", ["prefix", "suffix"])
def test_gradients_reach_every_parameter_and_no_other(variant: dict[str, Any], position: Any) -> None:
    lm, encoder = toy_lm(), toy_encoder()
    module = make(lm, encoder, position=position, **variant)
    examples = [Example.of([5, 6, 7], [9], PromptInput(text)) for text in TEXTS]
    prompt_loss(lm, module, examples)[0].backward()
    silent = [name for name, p in module.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert silent == []
    assert all(p.grad is None for model in (lm.model, encoder.model) for p in model.parameters())
    # A row of the encoder prompt or of the queries that nothing reads would be a slip of indices.
    for vectors in (module.encoder_prompt, module.resampler.queries):
        assert vectors is None or (vectors.grad is not None and bool((vectors.grad.abs().sum(dim=1) > 0).all()))


def test_neither_lm_nor_encoder_is_a_part_of_it() -> None:
    module = make()
    assert {type(part).__module__.partition(".")[0] for part in module.modules()} == {"frozenlm", "torch"}
    assert not any("encoder." in name or "lm" in name.split(".") for name in module.state_dict())
    again = copy.deepcopy(module)
    assert again.encoder is module.encoder and again.out.weight is not module.out.weight


def test_dropout_works_while_training_only() -> None:
    module = make(dropout=0.5)
    torch.manual_seed(0)
    assert not torch.allclose(module.train()(INPUTS), module(INPUTS))
    assert torch.equal(module.eval()(INPUTS), module(INPUTS))


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "bart"])
@every_encoder
def test_every_lm_with_every_encoder(name: str, encoder_name: str) -> None:
    lm = toy_lm(name)
    module = make(lm, toy_encoder(encoder_name), position="suffix" if name == "gpt2" else "prefix")
    examples = [Example.of(range(5, 9 + k), [40, 41 + k], PromptInput(text)) for k, text in enumerate(TEXTS)]
    before = mean_loss(lm, module, examples)
    train(lm, module, examples, steps=8)
    assert mean_loss(lm, module, examples) < before


def test_with_constant_features_it_is_prompt_tuning() -> None:
    """The same prompt for all inputs, and, the network silenced, the same numbers after the same steps."""
    lm, encoder = toy_lm(), deaf_encoder()
    module, soft = make(lm, encoder), SoftPrompt.create(lm, 5)
    vectors = module(INPUTS)
    assert torch.allclose(vectors, vectors[:1].expand_as(vectors), atol=1e-6)
    torch.nn.init.zeros_(module.out.weight).requires_grad_(False)
    train(lm, module, EXAMPLES, steps=10)
    train(lm, soft, EXAMPLES, steps=10)
    assert module.anchor is not None
    assert torch.allclose(module.anchor, soft.vectors, atol=1e-5)


def test_with_constant_features_it_reaches_what_prompt_tuning_reaches() -> None:
    lm = toy_lm()
    module, soft = make(lm, deaf_encoder()), SoftPrompt.create(lm, 5)
    before = mean_loss(lm, soft, EXAMPLES)
    train(lm, module, EXAMPLES, steps=60)
    train(lm, soft, EXAMPLES, steps=60)
    reached, aim = mean_loss(lm, module, EXAMPLES), mean_loss(lm, soft, EXAMPLES)
    assert aim < before - 0.5 and reached < aim + 0.1


def test_it_learns_what_no_plain_prompt_can() -> None:
    """The answer stands only in the text, which the LM does not get to read: a plain prompt ends at log 2."""
    lm = toy_lm()
    examples = [Example.of([5], [60 + k % 2], PromptInput(f"the {('cat', 'river')[k % 2]} is")) for k in range(4)]
    module, soft = make(lm), SoftPrompt.create(lm, 5)
    train(lm, module, examples, steps=80)
    train(lm, soft, examples, steps=80)
    assert mean_loss(lm, module, examples) < 0.2 < 0.69 < mean_loss(lm, soft, examples)


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_rows_in_a_mixed_batch_are_as_alone(name: str) -> None:
    lm = toy_lm(name)
    module, soft = make(lm, position="prefix"), SoftPrompt.create(lm, 3)
    texts: list[Row] = [[Tokens.of(range(5, 7 + k))] for k in range(len(INPUTS))]
    rows = [placed(s, text, module.position) for s, text in zip(module.segments(INPUTS), texts, strict=True)]
    rows += [soft.place([Tokens.of([8, 9])]), [Tokens.of([8, 9, 10])]]
    decoder: list[Row] | None = [[Tokens((*lm.start_ids, 7))] for _ in rows] if name == "t5" else None
    with torch.no_grad():
        together = lm.forward(rows, decoder_rows=decoder).logits
    made = lm.generate(rows, max_new_tokens=5)
    for index, (logits, generation) in enumerate(zip(together, made, strict=True)):
        row: list[Row] = [rows[index]]
        if index < len(INPUTS):
            row = [placed(module.segments([INPUTS[index]])[0], texts[index], module.position)]
        with torch.no_grad():
            alone = lm.forward(row, decoder_rows=decoder[:1] if decoder else None).logits[0]
        assert torch.allclose(logits, alone, atol=1e-4)
        assert lm.generate(row, max_new_tokens=5)[0].text == generation.text


@pytest.mark.parametrize("position", ["prefix", "suffix"])
@pytest.mark.parametrize("name", ["llama", "opt", "t5"])
def test_no_padding_side_of_lm_or_encoder_changes_anything(name: str, position: Any) -> None:
    right, left = toy_lm(name), toy_lm(name, padding_side="left")
    tokenizer = toy_encoder_tokenizer("bert")
    tokenizer.padding_side = "left"
    turned = FrozenEncoder.from_model(toy_encoder_model("bert"), tokenizer)
    one = InputDependentPrompt.create(right, toy_encoder("bert"), 5, position=position, **SMALL)
    other = InputDependentPrompt.create(left, turned, 5, position=position, **SMALL)
    examples = [Example.of(range(5, 8 + 3 * k), e.answer, e.source) for k, e in enumerate(EXAMPLES)]
    with torch.no_grad():
        assert torch.allclose(one(INPUTS), other(INPUTS), atol=1e-5)
        together = prompt_loss(right, one, examples)[0].item()
        assert prompt_loss(left, other, examples)[0].item() == pytest.approx(together, abs=1e-3)
        alone = sum(prompt_loss(right, one, [example])[0].item() for example in examples)
    assert alone == pytest.approx(together, abs=1e-3)


def test_it_is_a_prompt_module() -> None:
    assert isinstance(make(), PromptModule)


@pytest.mark.parametrize("low", ["lm", "encoder"])
def test_parameters_are_float32_beside_a_bfloat16_model(low: str) -> None:
    lm = FrozenLM.from_model(toy_model("llama"), toy_tokenizer(), dtype="bfloat16" if low == "lm" else "float32")
    dtype = "bfloat16" if low == "encoder" else "float32"
    encoder = FrozenEncoder.from_model(toy_encoder_model("bert"), toy_encoder_tokenizer("bert"), dtype=dtype)
    module = make(lm, encoder)
    assert {p.dtype for p in module.parameters()} == {torch.float32} and module(INPUTS).dtype == torch.float32
    prompt_loss(lm, module, EXAMPLES)[0].backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in module.parameters())


@pytest.mark.parametrize("self_attention", [False, True])
@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize(("encoder_prompt", "anchor"), [(0, False), (7, True)])
def test_parameter_count_is_the_real_one(self_attention: bool, norm: str, encoder_prompt: int, anchor: bool) -> None:
    sizes = {"hidden_size": 40, "encoder_size": 24, "length": 3, "width": 16, "depth": 3, "heads": 4}
    sizes |= {"encoder_prompt": encoder_prompt, "feed_forward": 20}
    flags: dict[str, Any] = {"self_attention": self_attention, "norm": norm, "anchor": anchor}
    module = InputDependentPrompt(Sizes(**sizes, **flags))
    assert sum(p.numel() for p in module.parameters()) == InputDependentPrompt.parameter_count(**sizes, **flags)


def test_the_papers_numbers_without_memory() -> None:
    with torch.device("meta"):
        module = InputDependentPrompt(Sizes(hidden_size=4096, encoder_size=768, **PAPER), position="prefix")
    assert all(p.is_meta for p in module.parameters())
    assert module.encoder_prompt is not None and module.encoder_prompt.numel() == 430 * 768 == 330_240
    total = sum(p.numel() for p in module.parameters())
    assert total == module.sizes.parameters == 25_208_320
    assert "length=100" in repr(module) and "trained=25,208,320" in repr(module)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"length": 0}, "length is 0"),
        ({"width": 15}, "width is 15; expected a multiple of the 2 heads"),
        ({"depth": 0}, "depth is 0"),
        ({"heads": True}, "heads is True"),
        ({"encoder_prompt": -1}, "encoder_prompt is -1"),
        ({"feed_forward": 0}, "feed_forward is 0"),
        ({"norm": "batch"}, "norm is 'batch'"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"self_attention": 1}, "self_attention is 1"),
        ({"encoder_prompt": 95}, "prompt of 95 leaves 1"),
    ],
)
def test_bad_sizes(sizes: dict[str, Any], words: str) -> None:
    options = {**SMALL, "length": 5, **sizes}
    with pytest.raises(ConfigError, match=words):
        InputDependentPrompt.create(toy_lm(), toy_encoder("bert"), **options)


def test_bad_position_scale_and_initialiser() -> None:
    sizes = Sizes(hidden_size=32, encoder_size=24, **SMALL)
    with pytest.raises(ConfigError, match="position is 'middle'"):
        InputDependentPrompt(sizes, position="middle")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="scale is 0"):
        InputDependentPrompt(sizes, scale=0)
    with pytest.raises(ShapeError, match=r"\[2, 32\]"):
        make(init=lambda lm, length, generator: torch.zeros(2, 32))
    with pytest.raises(ConfigError, match="encoder_size is 23"):
        InputDependentPrompt(Sizes(hidden_size=32, encoder_size=23, **SMALL), toy_encoder())


def test_from_sizes_alone_there_is_no_encoder_to_run_or_save(tmp_path: Path) -> None:
    module = InputDependentPrompt(Sizes(hidden_size=32, encoder_size=24, **SMALL))
    with pytest.raises(ConfigError, match="has no encoder"):
        module(INPUTS)
    with pytest.raises(ConfigError, match="belongs to no encoder"):
        module.save(tmp_path, toy_lm())


def test_an_encoder_with_narrow_embeddings_serves_without_a_prompt_of_its_own() -> None:
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    model = ElectraModel(ElectraConfig(vocab_size=VOCAB_SIZE, embedding_size=8, **sizes))
    encoder = FrozenEncoder.from_model(model, toy_encoder_tokenizer("bert"))
    with pytest.raises(ConfigError, match="embeddings are 8 wide and its output 24"):
        make(encoder=encoder)
    assert make(encoder=encoder, encoder_prompt=0)(INPUTS).shape == (5, 5, 32)


@every_variant
def test_saved_and_loaded(tmp_path: Path, variant: dict[str, Any]) -> None:
    lm, encoder = toy_lm(), toy_encoder()
    module = make(lm, encoder, position="prefix", **variant)
    module.save(tmp_path, lm)
    again = InputDependentPrompt.load(tmp_path, lm, encoder)
    assert again.sizes == module.sizes and again.position == "prefix" and again.scale == module.scale
    assert torch.equal(again(INPUTS), module(INPUTS))
    text = (tmp_path / "module.json").read_text()
    assert lm.fingerprint in text and encoder.fingerprint in text
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


def test_another_lm_is_refused_by_default(tmp_path: Path) -> None:
    lm, other, encoder = toy_lm(seed=0), toy_lm(seed=1), toy_encoder()
    module = make(lm, encoder)
    module.save(tmp_path, lm)
    with pytest.raises(CheckpointError, match=f"{lm.fingerprint[:16]}.*{other.fingerprint[:16]}"):
        InputDependentPrompt.load(tmp_path, other, encoder)
    again = InputDependentPrompt.load(tmp_path, other, encoder, allow_other_lm=True)
    assert torch.equal(again(INPUTS), module(INPUTS))


def test_another_encoder_is_refused(tmp_path: Path) -> None:
    lm, encoder, other = toy_lm(), toy_encoder(seed=0), toy_encoder(seed=1)
    make(lm, encoder).save(tmp_path, lm)
    with pytest.raises(CheckpointError, match=f"{encoder.fingerprint[:16]}.*{other.fingerprint[:16]}"):
        InputDependentPrompt.load(tmp_path, lm, other)


def test_an_lm_of_another_width_is_refused_always(tmp_path: Path) -> None:
    encoder = toy_encoder()
    make(encoder=encoder).save(tmp_path, toy_lm())
    with pytest.raises(CheckpointError, match="prompts 32 wide; this LM needs 16"):
        InputDependentPrompt.load(tmp_path, toy_lm("gpt2", n_embd=16), encoder, allow_other_lm=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, config: tensors.update(more=torch.zeros(3)),
        lambda tensors, config: tensors.pop("anchor"),
        lambda tensors, config: tensors.update(anchor=torch.zeros(32, 5)),
        lambda tensors, config: config.update(depth=3),
        lambda tensors, config: config.update(hidden_size=10**12),
        lambda tensors, config: config.update(width="16"),
        lambda tensors, config: config.update(norm=["layer"]),
        lambda tensors, config: config.update(anchor=False),
        lambda tensors, config: config.update(position="middle"),
        lambda tensors, config: config.update(scale=-1.0),
        lambda tensors, config: config.pop("heads"),
        lambda tensors, config: config.pop("encoder_fingerprint"),
    ],
)
def test_what_does_not_belong_together_is_refused(tmp_path: Path, change: Any) -> None:
    lm, encoder = toy_lm(), toy_encoder()
    make(lm, encoder).save(tmp_path, lm)
    tensors, config = load_module(tmp_path, kind=KIND)
    change(tensors, config)
    save_module(tmp_path, tensors, config, lm_fingerprint=lm.fingerprint, kind=KIND)
    with pytest.raises(CheckpointError):
        InputDependentPrompt.load(tmp_path, lm, encoder)


def test_a_damaged_file_and_another_kind_are_refused(tmp_path: Path) -> None:
    lm, encoder = toy_lm(), toy_encoder()
    make(lm, encoder).save(tmp_path / "module", lm)
    path = next((tmp_path / "module").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="truncated"):
        InputDependentPrompt.load(tmp_path / "module", lm, encoder)
    SoftPrompt.create(lm, 3).save(tmp_path / "soft", lm)
    with pytest.raises(CheckpointError, match="soft_prompt"):
        InputDependentPrompt.load(tmp_path / "soft", lm, encoder)


EXAMPLES = [Example.of([5, 6, 7 + k], [40, 41], PromptInput(text)) for k, text in enumerate(TEXTS)]


def train(lm: FrozenLM, module: Any, examples: list[Example], *, steps: int) -> None:
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        loss, units = prompt_loss(lm, module, examples)
        (loss / units).backward()
        optimizer.step()


def _with_embeddings_times(factor: float) -> Any:
    model = toy_model("gpt2")
    with torch.no_grad():
        model.transformer.wte.weight.mul_(factor)
    return model
