"""What was trained here runs in peft, and comes back the same; what peft cannot hold is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModel, AutoModelForCausalLM

from frozenlm.deltas.attach import attach, using
from frozenlm.rows import Row, Tokens
from pipelines import build_tasks, cli
from pipelines.build import frozen_lm
from pipelines.errors import CheckpointError, ConfigError
from pipelines.loader import load_config
from pipelines.peft_exchange import export_module, export_peft, import_peft
from pipelines.pipeline import Pipeline
from pipelines.training import train
from tests.pipelines import test_classification as of_encoder
from tests.pipelines.toy_multitask import configured, make_world

PREFIX = {"kind": "soft_prompt", "name": "d", "length": 3, "position": "prefix"}
BLOCKS: list[dict[str, Any]] = [
    {"prompt": PREFIX},
    {"prompt": {"kind": "p_tuning", "name": "d", "length": 3, "position": "prefix", "form": "mlp"}},
    {"prompt": None, "delta": {"kind": "prefix_tuning", "name": "d", "length": 3, "middle_size": 8}},
    {"prompt": None, "delta": {"kind": "p_tuning_v2", "name": "d", "length": 3}},
    {"prompt": None, "delta": {"kind": "lora", "name": "d", "rank": 2}},
    {"prompt": None, "delta": {"kind": "dora", "name": "d", "rank": 2}},
    {"prompt": None, "delta": {"kind": "ia3", "name": "d"}},
]
IDS = (7, 8, 9, 20, 30)


def kind_of(block: dict[str, Any]) -> str:
    return str((block["prompt"] or block["delta"])["kind"])


def ours(config: Any) -> torch.Tensor:
    """Logits of the last token, with what the config has trained."""
    lm = frozen_lm(config.lm)
    module: Any = build_tasks.trained_module(config, config.trained, lm, None)
    with torch.no_grad(), using(lm, module) as prompt:
        row: Row = [Tokens(IDS)] if prompt is None else [prompt.segments([None])[0], Tokens(IDS)]  # type: ignore[list-item]
        return lm.forward([row]).logits[0][-1]


def theirs(world: Path, folder: Path) -> torch.Tensor:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(world / "lm"), folder).eval()
    with torch.no_grad():
        return model(input_ids=torch.tensor([IDS])).logits[0, -1]


@pytest.mark.parametrize("block", BLOCKS, ids=kind_of)
def test_out_and_back(tmp_path: Path, block: dict[str, Any]) -> None:
    world = make_world(tmp_path, "opt")
    config = configured(world, **block)
    train(config)
    if kind_of(block) == "p_tuning":
        pytest.importorskip("peft")
    export_peft(config, tmp_path / "peft")
    if kind_of(block) != "p_tuning":
        torch.testing.assert_close(ours(config), theirs(world, tmp_path / "peft"), atol=1e-4, rtol=1e-4)
    back = configured(
        world, **({"prompt": PREFIX} if kind_of(block) == "p_tuning" else block), workspace=str(tmp_path / "b")
    )
    import_peft(back, tmp_path / "peft")
    torch.testing.assert_close(ours(back), theirs(world, tmp_path / "peft"), atol=1e-4, rtol=1e-4)
    with pytest.raises(CheckpointError, match="is there already"):
        import_peft(back, tmp_path / "peft")


def test_what_peft_cannot_hold(tmp_path: Path) -> None:
    world = make_world(tmp_path, "opt")
    for block, words in (
        ({"prompt": PREFIX | {"position": "suffix"}}, "before the text, this one's position is suffix"),
        ({"prompt": {"kind": "p_tuning", "name": "d", "length": 4, "position": "around"}}, "position is around"),
        ({"prompt": None, "delta": {"kind": "bitfit", "name": "d"}}, "no form for bitfit"),
        ({"prompt": None}, "no form for nothing"),
    ):
        with pytest.raises(ConfigError, match=words):
            export_peft(configured(world, **block), tmp_path / "peft")
    with pytest.raises(CheckpointError, match="no trained"):
        export_peft(configured(world, prompt=PREFIX), tmp_path / "peft")
    lora = configured(world, prompt=None, delta={"kind": "lora", "name": "d", "rank": 2})
    train(lora)
    export_peft(lora, tmp_path / "peft")
    with pytest.raises(CheckpointError, match="not empty"):
        export_peft(lora, tmp_path / "peft")
    other = configured(world, prompt=None, delta={"kind": "ia3", "name": "e"})
    with pytest.raises(CheckpointError, match="holds lora, the config asks for ia3"):
        import_peft(other, tmp_path / "peft")
    for change, words in (
        ({"rank": 4}, "with rank 2, the config asks for 4"),
        ({"alpha": 4}, "with alpha 16.0, the config asks for 4.0"),
        ({"targets": "attention"}, "with targets"),
    ):
        other = configured(world, prompt=None, delta={"kind": "lora", "name": "e", "rank": 2} | change)
        with pytest.raises(CheckpointError, match=words):
            import_peft(other, tmp_path / "peft")
        assert not (world / "work" / "modules" / "e").exists()
    config = tmp_path / "peft" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"init_lora_weights": "pissa"}))
    with pytest.raises((CheckpointError, ConfigError), match="pissa"):
        import_peft(lora, tmp_path / "peft", restart=True)


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = configured(make_world(tmp_path, "opt"), prompt=PREFIX)
    train(config)
    file = tmp_path / "config.json"
    file.write_text(config.model_dump_json(exclude_unset=True))
    out = str(tmp_path / "peft")
    assert cli.main(["export", str(file), "--out", out, "--format", "peft", "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["folder"] == out
    assert cli.main(["import", str(file), out, "--quiet"]) == 1
    assert "is there already" in capsys.readouterr().err
    assert cli.main(["import", str(file), out, "--restart", "--quiet"]) == 0


def test_a_modules_folder_is_enough_where_its_model_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(tmp_path, "opt")
    for block in BLOCKS:
        config = configured(world, **block, workspace=str(tmp_path / kind_of(block)))
        train(config)
        by_config, folder = export_peft(config, tmp_path / f"{kind_of(block)}.out"), Path(config.workspace) / "modules"
        assert cli.main(["export", str(folder / "d"), "--lm", str(world / "lm"), "--quiet", "--json"]) == 0
        done = json.loads(capsys.readouterr().out)
        assert done == by_config | {"folder": str(folder / "d.peft")}
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            assert (folder / "d.peft" / name).read_bytes() == (Path(by_config["folder"]) / name).read_bytes()
        assert cli.main(["export", str(folder / "d"), "--quiet"]) == 2
        assert "name it with --lm MODEL" in capsys.readouterr().err
    monkeypatch.chdir(world)  # what peft's file says of the model holds from anywhere
    out = str(tmp_path / "moved")
    assert cli.main(["export", str(folder / "d"), "--out", out, "--lm", "lm", "--quiet", "--json"]) == 0
    assert Path(json.loads(capsys.readouterr().out)["base_model"]) == world / "lm"
    assert cli.main(["export", str(folder / "d"), "--lm", "", "--quiet"]) == 2
    assert "name it with --lm MODEL" in capsys.readouterr().err
    assert cli.main(["export", str(tmp_path), "--lm", str(world / "lm"), "--quiet"]) == 1
    assert "does not exist; a module folder holds" in capsys.readouterr().err
    bitfit = configured(world, prompt=None, delta={"kind": "bitfit", "name": "b"})
    train(bitfit)
    with pytest.raises(ConfigError, match="which holds bitfit"):
        export_module(Path(bitfit.workspace) / "modules" / "b", lm=str(world / "lm"))


def test_a_delta_of_an_encoder_goes_out_without_its_head(tmp_path: Path) -> None:
    world = of_encoder.make_world(tmp_path)
    config = load_config(of_encoder.settings(world, delta={"kind": "lora", "name": "d", "rank": 2}))
    train(config)
    folder = Path(export_peft(config)["folder"])
    assert folder == world / "work" / "modules" / "colours.peft"
    export_module(world / "work" / "modules" / "colours", tmp_path / "again", encoder=str(world / "encoder"))
    assert (tmp_path / "again" / "adapter_model.safetensors").read_bytes() == (
        folder / "adapter_model.safetensors"
    ).read_bytes()
    ids = torch.tensor([IDS])
    theirs = PeftModel.from_pretrained(AutoModel.from_pretrained(world / "encoder"), folder).eval()
    with Pipeline.from_config(config) as pipeline, torch.no_grad():
        encoder: Any = pipeline.encoder  # type: ignore[attr-defined]
        plain = encoder.model(input_ids=ids).last_hidden_state
        with attach(encoder, pipeline.tuned.delta):  # type: ignore[attr-defined]
            ours = encoder.model(input_ids=ids).last_hidden_state
        torch.testing.assert_close(ours, theirs(input_ids=ids).last_hidden_state, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(ours, plain)
    with pytest.raises(ConfigError, match="has no head"):
        import_peft(config, folder)
    alone = load_config(of_encoder.settings(world, name="alone"))
    train(alone)
    with pytest.raises(ConfigError, match="which holds classification_head"):
        export_module(world / "work" / "modules" / "alone", encoder=str(world / "encoder"))
    prefix = load_config(of_encoder.settings(world, name="other", delta={"kind": "p_tuning_v2", "name": "d"}))
    train(prefix)
    with pytest.raises(ConfigError, match="this model's kind is encoder"):
        export_peft(prefix)


def test_what_was_imported_is_not_written_over_by_an_old_training(tmp_path: Path) -> None:
    world = make_world(tmp_path, "opt")
    config = configured(world, prompt=PREFIX)
    train(config)
    export_peft(config, tmp_path / "peft")
    modules = Path(config.workspace) / "modules"
    shutil.rmtree(modules / PREFIX["name"])  # what is left is the state of the run
    with pytest.raises(CheckpointError, match=r"\.run is there already; give --restart"):
        import_peft(config, tmp_path / "peft")
    import_peft(config, tmp_path / "peft", restart=True)
    assert not list((modules / f"{PREFIX['name']}.run").glob("*.safetensors"))
    assert not train(config)["already_trained"]
