# Every target makes its own environment first (.venv, once): Python 3.10 to 3.12, gcc and make are all it needs.
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Both cores, unless a few tests are asked for: a second process takes longer to start than they run.
JOBS ?= $(if $(ARGS),1,2)
PYTEST := $(BIN)/python -m pytest $(if $(filter-out 1,$(JOBS)),-n $(JOBS) --dist loadfile)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-all check clean

help: ## this list
	@echo 'make TARGET [ARGS="more arguments of the command"] [PYTHON=python3.11]'
	@sed -n 's/^\([a-z-]*\):.*## /\1 /p' $(firstword $(MAKEFILE_LIST)) | while read -r name what; do printf '  %-8s %s\n' "$$name" "$$what"; done

setup: $(READY) ## build and check the environment in .venv: what every other target does first

demo: $(READY) ## scenes, shards, pre-training on 2 processes, fine-tuning, evaluation and the report in runs/demo
	@$(BIN)/python tools/demo.py $(ARGS)

test: $(READY) ## every promise proved once; one test: make test ARGS="tests/test_records.py -k rle"; JOBS=4: in four processes
	@$(PYTEST) -m "not exhaustive" $(ARGS)

test-all: $(READY) ## all tests: every combination, and many more examples of what is drawn at random
	@$(PYTEST) --hypothesis-profile=thorough $(ARGS)

check: $(READY) ## ruff (lint and format) and mypy
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/python -m mypy

clean: ## remove the environment and all caches; runs/ and data/ stay
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Written only after the environment has passed its checks, so that a set-up that broke off is taken up again.
$(READY): setup.py constraints.txt tools/setup_environment.sh
	@PYTHON='$(PYTHON)' sh tools/setup_environment.sh $(VENV)
	@touch $@
