# make demo    the demo, in an environment that is set up on the first call
# make test    all tests, on all cores; make test ARGS="tests/test_package.py -k wheel" some of them
# make test-ptx  all tests of kernels, as Triton 3.6.0 and the pinned one compile them, in the emulator of PTX; takes long
# make check   ruff, mypy, and which folder may import which
# make format  what `make check` asks of the layout, done
# make bench   the benchmarks; ARGS as above
# make clean   removes the environment and all caches
#
# Needs Python 3.10 to 3.14 with pip or venv: make demo PYTHON=python3.12 picks one.

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# mypy follows the link tritonq/kernels, ruff does not.
TYPED := $(wildcard tritonq tests benchmarks examples docs/figures tools)
LINTED := $(TYPED) kernels

.DELETE_ON_ERROR:
.PHONY: demo test test-ptx check format bench clean

demo: $(VENV)/.demo
	$(BIN)/tritonq demo $(ARGS)

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto $(ARGS)

# Another Triton compiles in a process of its own, and needs no more than itself.
test-ptx: $(VENV)/.dev $(VENV)/triton-3.6.0
	set -e; for triton in "" $(CURDIR)/$(VENV)/triton-3.6.0; do \
		export TRITONQ_PTX_TRITON=$$triton TRITONQ_PTX_EVERY=1; \
		$(BIN)/python -m pytest tests/test_ptx_emulator.py tests/test_hopper_*.py $(ARGS); \
		for architecture in 90 80; do \
			TRITONQ_PTX=$$architecture $(BIN)/python -m pytest tests/test_kernels_*.py $(ARGS); \
		done; \
	done

$(VENV)/triton-3.6.0: $(VENV)/.pip
	$(PIP) install -q --no-deps --target $@ triton==3.6.0

check: $(VENV)/.dev
	$(BIN)/ruff check $(LINTED)
	$(BIN)/ruff format --check $(LINTED)
	$(BIN)/mypy $(TYPED)
	$(BIN)/lint-imports
	$(BIN)/python tools/kernel_floors.py

format: $(VENV)/.dev
	$(BIN)/ruff check --fix $(LINTED)
	$(BIN)/ruff format $(LINTED)

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

# One stamp per extra (demo, dev, bench): older than the pins or the project's needs, it is installed again.
$(VENV)/.%: pyproject.toml constraints.txt $(VENV)/.pip
	@echo "Installing tritonq[$*] into $(VENV): the first time this downloads PyTorch."
	@$(PIP) install -c constraints.txt --build-constraint constraints.txt -e ".[$*]"
	@touch $@

# Debian's Python may lack ensurepip while it has pip: that pip then installs the environment's own.
$(VENV)/.pip:
	@command -v $(PYTHON) >/dev/null || { \
		echo "tritonq needs Python 3.10 to 3.14, and '$(PYTHON)' was not found: make $(MAKECMDGOALS) PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 14))' || { \
		echo "tritonq needs Python 3.10 to 3.14, and '$(PYTHON)' is $$($(PYTHON) -V 2>&1): make $(MAKECMDGOALS) PYTHON=/path/to/python" >&2; exit 1; }
	@if $(PYTHON) -c 'import venv, ensurepip' 2>/dev/null; then \
		$(PYTHON) -m venv $(VENV); \
	elif $(PYTHON) -c 'import venv' 2>/dev/null && $(PYTHON) -m pip --version >/dev/null 2>&1; then \
		$(PYTHON) -m venv --without-pip $(VENV) && \
		$(PYTHON) -m pip -qq --disable-pip-version-check --python $(BIN)/python install -c constraints.txt pip; \
	else \
		echo "tritonq needs pip for '$(PYTHON)' to set up $(VENV): on Debian and Ubuntu, sudo apt install python3-venv." >&2; exit 1; \
	fi
	@$(PIP) -qq install --upgrade -c constraints.txt pip
	@touch $@
