# Everything lives in .venv and .cupola; `make clean` removes the first and every cache, never the workspace.
# The first of these that is there; constraints.txt pins what was tried with 3.11, and 3.12 and 3.13 take pyproject.toml's ranges.
PYTHON ?= $(or $(shell for v in 3.11 3.12 3.13; do command -v python$$v && break; done),python3.11)
PIP_VERSION := 26.3
VENV := .venv
BIN := $(VENV)/bin
CHECKOV := $(VENV)/tools/checkov
PINS = $$($(BIN)/python -c 'import sys; print("-c $(1)" if sys.version_info[:2] == (3, 11) else "")')
# Two processes share the files; tests of one file stay together, for what they share.
BY_FILE := -n 2 --dist loadfile --no-loadscope-reorder
INSTALLED := $(VENV)/.installed
CHECKOV_INSTALLED := $(CHECKOV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all lint format clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(INSTALLED)  ## create .venv and install everything

demo: install  ## run the recipe `tiny`: from text that every machine has to an aligned, evaluated model
	$(BIN)/cupola run tiny

test: lint $(CHECKOV_INSTALLED)  ## lint, types, layers, and every test that is not slow
	scripts/install-debian-packages
	$(BIN)/pytest $(BY_FILE)

test-all: lint $(CHECKOV_INSTALLED)  ## the same with the slow tests
	scripts/install-debian-packages
	$(BIN)/pytest $(BY_FILE) -m ''

lint: install  ## ruff, mypy and the contracts between the layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install  ## let ruff lay out the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove .venv and the tools' caches; .cupola, the workspace, stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# A stamp, so that what is installed is installed once; a change of the pins or of pyproject.toml installs again.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "Cupola needs Python 3.11, 3.12 or 3.13 with venv, and '$(PYTHON)' is none of them: make $(or $(MAKECMDGOALS),install) PYTHON=/path/to/python3.11" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet pip==$(PIP_VERSION)
	$(BIN)/python -m pip install $(call PINS,constraints.txt) --editable . --group dev
	@touch $@

# Checkov pins boto3 and packaging to versions that the platform cannot use: it lives in an environment of its own.
$(CHECKOV_INSTALLED): infra/checkov-constraints.txt | $(INSTALLED)
	@test -x $(CHECKOV)/bin/python || $(PYTHON) -m venv $(CHECKOV)
	$(CHECKOV)/bin/python -m pip install --quiet pip==$(PIP_VERSION)
	$(CHECKOV)/bin/python -m pip install --quiet $(call PINS,infra/checkov-constraints.txt) checkov
	@touch $@
