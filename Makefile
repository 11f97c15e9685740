# Two commands: `make demo` trains the laptop study, `make test` runs the test suite. Each sets up .venv first.
PYTHON ?= python3
BIN := .venv/bin
OLDEST := .venv-oldest
LOCKS := $(wildcard requirements/*.lock) pyproject.toml tools/install.py

demo: .venv/demo.installed
	$(BIN)/retain run laptop

# What runs on SLURM waits more than it works, and minds being kept from the processor: the rest, beside it, gives way.
test: .venv/test.installed
	$(MAKE) --no-print-directory -j 2 test-here test-slurm

test-here: .venv/test.installed
	nice $(BIN)/pytest -n 2 --dist loadfile -m "not slurm and not slow"

test-slurm: .venv/test.installed
	$(BIN)/pytest -m "slurm and not slow"

# Real training that is killed or compiled again and again, and variants of what the others test. CI runs these tests too.
test-slow: .venv/test.installed
	$(MAKE) --no-print-directory -j 2 test-slow-here test-slow-slurm

test-slow-here: .venv/test.installed
	nice $(BIN)/pytest -n 2 --dist loadfile -m "slow and not slurm"

test-slow-slurm: .venv/test.installed
	$(BIN)/pytest -m "slow and slurm"

# With the oldest versions of libraries that pyproject.toml allows, in an environment of their own.
test-oldest:
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/pip install --quiet uv
	$(OLDEST)/bin/uv pip compile pyproject.toml --extra demo --extra search --extra test --resolution lowest-direct --quiet \
		--output-file $(OLDEST)/oldest.txt
	$(OLDEST)/bin/pip install --quiet --editable '.[demo,search,test]' --constraint $(OLDEST)/oldest.txt
	nice $(OLDEST)/bin/pytest -n 2 --dist loadfile -m "not slurm and not slow"

docs: .venv/docs.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

drill: .venv/test.installed
	$(BIN)/retain drill laptop posttrain.dropout=0.1 posttrain.replay=0.1 --kills 200

slurm-chaos: .venv/test.installed
	$(BIN)/python -m tests.slurm.chaos

check: .venv/test.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/python tools/typing_path.py
	$(BIN)/mypy

.venv/demo.installed: $(LOCKS)
	$(PYTHON) -m venv .venv
	$(BIN)/python tools/install.py
	touch $@

.venv/test.installed: $(LOCKS)
	$(PYTHON) -m venv .venv
	$(BIN)/python tools/install.py test
	touch .venv/demo.installed $@

.venv/docs.installed: $(LOCKS)
	$(PYTHON) -m venv .venv
	$(BIN)/python tools/install.py docs
	touch .venv/demo.installed $@

watch: .venv/test.installed
	$(BIN)/python -m benchmarks.regressions

clean:
	rm -rf .venv $(OLDEST) .mypy_cache .ruff_cache .pytest_cache .hypothesis

.PHONY: demo test test-here test-slurm test-slow test-slow-here test-slow-slurm test-oldest docs drill slurm-chaos check watch clean
