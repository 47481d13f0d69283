# The two commands: `make run` and `make test`. Each makes its own virtual environment and needs only Python 3.11+.
PYTHON ?= python3
SCENARIO ?= agents-split

.PHONY: run test test-slow test-torch lint clean

run: .venv/installed
	.venv/bin/hsim simulate $(SCENARIO)

# The same examples at every run: a law that a random one breaks is a finding, but not one for whoever only sets up.
export HYPOTHESIS_PROFILE = ci

test: .venv-test/installed
	.venv-test/bin/ruff check .
	.venv-test/bin/ruff format --check .
	.venv-test/bin/mypy
	.venv-test/bin/pytest -q -n 2 -m "not slow and not torch"
	@echo "left out: tests marked 'slow' (make test-slow) and 'torch' (make test-torch)"

# All slow tests; `make test-slow SLOW=tests/test_theory.py` runs some.
SLOW ?= tests
test-slow: .venv-test/installed
	.venv-test/bin/pytest -q -n 2 -m slow $(SLOW)

test-torch: .venv-test/installed
	.venv-test/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[live,calibrate,test]'
	.venv-test/bin/pytest -q -m torch

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv-test/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-test
	.venv-test/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf .venv .venv-test build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
