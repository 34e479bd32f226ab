# make serve   try it          make test   everything CI runs

PYTHON ?= $(or $(shell command -v python3.11),python3)
BIN := .venv/bin
# e.g. make setup PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu" for torch without CUDA
PIP_FLAGS ?=
BENCH_FLAGS ?=
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt
# torch and setuptools come first and alone: whatever build of torch the index offers stays as the later
# steps find it, and the project is then built with the pinned setuptools instead of the newest one.
INSTALL_PROJECT = $(INSTALL) setuptools torch && $(INSTALL) --no-build-isolation -e

.DEFAULT_GOAL := help
.PHONY: help setup serve test chaos lint format bench clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 20

setup: .venv/.ready  ## build .venv with the demo model, the test tools and the command raypool

serve: .venv/.demo  ## serve the demo model on 127.0.0.1:8000 until Ctrl-C
	@$(BIN)/raypool serve configs/demo.yaml

test: setup lint  ## everything CI runs
	$(BIN)/python -m pytest --ignore=tests/chaos

chaos: setup  ## break a running service on purpose, some minutes; CI has the kill of a replica and of a rank
	$(BIN)/python -m pytest -s tests/chaos

lint: setup  ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup  ## rewrite the code in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/.bench  ## all comparisons, into docs/benchmarks.md: hours; BENCH_FLAGS=--quick: ten minutes
	$(BIN)/python -m benchmarks.report $(BENCH_FLAGS)

clean:  ## remove .venv and every cache
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Touched last, so that an install that was cut short is taken up again; older than what it was built from, it is redone.
.venv/.ready: pyproject.toml constraints.txt
	@echo "building .venv with $(PYTHON) (some minutes the first time)"
	@$(PYTHON) -m venv .venv
	@$(INSTALL_PROJECT) '.[demo,test]'
	@touch $@ .venv/.demo

# The figures' tool comes on top; the peers build environments of their own, under .bench.
.venv/.bench: .venv/.ready
	@$(INSTALL_PROJECT) '.[demo,test,bench]'
	@touch $@

# Serving asks for less than testing: no test tools.
.venv/.demo: pyproject.toml constraints.txt
	@echo "building .venv with $(PYTHON) (some minutes the first time)"
	@$(PYTHON) -m venv .venv
	@$(INSTALL_PROJECT) '.[demo]'
	@touch $@
