# The one gate is pytest: lint, types and shell scripts are tests too (tests/test_linters.py).
PY ?= .venv/bin/python

.PHONY: check bench
check:
	$(PY) -m pytest

bench:
	$(PY) -m benchmarks
