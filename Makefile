# Each target makes .venv and installs what it needs first.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt

.PHONY: install train app explain docs test lint format clean

install: .venv/installed  ## .venv with all that the scripts need

# torch comes first and pinned: any other request for it may fetch gigabytes of CUDA packages.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) torch
	$(INSTALL) --editable '.[eval]'
	touch $@

.venv/installed-demo: .venv/installed
	$(INSTALL) --editable '.[demo]'
	touch $@

.venv/installed-dev: .venv/installed
	$(INSTALL) --editable '.[dev]'
	touch $@

train: install  ## the seed model on the embedded Persian digits, in minutes, into runs/synthetic
	$(BIN)/accelerate launch scripts/train.py --config configs/quick.yaml

MODEL ?= runs/synthetic

app: .venv/installed-demo  ## the model in a browser, at http://127.0.0.1:7860; another one by MODEL=runs/mine
	$(BIN)/python scripts/app.py $(MODEL)

explain: install  ## one prediction of a tiny model, step by step, with all its numbers
	$(BIN)/python scripts/explain.py

docs: .venv/installed-dev  ## the documentation as a site in site/; checks its figures and commands, fails at any warning
	$(BIN)/python scripts/check_docs.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

test: .venv/installed-dev  ## every test
	$(BIN)/python -m pytest -n auto

lint: .venv/installed-dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

format: .venv/installed-dev
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

clean:
	rm -rf .venv runs site .pytest_cache .ruff_cache
