# SPDX-License-Identifier: MIT
# `make demo` and `make test` need only Python 3.10 or newer.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
USER_STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt
# Without compiled modules, `import torch` alone takes four seconds.
unexport PYTHONDONTWRITEBYTECODE
SOURCES := pyproject.toml setup.py constraints.txt $(wildcard bpfn_cli/ops/native/*.[ch])
DEMO ?= demo
SCENE := data/synthetic/val/0000000
BPFN := env -u BPFN_DATA $(abspath $(BIN))/bpfn

.PHONY: demo test test-slow test-all endurance lint check three install clean

install: $(USER_STAMP)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "bpfn needs Python 3.10 or newer: make PYTHON=python3.11")'
	@$(PYTHON) -m venv $(VENV)

$(USER_STAMP): $(SOURCES) | $(BIN)/python
	@echo "installing into $(VENV) (torch is large and may take minutes to download)"
	@$(PIP) -e ".[viz]"
	@touch $@

$(DEV_STAMP): $(SOURCES) | $(BIN)/python
	@echo "installing with test dependencies into $(VENV)"
	@$(PIP) -e ".[dev]"
	@touch $@ $(USER_STAMP)

demo: $(USER_STAMP)
	@mkdir -p $(DEMO)
	cd $(DEMO) && $(BPFN) weights
	cd $(DEMO) && $(BPFN) subset
	cd $(DEMO) && $(BPFN) profile --variant weightnet48
	cd $(DEMO) && $(BPFN) distill --loss bihint --checkpoint baseline --epochs 4
	cd $(DEMO) && $(BPFN) eval
	cd $(DEMO) && $(BPFN) predict $(SCENE)/pc1.npy $(SCENE)/pc2.npy --frame flyingthings3d --force
	cd $(DEMO) && $(BPFN) report --html report --force
	cd $(DEMO) && $(BPFN) view $(SCENE) --checkpoint runs/latest --checkpoint baseline --force

PYTEST := $(BIN)/python -m pytest -q -n auto --maxprocesses=4 --dist loadfile

test: $(DEV_STAMP)
	$(PYTEST)

test-slow: $(DEV_STAMP)
	$(PYTEST) -m "slow and not endurance"

test-all: $(DEV_STAMP)
	$(PYTEST) -m "not endurance"

endurance: $(DEV_STAMP)
	$(PYTEST) -m endurance

lint: $(DEV_STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint test

# The parts of three.js that pages use, as one file; needs npm.
THREE := bpfn_cli/resources/three
three:
	npm install --no-save --no-audit --no-fund --prefix build/three three@0.187.0 esbuild@0.28.2
	cp build/three/node_modules/three/LICENSE $(THREE)/LICENSE
	NODE_PATH=build/three/node_modules build/three/node_modules/.bin/esbuild $(THREE)/entry.js --bundle --minify \
		--format=iife --global-name=THREE --target=es2020 --legal-comments=none \
		--banner:js="/* three.js 0.187.0, MIT license, see LICENSE */" --outfile=$(THREE)/three.min.js

clean:
	rm -rf $(VENV) $(DEMO) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
