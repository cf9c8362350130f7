"""The fingerprint names the LM; verify finds any bit that changed."""

import time

import pytest
import torch

from frozenlm import FrozenLM
from frozenlm.errors import FrozenViolationError
from frozenlm.fingerprint import compare, digest_tensors, fingerprint
from tests.toys import NAMES, toy_folder, toy_lm, toy_model, toy_tokenizer


class Two(torch.nn.Module):
    def __init__(self, a=1.0, dtype=torch.float32):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([a, 2.0], dtype=dtype))
        self.tied = self.w
        self.register_buffer("kept", torch.tensor([3]))
        self.register_buffer("computed", torch.tensor([4.0]), persistent=False)


def name_of(model):
    return fingerprint(digest_tensors(model))


def test_everything_is_digested_and_tied_weights_once():
    digests = digest_tensors(Two())
    assert sorted(digests) == ["computed", "kept", "w"]
    assert [digests[name].persistent for name in sorted(digests)] == [False, True, True]


def test_the_fingerprint_is_of_the_values():
    assert name_of(Two()) == name_of(Two())
    assert name_of(Two()) != name_of(Two(a=1.0000001))
    assert name_of(Two()) != name_of(Two(a=-1.0))
    assert name_of(Two(a=0.0)) != name_of(Two(a=-0.0))


def test_the_dtype_that_holds_the_same_numbers_does_not_matter():
    assert name_of(Two(dtype=torch.bfloat16)) == name_of(Two()) == name_of(Two(dtype=torch.float16))
    assert name_of(Two(a=1.001, dtype=torch.bfloat16)) != name_of(Two(a=1.001))


def test_shape_and_name_count():
    flat, square = torch.nn.Linear(4, 1, bias=False), torch.nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        square.weight.copy_(flat.weight.view(2, 2))
    assert name_of(flat) != name_of(square)
    assert name_of(torch.nn.ModuleDict({"a": flat})) != name_of(torch.nn.ModuleDict({"b": flat}))


def test_compare_sees_computed_buffers_and_dtypes_too():
    model = Two()
    before = digest_tensors(model)
    model.computed += 1
    found = compare(before, digest_tensors(model))
    assert (found.changed, found.total, found.names) == (1, 3, ["computed"])
    assert name_of(model) == name_of(Two())
    assert compare(before, digest_tensors(Two(dtype=torch.bfloat16))).names == ["w"]
    grown = Two()
    grown.register_buffer("new", torch.zeros(1))
    assert compare(before, digest_tensors(grown)).names == ["new"]


@pytest.mark.parametrize("name", NAMES)
def test_one_bit_of_one_weight_is_found(name):
    lm = toy_lm(name)
    changed = list(lm.model.parameters())[-1]
    changed.data.view(-1).view(torch.int32)[-1] ^= 1
    found = lm.verify()
    assert found.changed == 1 and str(found) == f"LM weights changed: 1 of {found.total}"
    with pytest.raises(FrozenViolationError, match="LM weights changed: 1 of"):
        lm.assert_unchanged()
    changed.data.view(-1).view(torch.int32)[-1] ^= 1
    lm.assert_unchanged()


def test_a_buffer_counts():
    lm = toy_lm("bart")
    lm.model.final_logits_bias.add_(1e-3)
    assert lm.verify().names == ["final_logits_bias"]


def test_saving_and_loading_keeps_the_fingerprint_in_any_dtype(tmp_path):
    model = toy_model("llama").to(torch.bfloat16)
    held = FrozenLM.from_model(model, toy_tokenizer()).fingerprint
    model.save_pretrained(tmp_path)
    toy_tokenizer().save_pretrained(tmp_path)
    assert FrozenLM.load(tmp_path, dtype="bfloat16").fingerprint == held
    assert FrozenLM.load(tmp_path, dtype="float32").fingerprint == held
    assert FrozenLM.load(toy_folder("llama", tmp_path, seed=1)).fingerprint != held


def test_it_is_fast():
    """22M weights; the bound is generous, the point is that nobody hashes value by value."""
    model = torch.nn.Linear(22_600_000, 1, bias=False, dtype=torch.bfloat16)
    start = time.process_time()
    digest_tensors(model)
    assert time.process_time() - start < 5
