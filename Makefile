# make test               install into .venv and run the fast tests
# make test-slow          the tests marked slow
# make test COVERAGE=1     the same, and keep what was covered; make coverage then compares it with the gate
# make check              ruff and mypy
# make install-label      MONAI Label in an environment of its own, .venv-label
# make test-label         the tests of the labeling server, which need it
# make demo               synthetic cohort -> training -> evaluation -> report/index.html
# make demo DATA=/path    the same on a folder of BraTS cases
# make demo-weights       train the weights that bundles/brats_mri_right_reasons comes with, on synthetic cases
# Works with make 3.81 (macOS). PYTHON=/path/to/python chooses the interpreter (3.10 to 3.12) for a new .venv.

SHELL = /bin/sh
VENV ?= .venv
DATA ?=
COVERAGE ?=
# processes; the tests of a file stay together, as they share what was trained for them
WORKERS ?= 2
PARALLEL = -n $(WORKERS) --dist loadfile
COVER = $(if $(COVERAGE),--cov --cov-report=)
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed
SUPPORTED = import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.10 python; do \
	$$p -c '$(SUPPORTED)' 2>/dev/null && { echo $$p; break; }; done)
PIP = "$(BIN)/python" -m pip install --disable-pip-version-check --no-compile

LABEL_VENV ?= .venv-label
LABEL_BIN = $(LABEL_VENV)/bin
LABEL_INSTALLED = $(LABEL_VENV)/.installed
LABEL_PIP = "$(LABEL_BIN)/python" -m pip install --disable-pip-version-check --no-compile

.PHONY: help install install-label test test-label test-slow coverage check demo demo-weights clean

help:
	@sed -n 's/^# //p' Makefile

install: $(INSTALLED)

$(INSTALLED): setup.cfg pyproject.toml constraints/constraints.txt
	@test -x "$(BIN)/python" || test -n "$(PYTHON)" || { \
		echo "monai_rrr needs Python 3.10, 3.11 or 3.12, and none was found: install one, or say make PYTHON=/path/to/python" >&2; exit 1; }
	@test -x "$(BIN)/python" || "$(PYTHON)" -c '$(SUPPORTED)' || { \
		echo "monai_rrr needs Python 3.10, 3.11 or 3.12; $(PYTHON) is `"$(PYTHON)" --version 2>&1`" >&2; exit 1; }
	test -x "$(BIN)/python" || "$(PYTHON)" -m venv "$(VENV)"
	$(PIP) torch==2.13.0
	$(PIP) -c constraints/constraints.txt -e ".[demo,dev,notebooks]"
	touch "$@"

install-label: $(LABEL_INSTALLED)

# Without --no-build-isolation pip builds sam2 in a fresh environment and downloads another torch for it.
$(LABEL_INSTALLED): setup.cfg pyproject.toml constraints/label.txt
	test -x "$(LABEL_BIN)/python" || "$(PYTHON)" -m venv "$(LABEL_VENV)"
	$(LABEL_PIP) torch==2.13.0 setuptools wheel
	$(LABEL_PIP) --no-build-isolation -c constraints/label.txt -e ".[label]" playwright
	touch "$@"

test-label: $(INSTALLED) $(LABEL_INSTALLED)
	MONAI_RRR_LABEL_PYTHON="$(CURDIR)/$(LABEL_BIN)/python" "$(BIN)/python" -m pytest $(PARALLEL) -m "slow or not slow" tests/label \
		"tests/tutorials/test_tutorials.py::test_j1_runs[06_correct_where_it_looks]" --durations=10

test: $(INSTALLED)
	"$(BIN)/python" -m pytest $(PARALLEL) $(COVER)

test-slow: $(INSTALLED)
	"$(BIN)/python" -m pytest $(PARALLEL) -m "slow and not gpu" --ignore tests/label --durations=25

coverage: $(INSTALLED)
	"$(BIN)/coverage" json -q -o coverage.json
	"$(BIN)/python" .ci/coverage_gate.py coverage.json

check: $(INSTALLED)
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .
	"$(BIN)/mypy"

demo: $(INSTALLED)
	"$(BIN)/monai-rrr" demo $(if $(DATA),--data "$(DATA)")

demo-weights: $(INSTALLED)
	"$(BIN)/python" benchmarks/demo_weights.py work/demo_weights

clean:
	rm -rf build dist demo report .pytest_cache .mypy_cache .ruff_cache
