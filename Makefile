# SPDX-License-Identifier: Apache-2.0
# Everything from a fresh clone: `make run` answers a prompt with and without a token tree, `make test` runs the tests.
#
# Variables (make run NAME=value):
#   PYTHON       interpreter for the environment (python3)
#   VENV         folder of the environment (.venv)
#   TORCH        requirement of torch (torch==2.13.0)
#   TORCH_INDEX  address of a further package index for torch, such as the one of CPU builds that torch's own installation
#                page names. Without it and without an NVIDIA GPU, a CPU build (local version +cpu) is looked for where pip
#                looks anyway; if there is none, plain TORCH is installed, which on Linux may be a much larger CUDA build.
#   PYSPEC_BUILD what to compile: auto, cpu, cuda or none (see README.md)

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
CXX ?= g++
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
EXTRA_INDEX := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
PROGRESS := 's|^\(\[[0-9]*/[0-9]*\]\).* -c [^ ]*/\([^/ ]*\) -o .*|\1 \2|p'
SOURCES := setup.py $(shell find csrc -type f -name '*.cpp' -o -type f -name '*.h' -o -type f -name '*.cu' -o -type f -name '*.cuh')
KERNEL_TESTS := $(filter-out %_cpu.py %distribution.py %law.py %_bits.py %plans.py %tuning.py %backends.py,$(wildcard tests/ops/test_*.py)) \
  tests/ops/test_tree_attention_bits.py
# For tests that use one thread each: a process of pytest-xdist for every core, of up to 1 GB.
PARALLEL := -n auto --maxprocesses 8 --dist worksteal
CXX_FILES := $(shell find csrc tests -type f -name '*.cpp' -o -type f -name '*.h' -o -type f -name '*.cu' -o -type f -name '*.cuh')

.PHONY: run test test-distribution test-gpu-emulated test-isa test-neon check format build bench bench-gpu clean
.DELETE_ON_ERROR:

run: $(VENV)/.compiled
	$(VENV)/bin/pyspec demo

test: $(VENV)/.compiled $(VENV)/.dev
	$(PY) -m pytest

# Every verifier: all outcomes enumerated, and 1e8 tokens drawn in more than 200 settings (about 20 minutes)
test-distribution: $(VENV)/.compiled $(VENV)/.dev
	$(PY) -m pytest -m "distribution or not distribution" -k distribution

# Every GPU kernel without a GPU: budgets of registers and shared memory (compiled on all cores), CUDA sources on the emulator in
# tests/cuda_emulator, Triton kernels on ttsem (races, accesses out of bounds) and on a repaired interpreter, a tiny model end to end.
test-gpu-emulated: export OMP_NUM_THREADS := 1
test-gpu-emulated: export PYSPEC_NUM_THREADS := 1
test-gpu-emulated: $(VENV)/.compiled $(VENV)/.dev $(VENV)/.emulators
	$(PY) -m pytest tests/gpu_static
	$(PY) -m pytest $(PARALLEL) tests/cuda_emulated tests/gpu_end_to_end/test_cuda_generation.py
	$(PY) -m pytest $(PARALLEL) tests/triton_emulated tests/gpu_end_to_end/test_triton_generation.py
	TRITON_INTERPRET=1 $(PY) -m pytest $(PARALLEL) tests/triton_emulated

