VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export TOKENIZERS_PARALLELISM = false

.PHONY: help setup demo test test-fast check format bench schema clean

help:            ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: $(READY)  ## make the virtual environment and install everything into it

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dense,offline,hf,tensorboard,text-metrics,plots,dev]'
	@touch $@

demo: $(READY)   ## the main job on the embedded corpus and language model
	$(BIN)/frozenlm demo configs/demo.yaml

test: $(READY)   ## all tests
	$(BIN)/python -m pytest

test-fast: $(READY) ## all tests but the slow ones
	$(BIN)/python -m pytest -m 'not slow'

check: $(READY)  ## formatting, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY) ## format and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

schema: $(READY) ## write configs/schema.json anew
	$(BIN)/frozenlm config schema > configs/schema.json

bench: $(READY)  ## the small benchmarks
	for name in bm25 dense encoders suffix_prompt fusion_weight; do \
	  echo "== $$name"; $(BIN)/python benchmarks/$$name.py --quick || exit 1; done

clean:           ## remove what the tests and tools leave; runs/ and the environment stay
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
