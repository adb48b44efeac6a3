# `make demo` and `make test` start from nothing: they make .venv and install what they need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two processes of one thread each: most tests are small nets, which more threads do not speed up.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

.PHONY: demo test check docs clean

demo: $(VENV)/ready
	$(BIN)/mipkd-pipeline run

test: $(VENV)/ready
	$(PYTEST)

check: $(VENV)/ready-docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST)

docs: $(VENV)/ready-docs
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs docs/_build/html

# torch first: installed on its own, it is the CPU build where an index offers one. spandrel
# without torchvision, whose usual build does not load beside it and which no net of SR needs.
$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,tensorrt-rtx]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps spandrel einops
	touch $@

$(VENV)/ready-docs: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) runs build dist docs/_build *.egg-info
