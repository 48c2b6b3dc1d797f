# Two commands do all: `make run` and `make test`. Both make the environment first, if it is not there yet.
# `make test-faults` tests besides that nothing is lost when processes are killed, disks are full or folders are
# of no use; `make test-slurm` tests the Slurm profile and needs root, to install and start a Slurm.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PINS := envs/requirements.txt envs/constraints.txt
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: run test test-faults test-slurm lint clean

run: $(VENV)/.run-ready  ## the embedded study, from nothing to its report
	$(BIN)/snakemake

test: $(VENV)/.test-ready lint  ## linters, then the tests
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-faults: $(VENV)/.test-ready  ## runs that are killed at any moment, full disks
	$(BIN)/python -m pytest -n 2 --dist worksteal -m faults tests/test_faults.py

test-slurm: $(VENV)/.test-ready $(VENV)/.slurm-ready  ## the Slurm profile, on a Slurm of one node
	tests/slurm/cluster.sh install
	$(BIN)/python -m pytest -m slurm tests/slurm

lint: $(VENV)/.test-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile rules
	$(BIN)/ty check
	$(BIN)/snakemake --lint

clean:  ## the environment and Snakemake's records; results stay
	rm -rf $(VENV) .snakemake

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed, found " + sys.version.split()[0] + "; name one with make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run-ready: $(PINS) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r envs/requirements.txt -c envs/constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

$(VENV)/.test-ready: $(VENV)/.run-ready envs/requirements-test.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r envs/requirements-test.txt -c envs/constraints.txt
	touch $@

$(VENV)/.slurm-ready: $(VENV)/.run-ready envs/requirements-slurm.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r envs/requirements-slurm.txt -c envs/constraints.txt
	touch $@
