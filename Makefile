# Every target works on a fresh clone: python3 ≥ 3.11, make and git are all it takes.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
SOURCES := admin classifiers clients config reliability sandbox storage tasks celeryconfig.py flowerconfig.py
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo test compose-test check lint types bench lock docs pictures clean

help: ## say what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: .venv/ready ## create .venv from the lock and install the project (editable)

.venv/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Perennial needs Python 3.11 or newer; this is $$($(PYTHON) --version)." \
		     "Name one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

demo: setup ## run the main job on this machine, with embedded defaults; KEEP=1 keeps it running
	@$(BIN)/python -m sandbox.demo $(if $(KEEP),--keep)

test: setup ## run the whole suite
	$(BIN)/python -m pytest -n 3 --dist loadfile

# Not a part of `test`: it makes a small Debian first, which takes some five minutes with the rest.
compose-test: setup ## bring docker-compose.yml up with an engine of its own (Debian, root), drive it
	COMPOSE=1 $(BIN)/python -m pytest -s -v tests/deployment

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

check: lint types test ## lint, types, import rules, tests

bench: setup ## print the tables of what is measured
	@$(BIN)/python -m bench

COMPILE := $(BIN)/uv pip compile --quiet --generate-hashes --universal --no-header --no-annotate \
	--python-version 3.11

lock: setup ## compile the locks anew from pyproject.toml: everything, and what the image needs
	$(COMPILE) --all-extras --group dev --output-file requirements.lock pyproject.toml
	echo 'setuptools>=77' | $(COMPILE) --extra postgres --extra opentelemetry --constraint requirements.lock \
		--output-file requirements-run.lock pyproject.toml -

docs: setup ## write the generated pages anew
	$(BIN)/python -m config.policy_page > docs/failures.md
	$(BIN)/python -m config.settings_page > docs/configuration.md

pictures: setup ## take the pictures of the console for the docs anew (chromium, pngquant)
	PYTHONPATH=tests $(BIN)/python -m fixtures.pictures

clean: ## remove what was made here
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache
