# Everything starts from python3, make and git alone: `make demo` or `make test`.
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM := false

.PHONY: help venv demo test lint docs soak aot benchmarks clean

help:           ## list the targets
	@grep -hE '^[a-z]+: *.*##' Makefile | sed -E 's/: *[^#]*##/\t/' | expand -t 14

venv: .venv/ready  ## make .venv with everything for development

# --compile-bytecode: else the first start of each verb compiles what it imports, for longer than it works
.venv/ready: pyproject.toml constraints.txt
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear .venv || \
	  { echo "$(PYTHON) cannot make environments: install your system's package python3-venv."; exit 1; }
	test -x $(BIN)/uv || $(BIN)/python -m pip install -q --disable-pip-version-check uv
	$(BIN)/uv pip install -q --compile-bytecode --python $(BIN)/python -c constraints.txt -e . --group dev
	$(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt --no-deps --target .venv/eight-bit bitsandbytes
	touch $@

demo: .venv/ready  ## distil the embedded teacher into students of four steps and of one: runs/demo/
	$(BIN)/nitrodistill demo

test: .venv/ready  ## the test suite, a short demo included
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: .venv/ready  ## ruff, pyright, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pyright --verifytypes nitrodistill --ignoreexternal
	$(BIN)/lint-imports

docs: .venv/ready  ## the site, warnings as errors: build/site/index.html
	$(BIN)/python -m sphinx -q -W --keep-going -d build/doctrees docs build/site
	@echo "build/site/index.html"

soak: .venv/ready  ## long faults and fuzz, not in CI
	$(BIN)/python -m pytest -m soak

aot: .venv/ready  ## compile every kernel for every architecture, with the resource gates
	$(BIN)/python -m tools.kernels.aot --compare tests/tools/kernels/aot_figures.json

benchmarks: .venv/ready  ## the parts of LADD on the embedded teacher (two hours)
	$(BIN)/python -m benchmarks.demo_quality --processes 2

clean:          ## remove the environment and the runs
	rm -rf .venv runs
