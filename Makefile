# Two commands do everything on a fresh machine with python 3.11+ and pip: `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
OLDEST ?= .venv-oldest
BIN    := $(VENV)/bin
WORKERS ?= 2
SHELL  := /bin/bash

.PHONY: demo test test-oldest check format bench docs sbom clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@

demo: $(VENV)/.installed  ## train three models on built-in scenes and show them (under 5 minutes)
	$(BIN)/plures demo --out runs/demo

test: $(VENV)/.installed  ## every test
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

$(OLDEST)/.installed: pyproject.toml tests/oldest.txt
	python3.11 -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet -e ".[dev]" -c tests/oldest.txt
	touch $@

test-oldest: $(OLDEST)/.installed  ## the fast tests with the oldest python and packages that pyproject.toml allows
	$(OLDEST)/bin/python -m pytest -m "not slow" -n $(WORKERS) --dist loadfile

check: $(VENV)/.installed  ## ruff, mypy and the fast tests
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy && $(BIN)/mypy tests/user_script.py
	$(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --dist loadfile

format: $(VENV)/.installed
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

bench: $(VENV)/.installed  ## every benchmark with small defaults, and docs/benchmarks.md
	$(BIN)/python benchmarks/run_all.py

docs: $(VENV)/.installed  ## the documentation as a site, in site/
	$(BIN)/python -m pip install --quiet -e ".[docs]"
	$(BIN)/mkdocs build --strict

sbom: $(VENV)/.installed  ## dist/sbom.json: every package with its version and its known vulnerabilities
	mkdir -p dist
	$(PYTHON) -m venv $(VENV)-audit && $(VENV)-audit/bin/python -m pip install --quiet cyclonedx-bom pip-audit
	$(VENV)-audit/bin/cyclonedx-py environment $(BIN)/python --output-file dist/sbom.json
	$(VENV)-audit/bin/pip-audit --path $$($(BIN)/python -c "import sysconfig; print(sysconfig.get_paths()['purelib'])")

clean:
	rm -rf runs site .pytest_cache .mypy_cache .ruff_cache dist
