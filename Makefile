# Every target makes its own environment first (.venv, once): Python 3.10 to 3.12, gcc and make are all it needs.
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test check clean

help: ## this list
	@echo 'make TARGET [ARGS="more arguments of the command"] [PYTHON=python3.11]'
	@sed -n 's/^\([a-z]*\):.*## /\1 /p' $(firstword $(MAKEFILE_LIST)) | while read -r name what; do printf '  %-7s %s\n' "$$name" "$$what"; done

setup: $(READY) ## build and check the environment in .venv: what every other target does first

demo: $(READY) ## scenes, shards, pre-training on 2 processes, fine-tuning, evaluation and the report in runs/demo
	@$(BIN)/python tools/demo.py $(ARGS)

test: $(READY) ## the whole test suite; one test: make test ARGS="tests/test_records.py -k rle"; in two processes: JOBS=2
	@$(BIN)/python -m pytest $(if $(JOBS),-n $(JOBS) --dist loadfile) $(ARGS)

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
