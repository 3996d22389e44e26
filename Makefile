# Each target makes .venv and installs what it needs first.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS)

TORCH = $(shell grep '^torch==' constraints.txt)
# What a new transformers breaks first.
CORE := tests/model/test_generation.py tests/model/test_decoder.py tests/model/test_pipeline.py \
	tests/model/test_remote_code.py tests/training/test_training.py
ENVIRONMENTS := .venv .venv-oldest .venv-newest .venv-transformers

.PHONY: install train app explain docs test test-fast test-oldest test-newest test-transformers lint format build clean

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
	$(BIN)/python utils/check_docs.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

test: $(VENV)/installed-dev  ## every test
	$(BIN)/python -m pytest -n auto --dist worksteal

test-fast: $(VENV)/installed-dev  ## the tests that take under two minutes together: no browser, no process of its own
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow"

test-oldest:  ## every test, with the oldest versions that pyproject.toml allows
	$(MAKE) test VENV=.venv-oldest CONSTRAINTS=constraints-min.txt

test-newest: .venv-newest/installed  ## every test with the newest of everything but torch, and the core without numba
	.venv-newest/bin/python -m pytest -n auto --dist worksteal
	IGPT_TEST_WITHOUT_NUMBA=1 .venv-newest/bin/python -m pytest -n auto --dist worksteal $(CORE)

.venv-newest/installed: pyproject.toml
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet $(TORCH)
	.venv-newest/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager $(TORCH) --editable '.[dev]'
	touch $@

VERSIONS := -c "from importlib.metadata import version as v; \
	print([(n, v(n)) for n in ('transformers', 'huggingface_hub', 'accelerate', 'datasets')])"

# In minutes: what is in $(VENV), and over it the newest Hugging Face packages alone. Always asks what is newest; where
# that is what constraints.txt names, `make test` has run all but the core without numba.
test-transformers: $(VENV)/installed-dev  ## the core with the newest transformers, with numba and without
	$(BIN)/python -m venv .venv-transformers
	site=$$(echo .venv-transformers/lib/python3.*/site-packages); \
		echo "import site; site.addsitedir('$(abspath $(VENV))/$${site#*/}')" > $$site/under.pth
	.venv-transformers/bin/python -m pip install --quiet --upgrade $(TORCH) transformers huggingface_hub accelerate datasets
	.venv-transformers/bin/python $(VERSIONS)
	[ "$$(.venv-transformers/bin/python $(VERSIONS))" = "$$($(BIN)/python $(VERSIONS))" ] || { \
		.venv-transformers/bin/python -m pytest -n auto --dist worksteal -m "not slow" $(CORE) && \
		.venv-transformers/bin/python -m pytest -n auto --dist worksteal -m slow tests/model/test_remote_code.py -k checkpoint_works; }
	IGPT_TEST_WITHOUT_NUMBA=1 .venv-transformers/bin/python -m pytest -n auto --dist worksteal -m "not slow" $(CORE) \
		-k "not test_training or two_steps"

lint: $(VENV)/installed-dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml .github/ISSUE_TEMPLATE/idea.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml

build: $(VENV)/installed-dev  ## wheel and source archive in dist/, checked as a package index would
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

clean:  ## all that was made, but for the trained models in runs
	rm -rf $(ENVIRONMENTS) dist site .pytest_cache .ruff_cache .mypy_cache