# The tests of the ops with every instruction set of this machine but the best, which `make test` has. A name that there is not is
# refused with those that there are, best first.
test-isa: $(VENV)/.compiled $(VENV)/.dev
	@names=$$(PYSPEC_ISA=? $(PY) -c 'import pyspec' 2>&1 | sed -n 's/.*must be \(.*\), got ?$$/\1/p' | tr '|' ' '); \
	test -n "$$names" || { echo "error: no compiled kernels" >&2; exit 1; }; \
	for isa in $${names#* }; do \
	  [ "$$isa" = "$$names" ] || { echo "PYSPEC_ISA=$$isa"; PYSPEC_ISA=$$isa $(PY) -m pytest $(KERNEL_TESTS) || exit 1; }; \
	done

# CPU kernels for aarch64, cross-compiled and executed by qemu-user: their bits, then the tests of the ops on them
test-neon: $(VENV)/.compiled $(VENV)/.dev
	$(PY) -m pytest -rs tests/neon
	PYTHONPATH=tests/neon $(PY) -m pytest -p on_neon $(KERNEL_TESTS)

check: $(VENV)/.compiled $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/clang-format --dry-run -Werror $(CXX_FILES)
	$(PY) -m pytest tests/test_house.py
	$(PY) tools/readme_table.py --check
	$(PY) tools/readme_commands.py

format: $(VENV)/.dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $(CXX_FILES)

# sdist and wheel in dist/, then the wheel in an empty environment, used from another folder
build: $(VENV)/.dev
	rm -rf dist
	$(PY) -m build --no-isolation
	$(PY) tools/check_wheel.py

# Minutes to an hour: leave the machine alone meanwhile
bench: $(VENV)/.compiled
	for name in tree_attention linear e2e equality; do \
	  $(PY) -m bench $$name --csv docs/results/$$name.csv || exit 1; \
	done
	$(PY) tools/readme_table.py

# On a machine with a GPU: correctness, sanitizers, then time. Without one it says so and exits 3.
bench-gpu: $(VENV)/.compiled $(VENV)/.dev
	$(PY) -m bench gpu --csv docs/results/gpu.csv

clean:
	rm -rf build dist *.egg-info pyspec/*.so $(VENV)/.compiled
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "error: $(PYTHON) must be Python 3.10 or newer" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	  || { echo "error: $(PYTHON) has no venv (Debian, Ubuntu: apt-get install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# Another torch needs other binaries: what was compiled goes.
$(VENV)/.torch: $(VENV)/.created
	@rm -rf build pyspec/*.so
	@if [ -n "$(TORCH_INDEX)" ] || command -v nvidia-smi >/dev/null; then \
	  $(PIP) install $(EXTRA_INDEX) "$(TORCH)"; \
	elif $(PIP) install --quiet "$(TORCH)+cpu" 2>/dev/null; then \
	  echo "installed a CPU build of $(TORCH)"; \
	else \
	  echo "no CPU build of $(TORCH) where pip looks: installing the plain one (TORCH_INDEX=... names another index)"; \
	  $(PIP) install "$(TORCH)"; \
	fi
	@touch $@

# The package itself, editable; extensions are compiled by the next rule, which can go on from where it was.
$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	$(PIP) install --quiet "setuptools>=77" wheel ninja "pybind11>=2.13"
	PYSPEC_BUILD=none $(PIP) install --quiet --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	PYSPEC_BUILD=none $(PIP) install --quiet --no-build-isolation --editable '.[dev]'
	@touch $@

# ttsem asks for Python 3.12 by a habit, not by need: its sources run on 3.11 as they are.
$(VENV)/.emulators: $(VENV)/.dev
	$(PIP) install --quiet "triton==3.8.0"
	$(PIP) install --quiet --ignore-requires-python --no-deps "ttsem==0.1.0"
	@touch $@

$(VENV)/.compiled: $(VENV)/.installed $(SOURCES)
	@if ! command -v $(firstword $(CXX)) >/dev/null; then \
	  echo "no C++ compiler (Debian, Ubuntu: apt-get install g++): going on with the specification, which is slow"; \
	elif ! $(PY) -c 'import pathlib, sysconfig; (pathlib.Path(sysconfig.get_path("include")) / "Python.h").stat()' 2>/dev/null; then \
	  echo "no Python.h (Debian, Ubuntu: apt-get install python3-dev): going on with the specification, which is slow"; \
	else \
	  echo "compiling the kernels (a few minutes the first time) ..."; \
	  mkdir -p build; \
	  $(PY) setup.py --quiet build_ext --inplace 2>&1 | tee build/compile.log | sed -un $(PROGRESS) \
	    || { grep -E 'error|Error' build/compile.log; echo "error: see build/compile.log" >&2; exit 1; }; \
	  touch $@; \
	fi
