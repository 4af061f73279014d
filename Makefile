# Each target does all the set-up that it needs, from a bare checkout, and next to nothing when nothing changed.
# Needed beforehand: Python 3.11 or 3.12 with its venv module, GNU make, Linux on x86-64. Node comes from a Python package.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:

BIN := .venv/bin
STAMPS := .cache/stamps
STATIC := heimdallr_ray/dashboard/static
# More words for pytest, for example: make test PYTEST_ARGS="-k geometry"
PYTEST_ARGS ?=
# Tests run in so many processes, those of a file in one; make test PYTEST_WORKERS=0 runs all in one.
PYTEST_WORKERS ?= 2
# A test that hangs ends its process and the run, as it does in one process.
PYTEST := $(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadfile --no-loadscope-reorder --max-worker-restart=0
# npm and the programs it starts look for node on PATH.
NPM := PATH="$(CURDIR)/$(BIN):$$PATH" npm --prefix dashboard

WEB_SOURCES := $(shell find dashboard -type d \( -name node_modules -o -name dist \) -prune -o -type f -print 2>/dev/null)

WEB_TESTS := $(filter %.test.ts %.test.tsx,$(WEB_SOURCES))

# What was removed by hand is made again.
ifeq ($(wildcard $(BIN)/python),)
$(shell rm -rf $(STAMPS))
endif
ifeq ($(wildcard dashboard/node_modules),)
$(shell rm -f $(STAMPS)/npm)
endif
ifeq ($(wildcard $(STATIC)/index.html),)
$(shell rm -f $(STAMPS)/web)
endif

.PHONY: help setup demo up lint test-fast test test-all bench lock licences docs clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

setup: $(STAMPS)/package $(STAMPS)/web ## virtual environment, locked packages, web pages

demo: setup ## start everything, send two synthetic CT studies over DICOM, print the worklist's address
	$(BIN)/heimdallr demo

up: setup ## start everything and wait for studies; needs TotalSegmentator's weights, make up PROFILE=demo does not
	$(BIN)/heimdallr up $(if $(PROFILE),--profile $(PROFILE))

lint: setup ## style, types, import rules, spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(NPM) run typecheck

test-fast: setup ## the unit tests
	$(PYTEST) tests/unit -m "not slow" $(PYTEST_ARGS)

test: setup ## every test that is not minutes long
	$(if $(WEB_TESTS),$(NPM) run test)
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

test-all: setup ## every test
	$(if $(WEB_TESTS),$(NPM) run test)
	$(PYTEST) $(PYTEST_ARGS)

bench: setup ## every benchmark; fails where a bar does not hold
	$(BIN)/python -m bench all

lock: $(STAMPS)/python ## resolve requirements.lock anew from pyproject.toml, keeping what still fits
	$(BIN)/python -c "import uv" 2>/dev/null || $(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 \
		--generate-hashes --no-header --quiet --output-file requirements.lock

licences: setup ## write THIRD_PARTY_LICENSES.md anew
	$(BIN)/python -m tools.third_party_licences

docs: setup ## write docs/settings.md and the tables of docs/measurements.md and docs/conformance.md anew
	$(BIN)/python -m tools.settings_page
	$(BIN)/python -m tools.measurements_page
	$(BIN)/python -m tools.conformance_page

clean: ## remove what was built here; the next target starts from a bare checkout
	rm -rf .venv .cache build dist dashboard/node_modules $(STATIC)

$(STAMPS)/python:
	@mkdir -p $(STAMPS)
	@[[ "$$(uname -sm)" == "Linux x86_64" ]] || { echo "requirements.lock is for Linux on x86-64, this is $$(uname -sm)" >&2; exit 1; }
	@for python in python3.11 python3.12 python3; do \
		if "$$python" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; then \
			echo "creating .venv with $$("$$python" --version)"; "$$python" -m venv --clear .venv; touch $@; exit 0; \
		fi; \
	done; \
	echo "No Python 3.11 or 3.12 with its venv module was found. On Debian or Ubuntu: apt-get install python3.11 python3.11-venv" >&2; exit 1

# --no-deps: the lock is complete; `pip check` says so.
$(STAMPS)/locked: requirements.lock $(STAMPS)/python
	@echo "installing the packages of requirements.lock: about 8 GB, some minutes"
	@for attempt in 1 2 3; do \
		if $(BIN)/python -m pip install --quiet --require-hashes --no-deps --requirement requirements.lock; then exit 0; fi; \
		echo "pip failed, attempt $$attempt of 3" >&2; \
	done; exit 1
	$(BIN)/python -m pip check
	@touch $@

$(STAMPS)/package: pyproject.toml hatch_build.py $(STAMPS)/locked
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# No install scripts: none of our packages needs one, and one of them would report the installation to its maker.
$(STAMPS)/npm: dashboard/package-lock.json | $(STAMPS)/locked
	$(NPM) ci --ignore-scripts --no-audit --no-fund
	@touch $@

$(STAMPS)/web: $(WEB_SOURCES) $(STAMPS)/npm
	$(NPM) run build
	@test -f $(STATIC)/index.html
	@touch $@
