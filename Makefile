# The one gate: CI runs the same through install/test.sh.
PY ?= .venv/bin/python

.PHONY: check lint types test
check: lint types test

lint:
	$(PY) -m ruff check src tests benchmarks
	$(PY) -m ruff format --check src tests benchmarks

types:
	$(PY) -m mypy

test:
	$(PY) -m pytest
