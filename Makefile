# Everything below sets itself up: a virtual environment in .venv, with the versions of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# For tests of real processors; kept off the path and without dependencies (torchvision would change torch): zoo.shim.
EXTRAS := torchvision==0.28.0 timm==1.0.31 num2words==0.5.14 docopt==0.6.2

.PHONY: setup demo test zoo lint train-demo evaluate clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target .venv/extras $(EXTRAS)
	touch $(READY)

demo: $(READY)
	$(BIN)/lvlm-probe demo

test: $(READY)
	$(BIN)/pytest --numprocesses=auto --dist=worksteal

zoo: $(READY)
	$(BIN)/pytest -m zoo tests/test_coverage.py

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

train-demo: $(READY)
	$(BIN)/python -m lvlm_probe.demo.train
	$(BIN)/python -m lvlm_probe.demo.evaluate --write-examples

evaluate: $(READY)
	$(BIN)/python -m lvlm_probe.demo.evaluate
	$(BIN)/python benchmarks/localisation.py

clean:
	rm -rf .venv build dist lvlm-probe-demo *.egg-info
