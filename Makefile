# Two commands: `make up` serves a model on this machine, `make test` runs every test that needs no GPU.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# PYTHON: which interpreter the environment is made with. TORCH: another requirement or wheel source for the same
# version, e.g. TORCH="torch==2.13.0 --index-url URL-OF-A-CUDA-BUILD". ARGS: options of `splitmesh up`.
PYTHON ?= python3
TORCH ?= torch==2.13.0
ARGS ?=
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check install -c constraints.txt
PYTEST := HF_HUB_OFFLINE=1 $(BIN)/python -m pytest $(PYTEST_ARGS)
NO_INDEX := { echo "splitmesh: pip cannot install what is needed (see above): is a package index in reach?" \
	"PIP_INDEX_URL names another one, TORCH another torch" >&2; exit 1; }
DEFAULT_MODEL := smollm2-135m-instruct

.PHONY: help setup up model test check fmt unit system chaos bench

help:
	@echo "make up      serve a model on this machine (ARGS=\"--help\" lists the options)"
	@echo "make test    every test that needs no GPU and no container engine"
	@echo "make check   lint, format, types, import directions, the tree itself"
	@echo "also: setup fmt unit system chaos bench"

setup: $(INSTALLED)

up: $(INSTALLED)
	@$(BIN)/splitmesh up $(ARGS)

model: $(INSTALLED)
	@$(BIN)/splitmesh models --fetch $(DEFAULT_MODEL)

test: model
	$(PYTEST)

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST) tests/unit/test_architecture.py

fmt: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

unit: $(INSTALLED)
	$(PYTEST) tests/unit tests/contract

system: model
	$(PYTEST) -m system

chaos: model
	$(PYTEST) -m chaos

bench: model
	$(BIN)/python -m tests.bench.idle
	$(BIN)/python -m tests.bench.memory
	$(BIN)/python -m tests.bench.engine
	$(BIN)/python -m tests.bench.handoff
	$(BIN)/python -m tests.bench.serving
	$(BIN)/python -m tests.bench.client
	$(BIN)/python -m tests.bench.pools agree --rounds 3
	$(BIN)/python -m tests.bench.pools shift
	$(BIN)/python -m tests.bench.simulator code
	$(BIN)/python -m tests.bench.simulator speed
	$(BIN)/python -m loadgen compare --self --trace azure-conv
	$(BIN)/python -m loadgen compare --self --trace azure-code

# The torch build is chosen first; the second line then finds its pin satisfied. UCX is an extra of its own: without
# its wheels the mesh moves KV over TCP.
$(INSTALLED): pyproject.toml constraints.txt scripts/python.sh
	@python=$$(bash scripts/python.sh "$(PYTHON)") && echo "making $(VENV) with $$python ..." && "$$python" -m venv $(VENV)
	@echo "installing $(TORCH) ..." && $(PIP) $(TORCH) || $(NO_INDEX)
	@echo "installing splitmesh and its tools ..." && $(PIP) --quiet -e '.[worker,local,load,dev]' || $(NO_INDEX)
	@echo "installing UCX ..." && $(PIP) --quiet -e '.[ucx]' || \
		echo "note: UCX has no wheels for this machine; KV caches will move over TCP"
	@touch $@
