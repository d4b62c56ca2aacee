# make run        create .venv, install and run `apex4-probe run` (ARGS="--model qwen2.5-7b --full" passes arguments)
# make test       create .venv, install and run every test that needs no GPU
# make test-fast  the same without the tests marked slow
# make gpu-test   the tests that need a GPU
# make gpu-check  every kernel under compute-sanitizer, and its shared-memory bank conflicts by Nsight Compute
# make gpu-bench  measure this GPU into profiles/measured/<device>/, as the repository ships it
# make sass       count every kernel's machine code into profiles/sass/, which predictions and plans use; needs no GPU
# make examples   predict every known device and compare them with what was measured, into reports/examples/
# make lint       ruff, and mypy --strict over all packages
# make clean      remove .venv and everything generated
#
# PYTHON=… picks the interpreter (3.10 or newer). Package indexes and proxies come from pip's own configuration.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

TORCH := torch==2.13.0
BIN := .venv/bin
COMMA := ,
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
ARGS ?=
PYTEST_ARGS ?=

# "cuda12" or "cuda13", what the driver runs; empty without a GPU. CUDA=cuda12 overrides.
CUDA ?= $(shell for p in $(PYTHON) python3; do command -v "$$p" >/dev/null && "$$p" apex4_probe/cuda_extra.py && break; done 2>/dev/null)
# The compile tests need CuPy and NVRTC without a GPU too: the newest, which know every architecture.
TEST_CUDA = $(or $(CUDA),cuda13)

RUN_STAMP = .venv/.installed-run-$(or $(CUDA),cpu)
TEST_STAMP = .venv/.installed-test-$(TEST_CUDA)

.PHONY: help run test test-fast gpu-test gpu-check gpu-bench sass examples lint clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

# Everything that installs writes to stderr, so that the first line on stdout is the tool's own.
.venv/bin/python:
	@python=""; for p in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11 python3.10; do \
	  if command -v "$$p" >/dev/null && "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then python="$$p"; break; fi; \
	done; \
	if [ -z "$$python" ]; then echo "apex4-probe needs Python 3.10 or newer; name one with: make PYTHON=/path/to/python3 …" >&2; exit 2; fi; \
	if ! "$$python" -c 'import venv, ensurepip' 2>/dev/null; then \
	  version=$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	  echo "$$python has no venv module; on Debian and Ubuntu: apt install python$$version-venv" >&2; exit 2; fi; \
	echo "creating .venv with $$("$$python" --version)" >&2; \
	rm -rf .venv; "$$python" -m venv .venv >&2

# With torch kernels are timed, too. The one on PyPI is built for CUDA 13; for CUDA 12 PyTorch has an index of its own.
RUN_EXTRAS = $(CUDA)$(if $(filter cuda13,$(CUDA)),$(COMMA)torch)
$(RUN_STAMP): pyproject.toml | .venv/bin/python
	@echo "installing apex4-probe $(if $(CUDA),with $(CUDA),without CUDA packages: no GPU here)" >&2
	@$(PIP) install --quiet --editable "$(if $(CUDA),.[$(RUN_EXTRAS)],.)" >&2
	@touch $@

# torch first and pinned, so that nothing which depends on it resolves to another version.
$(TEST_STAMP): pyproject.toml | .venv/bin/python
	@echo "installing $(TORCH) and apex4-probe[$(TEST_CUDA),test]" >&2
	@$(PIP) install --quiet "$(TORCH)" >&2
	@$(PIP) install --quiet "$(TORCH)" --editable ".[$(TEST_CUDA),test]" >&2
	@touch $@ $(if $(CUDA),$(RUN_STAMP))

run: $(RUN_STAMP)
	@$(BIN)/apex4-probe run $(ARGS)

# The browser tests need Debian's Chromium; where it may not be installed they skip and say so.
CHROMIUM := $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)

.PHONY: chromium
chromium:
	@if [ -z "$(CHROMIUM)" ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing chromium for the browser tests" >&2; \
	  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } >/dev/null \
	    || echo "chromium could not be installed" >&2; \
	fi

test: $(TEST_STAMP) chromium
	$(BIN)/python -m pytest -m "not gpu" -n auto $(PYTEST_ARGS)

test-fast: $(TEST_STAMP)
	$(BIN)/python -m pytest -m "not gpu and not slow" -n auto $(PYTEST_ARGS)

gpu-test: $(TEST_STAMP)
	$(BIN)/python -m pytest -m gpu $(PYTEST_ARGS)

# Wavefronts beyond those that a conflict-free access needs, and all wavefronts: less than 2 % is the aim.
CONFLICTS := l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum,l1tex__data_pipe_lsu_wavefronts_mem_shared.sum
# racecheck comes last: it fails by the rings that warps share, whose order it does not count (kernels/NOTES.md).
gpu-check: $(TEST_STAMP)
	compute-sanitizer --tool memcheck --error-exitcode 1 $(BIN)/python tests/gpu/reduced_matrix.py | tail -3
	ncu --csv --metrics $(CONFLICTS) --kernel-name gemm $(BIN)/python tests/gpu/reduced_matrix.py --real | \
	  $(BIN)/python tests/gpu/bank_conflicts.py
	compute-sanitizer --tool racecheck --error-exitcode 1 $(BIN)/python tests/gpu/reduced_matrix.py | tail -3

# The layers of Llama-3-8B and 70B. On an H100 seven minutes.
BENCH := --shapes 6144x4096,4096x4096,28672x4096,4096x14336,10240x8192,57344x8192,8192x28672 \
  --variants 'w4a8.small.channel,w4a8.small.g128i,w4a8.wgmma.*' --tiles best --check
gpu-bench: $(RUN_STAMP)
	$(BIN)/apex4-probe run --require-gpu --full --out "profiles/measured/{device}" $(ARGS)
	$(BIN)/apex4-probe bench $(BENCH) --m 1,4,16,32,64,128,256,512 --out "profiles/measured/{device}/few-tokens"
	$(BIN)/apex4-probe bench $(BENCH) --m 1024,2048,4096,8192 --method both --out "profiles/measured/{device}/many-tokens"

# After every change of a kernel, its tiles or the pinned NVRTC; a compile test says so where it was forgotten.
SASS_ARCHITECTURES := sm_80,sm_86,sm_87,sm_89
sass: $(TEST_STAMP)
	$(BIN)/apex4-probe bench --sass --arch $(SASS_ARCHITECTURES) --quiet --out profiles/sass

# A profile whose figures did not change is left as it is, so this changes nothing unless the figures do. LC_ALL: the
# order of the files, and with it of the rows, must not depend on the language of the machine.
examples: $(RUN_STAMP)
	$(BIN)/apex4-probe predict --all --quiet --out reports/examples/predicted
	LC_ALL=C; $(BIN)/apex4-probe compare profiles/measured/* reports/examples/predicted/*.yaml --quiet --out reports/examples/compare

lint: $(TEST_STAMP)
	$(BIN)/ruff check .
	$(BIN)/python tests/typecheck.py

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache *.egg-info
