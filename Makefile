# Each target makes .venv and installs what it needs first.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS)

.PHONY: install train app explain docs test test-oldest lint format clean

install: $(VENV)/installed  ## .venv with all that the scripts need

# torch comes first and pinned: any other request for it may fetch gigabytes of CUDA packages.
$(VENV)/installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) torch
	$(INSTALL) --editable '.[eval]'
	touch $@

$(VENV)/installed-demo: $(VENV)/installed
	$(INSTALL) --editable '.[demo]'
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(INSTALL) --editable '.[dev]'
	touch $@

train: install  ## the reference model on digits that the package draws itself, in minutes, into runs/synthetic
	$(BIN)/accelerate launch scripts/train.py --config configs/quick.yaml

MODEL ?= runs/synthetic

app: $(VENV)/installed-demo  ## the model in a browser, at http://127.0.0.1:7860; another one by MODEL=runs/mine
	$(BIN)/python scripts/app.py $(MODEL)

explain: install  ## one prediction of a tiny model, step by step, with all its numbers
	$(BIN)/python scripts/explain.py

docs: $(VENV)/installed-dev  ## the documentation as a site in site/; checks its figures and commands, fails at any warning
	$(BIN)/python scripts/check_docs.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

test: $(VENV)/installed-dev  ## every test
	$(BIN)/python -m pytest -n auto

test-oldest:  ## every test, with the oldest versions that pyproject.toml allows
	$(MAKE) test VENV=.venv-oldest CONSTRAINTS=constraints-min.txt

lint: $(VENV)/installed-dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

clean:  ## all that was made, but for the trained models in runs
	rm -rf .venv .venv-oldest site .pytest_cache .ruff_cache
