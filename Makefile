# Two commands are enough to start: `make demo` and `make test`. Each makes .venv and installs when needed.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
DOCS   := $(VENV)/.docs
PEERS  := .venv-peers
LVQ    := .venv-prototorch
PML    := .venv-metric-learning
OOD    := .venv-ood
BENCH  ?=
PYTEST ?= -n 2 --dist loadfile
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PIP_ROOT_USER_ACTION = ignore
export NO_MKDOCS_2_WARNING = 1

.DEFAULT_GOAL := help
.PHONY: help install demo test quick lint format types docs docs-serve bench bench-peers build clean

help:  ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /|/' | awk -F'|' '{printf "  make %-11s %s\n", $$1, $$2}'

$(READY): pyproject.toml
	@echo "Installing into $(VENV) (PyTorch is large: this takes a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --upgrade pip
	@$(BIN)/python -m pip install -qq --editable '.[dev]'
	@touch $@

$(DOCS): $(READY)
	@$(BIN)/python -m pip install -qq --editable '.[dev,docs]'
	@touch $@

install: $(READY)  ## make .venv and install what development needs

demo: $(READY)  ## train on real handwritten digits and write a report a person can read
	@$(BIN)/protolearn demo

test quick: export OMP_NUM_THREADS ?= 1
test: $(READY)  ## every test and every example in the docstrings
	@$(BIN)/python -m pytest $(PYTEST)

quick: $(READY)  ## the tests that take less than about ten seconds each
	@$(BIN)/python -m pytest -m 'not slow' $(PYTEST)

lint: $(READY)  ## style and likely bugs
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(READY)  ## rewrite the files in the house style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: $(READY)  ## type annotations: strict for core, objectives and structures
	@$(BIN)/mypy

docs: $(DOCS)  ## build the documentation site into site/
	@$(BIN)/mkdocs build --strict --quiet

docs-serve: $(DOCS)  ## the documentation site on this machine, rebuilt as you write
	@$(BIN)/mkdocs serve

# The peer wants older versions of some packages, so it gets an environment of its own; the rest it borrows.
$(PEERS)/.ready: $(READY)
	@test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$($(PEERS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/borrowed.pth"
	@$(PEERS)/bin/python -m pip install -qq --upgrade-strategy only-if-needed '.[bench]'
	@touch $@

# prototorch reads pkg_resources, which setuptools has dropped
$(LVQ)/.ready: $(READY)
	@test -x $(LVQ)/bin/python || $(PYTHON) -m venv $(LVQ)
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$($(LVQ)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/borrowed.pth"
	@$(LVQ)/bin/python -m pip install -qq --upgrade-strategy only-if-needed \
		prototorch==0.7.6 prototorch-models==0.7.1 'setuptools<80'
	@touch $@

$(PML)/.ready: $(READY)
	@test -x $(PML)/bin/python || $(PYTHON) -m venv $(PML)
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$($(PML)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/borrowed.pth"
	@$(PML)/bin/python -m pip install -qq --upgrade-strategy only-if-needed pytorch-metric-learning==2.9.0
	@touch $@

$(OOD)/.ready: $(READY)
	@test -x $(OOD)/bin/python || $(PYTHON) -m venv $(OOD)
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$($(OOD)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/borrowed.pth"
	@$(OOD)/bin/python -m pip install -qq --no-deps pytorch-ood==0.4.0
	@touch $@

bench: $(READY)  ## the speed table of benchmarks/README.md
	@$(BIN)/python -m benchmarks $(BENCH)

bench-peers: $(READY) $(PEERS)/.ready $(LVQ)/.ready $(PML)/.ready $(OOD)/.ready  ## the same beside CaBRNet and others
	@CABRNET_PYTHON=$(PEERS)/bin/python PROTOTORCH_PYTHON=$(LVQ)/bin/python METRIC_LEARNING_PYTHON=$(PML)/bin/python \
		PYTORCH_OOD_PYTHON=$(OOD)/bin/python \
		$(BIN)/python -m benchmarks $(BENCH)

build: $(READY)  ## wheel and source archive into dist/
	@$(BIN)/python -m build --no-isolation --outdir dist

clean:  ## remove what make made, the environment included
	rm -rf $(VENV) $(PEERS) $(LVQ) $(PML) $(OOD) build dist site demo .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
