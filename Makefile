# make session    build the single file and start a session on this machine (python3, pip and venv are enough)
# make test       as root on a bare Debian 12: install what is needed, check everything, clean up the lab
# make check      what CI checks, where the packages are there already
# make unit       the tests that need no lab: seconds
# make faults     crashes and errors at every call of the queue that touches a file: minutes
# make chaos      500 jobs on three hosts to which everything happens (SEED=7 repeats a plan): over half an hour
# make pyz        dist/mlbox.pyz and build/mlbox-host.pyz
# make soak       hours of cut tunnels in the lab (SOAK=7200 PERIOD=60 SLEEP=600: seconds)
# make bench      measurements (scripts/bench.py)

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python -m
REPORTS := build/reports
# Half of the time a test of these waits for something.
WORKERS := $(shell expr 2 \* $$(nproc 2>/dev/null || sysctl -n hw.ncpu))
# The lab installs for itself what it needs beyond this (scripts/labkit).
PACKAGES := ca-certificates chromium faketime fish gcc git libc6-dev openssh-client openssh-server procps python3 python3-pip python3-venv rsync zsh

.PHONY: pyz session unit faults lint types check lab-test lab-down chaos test soak bench clean packages
.DEFAULT_GOAL := pyz

pyz:
	$(PYTHON) scripts/build_pyz.py

session: pyz
	$(PYTHON) dist/mlbox.pyz session local

$(VENV)/.stamp: pyproject.toml scripts/pyz-requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet --editable '.[dev]'
	touch $@

lint: $(VENV)/.stamp
	$(RUN) ruff check .
	$(RUN) ruff format --check .

types: $(VENV)/.stamp
	$(RUN) mypy --strict

# The import rule (tests/test_imports.py) and the single files, built twice, compared and run
# (tests/test_pyz.py), are among these.
unit: pyz $(VENV)/.stamp
	$(RUN) pytest tests --ignore=tests/lab --ignore=tests/faults -n $(WORKERS) --junitxml=$(REPORTS)/unit.xml

# SIGKILL, EIO, ENOSPC and ESTALE at every call that touches a file, and a full disk from there on (EVERY=13: at each 13th,
# with one of these errors).
EVERY ?= 1
faults: pyz $(VENV)/.stamp
	MLBOX_FAULTS_EVERY=$(EVERY) $(RUN) pytest tests/faults -n logical --junitxml=$(REPORTS)/faults.xml

# Several at a time, each on a copy of the lab: they wait most of the time. A file's tests stay together and in order.
COPIES ?= 3
lab-test: pyz $(VENV)/.stamp
	for copy in $$(seq $(COPIES)); do MLBOX_LAB_COPY=$$copy $(PYTHON) scripts/lab up || exit 1; done
	$(RUN) pytest tests/lab -n $(COPIES) --dist loadfile --no-loadscope-reorder --max-worker-restart 0 --junitxml=$(REPORTS)/lab.xml

# Its short form is among the lab tests.
JOBS ?= 500
chaos: pyz $(VENV)/.stamp
	$(PYTHON) scripts/lab up
	PYTHONPATH=.:scripts:tests/kit $(RUN) chaos --jobs $(JOBS) $(if $(SEED),--seed $(SEED))

SOAK ?= 7200
PERIOD ?= 60
SLEEP ?= 600
soak: pyz $(VENV)/.stamp
	$(PYTHON) scripts/lab up
	MLBOX_SOAK=$(SOAK) MLBOX_SOAK_PERIOD=$(PERIOD) MLBOX_SLEEP=$(SLEEP) \
	  $(RUN) pytest tests/lab/test_tunnels_background.py -k 'asleep or again_and_again' --capture=no

lab-down:
	$(PYTHON) scripts/lab down

# One after the other also under -j, the cheap ones first.
check:
	$(MAKE) lint
	$(MAKE) types
	$(MAKE) unit
	$(MAKE) faults EVERY=13
	$(MAKE) lab-test

test: packages
	@code=0; $(MAKE) check || code=$$?; $(MAKE) lab-down || code=1; exit $$code

# RUNLEVEL=1: packages that bring a daemon (sshd) do not start it.
packages:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! dpkg -s $(PACKAGES) >/dev/null 2>&1; then \
	  export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1; \
	  apt-get -q update && apt-get -qy install --no-install-recommends $(PACKAGES); \
	fi

bench: pyz $(VENV)/.stamp
	$(VENV)/bin/python scripts/bench.py

clean:
	rm -rf build dist $(VENV) mlbox/_host.pyz .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find mlbox scripts tests -name __pycache__ -prune -exec rm -rf {} +
