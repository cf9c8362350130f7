"""The table of methods: complete, and true where it can be checked."""

import pkgutil
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import frozenlm.deltas
import frozenlm.prompting
import frozenlm.prompts
from frozenlm.deltas.attach import Delta, attach
from frozenlm.deltas.catalogue import HOSTS, Method, method, methods
from frozenlm.deltas.peft_methods import METHODS as PEFT_METHODS
from frozenlm.errors import ConfigError
from tests.toys import toy_encoder, toy_lm, toy_masked_lm

TOYS = {
    "decoder": lambda: toy_lm("llama"),
    "encoder-decoder": lambda: toy_lm("bart"),
    "encoder": lambda: toy_encoder("bert"),
    "masked": toy_masked_lm,
}
DELTAS = [one for one in methods() if one.family != "prompt"]
by_name = pytest.mark.parametrize("one", DELTAS, ids=lambda one: one.name)


def create(one: Method, host: Any) -> Any:
    sizes: dict[str, Any] = {"intrinsic_dimension": {"dimension": 40}, "vera": {"r": 4}, "bitfit": {"extra": True}}
    return one.module_class.create(host, **sizes.get(one.name, {}), **dict(one.settings))


def kinds_of(package: Any) -> dict[str, str]:
    """What the modules of a package are saved as -> the class that is."""
    found = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = import_module(f"{package.__name__}.{info.name}")
        classes = [
            part
            for part in vars(module).values()
            if isinstance(part, type) and issubclass(part, nn.Module) and part.__module__ == module.__name__
        ]
        for part in classes:
            kind = getattr(part, "KIND", getattr(module, "KIND", None))
            if kind and hasattr(part, "save"):
                found[kind] = part.__name__
    return found


def test_every_saved_class_is_in_it() -> None:
    there_are = {
        kind: name
        for p in (frozenlm.deltas, frozenlm.prompting, frozenlm.prompts)
        for kind, name in kinds_of(p).items()
    }
    assert {one.kind: one.module_class.__name__ for one in methods()} == there_are


def test_names_are_unique_and_found() -> None:
    names = [one.name for one in methods()]
    assert len(set(names)) == len(names) and method("lora").peft_type == "LORA"
    with pytest.raises(ConfigError, match="no method 'magic'"):
        method("magic")


def test_peft_types_are_those_of_peft() -> None:
    from peft import PeftType

    assert {one.peft_type for one in methods()} - {None} <= {kind.value for kind in PeftType}
    assert {name: one.peft_type for name, one in PEFT_METHODS.items()} == {
        one.name: one.peft_type for one in methods() if one.where.endswith(":PeftDelta")
    }


@by_name
@pytest.mark.parametrize("kind", HOSTS)
def test_deltas_are_defined_for_the_hosts_they_name(kind: str, one: Method) -> None:
    host = TOYS[kind]()
    assert kind in one.hosts
    delta = create(one, host)
    assert isinstance(delta, Delta) and all(parameter.requires_grad for parameter in delta.parameters())
    with torch.no_grad(), attach(host, delta):
        pass
    host.assert_unchanged()


def test_only_what_lives_in_a_row_shares_a_batch() -> None:
    mixing = {one.acts_on for one in methods() if one.mixes}
    assert mixing == {"the input", "the answer", "keys and values"}
    assert not mixing & {one.acts_on for one in methods() if not one.mixes}


def test_the_page_that_helps_choose_names_every_method() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "methods.md").read_text()
    made_by_code = {"slotted_prompt", "soft_slots", "soft_verbalizer", "prototypical_verbalizer"}  # not by a config
    for name in {one.name for one in methods()} - made_by_code:
        assert name.removeprefix("adapter_").removesuffix("_prompt") in page, name
