# `make demo` and `make test` start from nothing: they make .venv and install what they need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two processes of one thread each: most tests are small nets, which more threads do not speed up.
# A file's tests stay together, and so do files that share a run (tests/conftest.py).
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test check arm64-check docs lock clean

demo: $(VENV)/demo
	$(BIN)/mipkd-pipeline run

test: $(VENV)/ready
	$(PYTEST)

check: $(VENV)/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST)

# On an emulated ARM64 machine: docs/arm64.md says what it needs and what was seen.
arm64-check: $(VENV)/ready
	$(BIN)/python -m benchmarks.arm64

docs: $(VENV)/ready
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs docs/_build/html

# Everything by version and hash but torch: which build of it is right is the index's to say (CPU
# where one is offered), so there is no one hash. Nothing is resolved here: the lists are complete.
define install
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes --requirement $<
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@
endef

# What the program needs to run on `cpu` and `openvino`, and no tools.
$(VENV)/demo: requirements/runtime.txt pyproject.toml constraints.txt
	$(install)

$(VENV)/ready: requirements/dev.txt pyproject.toml constraints.txt
	$(install)

# The lists with hashes, anew from the versions in constraints.txt; needs uv (pip install uv).
LOCK := uv pip compile --quiet --universal --python-version 3.11.5 --no-python-downloads \
	--generate-hashes --no-annotate --constraint constraints.txt --no-emit-package torch \
	--custom-compile-command 'make lock'
lock:
	$(LOCK) pyproject.toml --extra openvino --output-file requirements/runtime.txt
	$(LOCK) pyproject.toml --extra dev --extra tensorrt-rtx --extra foreign --extra perceptual \
		--extra docs --output-file requirements/dev.txt
	$(LOCK) docs/ci/requirements.in --output-file docs/ci/requirements.txt

clean:
	rm -rf $(VENV) runs build dist docs/_build *.egg-info
