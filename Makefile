# DeAIOS. `make` lists the commands. Needs Python 3.11 or 3.12, make and a package registry; makes its own environment.
SHELL := /bin/sh
PYTHON := $(shell for p in python3.12 python3.11 python3 python; do \
  $$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
export OPENBLAS_NUM_THREADS ?= 1
UV_VERSION := 0.13.9

.DEFAULT_GOAL := help
.PHONY: help demo up down test check fix bench bench-verify soak wheel clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.venv/ready: requirements/all.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 (with venv) is missing; on Debian: apt install python3 python3-venv" >&2; exit 1; }
	@echo "making .venv with $(PYTHON) (once, about a minute)"
	@$(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install -q --disable-pip-version-check uv==$(UV_VERSION)
	@$(BIN)/uv pip install -q --python $(BIN)/python --require-hashes -r requirements/all.txt
	@$(BIN)/uv pip install -q --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

demo: .venv/ready ## the main job: a question, a verified answer, a caught cheater; about two minutes
	@$(BIN)/deaios demo

up: .venv/ready ## run a local network until Ctrl-C
	@$(BIN)/deaios up

down: .venv/ready ## stop the network that `make up` started
	@$(BIN)/deaios down

test: check ## format, lint, types, layers, contracts' artifacts, then all tests
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: .venv/ready
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo 2>/dev/null || $(BIN)/lint-imports
	@$(BIN)/python tools/compile-contracts --check

fix: .venv/ready ## format, mend what the linter can, rebuild contract artifacts
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/python tools/compile-contracts

bench: .venv/ready ## measure beside peers; writes bench/results/
	@$(BIN)/python -m bench

bench-verify: .venv/ready ## how often cheats are caught and honest answers flagged; two hours, goes on where it stopped
	@$(BIN)/python -m bench.detection
	@$(BIN)/python -m bench.detection.company
	@$(BIN)/python -m bench.detection.constrained

soak: .venv/ready ## long searches; stop with Ctrl-C
	@$(BIN)/python -m soak

wheel: .venv/ready ## build dist/*.whl
	@$(BIN)/python -m build --wheel --no-isolation --outdir dist . >/dev/null && ls dist

clean: ## remove the environment and caches
	rm -rf .venv bench/.venv dist build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .cache
