# Everything is in .venv and .cupola; `make clean` removes .venv and all caches, but never the workspace.
# The first of these that is installed. constraints.txt has pins for 3.11; 3.12 and 3.13 use pyproject.toml's ranges.
PYTHON ?= $(or $(shell for v in 3.11 3.12 3.13; do command -v python$$v && break; done),python3.11)
PIP_VERSION := 26.3
VENV := .venv
BIN := $(VENV)/bin
CHECKOV := $(VENV)/tools/checkov
PINS = $$($(BIN)/python -c 'import sys; print("-c $(1)" if sys.version_info[:2] == (3, 11) else "")')
# Two processes; the tests of a file run in the same one, because they share fixtures.
BY_FILE := -n 2 --dist loadfile --no-loadscope-reorder
INSTALLED := $(VENV)/.installed
CHECKOV_INSTALLED := $(CHECKOV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all gpu-check lint format clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(INSTALLED)  ## create .venv and install everything

demo: install  ## run the recipe `tiny`: from text on this machine to an aligned, evaluated model
	$(BIN)/cupola run tiny

test: lint $(CHECKOV_INSTALLED)  ## lint, type-check, check the layers, and run all tests that are not slow
	scripts/install-debian-packages
	$(BIN)/pytest $(BY_FILE)

test-all: lint $(CHECKOV_INSTALLED)  ## the same, including slow tests
	scripts/install-debian-packages
	$(BIN)/pytest $(BY_FILE) -m ''

gpu-check: install  ## check on one GPU, in ten minutes, what cannot be checked without one
	$(BIN)/python benchmarks/gpu_check run

lint: install  ## run ruff, mypy and import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install  ## format the code with ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove .venv and the tools' caches, but not the workspace, .cupola
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# A stamp file, so that installation runs only when the pins or pyproject.toml change.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "Cupola needs Python 3.11, 3.12 or 3.13 with venv, and '$(PYTHON)' is none of them: make $(or $(MAKECMDGOALS),install) PYTHON=/path/to/python3.11" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet pip==$(PIP_VERSION)
	$(BIN)/python -m pip install $(call PINS,constraints.txt) --editable . --group dev
	@touch $@

# Checkov has its own environment, because it pins boto3 and packaging to versions that the platform cannot use.
$(CHECKOV_INSTALLED): infra/checkov-constraints.txt | $(INSTALLED)
	@test -x $(CHECKOV)/bin/python || $(PYTHON) -m venv $(CHECKOV)
	$(CHECKOV)/bin/python -m pip install --quiet pip==$(PIP_VERSION)
	$(CHECKOV)/bin/python -m pip install --quiet $(call PINS,infra/checkov-constraints.txt) checkov
	@touch $@
