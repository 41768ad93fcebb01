# Every target sets up .venv first (see requirements/bootstrap.py); nothing else is touched.
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest --quiet --exitfirst
COMPILE := $(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-header --quiet
step = @printf '%s\n' '== $(1)'

.DEFAULT_GOAL := help
.PHONY: help setup demo test soak lint format bench lock clean

help:
	@echo 'make demo    start a node with the built-in model and ask it something'
	@echo 'make test    format, lint, types, then every test'
	@echo 'make soak    longer runs of what make test samples'
	@echo 'make lint    only format, lint and types'
	@echo 'make format  rewrite the sources in the project format'
	@echo 'make bench   measure against llama-server'
	@echo 'make lock    resolve the dependencies anew into requirements/*.lock'
	@echo 'make setup   only set up .venv'
	@echo 'make clean   remove caches; .venv stays'

setup:
	@sh requirements/setup.sh

demo: setup
	@LLAMESH_HOME="$${LLAMESH_HOME:-$(CURDIR)/.llamesh-demo}" $(BIN)/llamesh demo

lint: setup
	$(call step,format)
	@$(BIN)/ruff format --check --quiet .
	$(call step,lint)
	@$(BIN)/ruff check --quiet .
	$(call step,types)
	@$(BIN)/basedpyright --pythonpath $(BIN)/python --level error

format: setup
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --quiet --fix .

test: lint
	$(call step,unit and property tests)
	@$(PYTEST) tests/unit tests/property tests/models tests/benchmarks
	$(call step,engine tests)
	@$(PYTEST) tests/engine
	$(call step,contract and cluster tests)
	@$(PYTEST) tests/contract tests/cluster
	$(call step,hostile files)
	@$(PYTEST) tests/hostile
	@echo '== all tests passed'

soak: setup
	@LLAMESH_HOSTILE=all $(PYTEST) tests/hostile

bench: setup
	@$(BIN)/python -m tests.benchmarks

lock: setup
	@$(COMPILE) requirements/bootstrap.in -o requirements/bootstrap.lock
	@$(COMPILE) --override requirements/overrides.txt pyproject.toml -o requirements/runtime.lock
	@$(COMPILE) --override requirements/overrides.txt --extra dev pyproject.toml -o requirements/dev.lock

clean:
	@rm -rf .pytest_cache .ruff_cache .hypothesis build dist .llamesh-demo
	@find agent api consensus p2p simulations tests -name __pycache__ -type d -exec rm -rf {} +
