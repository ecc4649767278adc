# Two commands do all the set-up on a fresh machine:
#   make run VIDEO=path     make a venv, install, run the main job (a synthetic clip without VIDEO)
#   make test               make the venvs, lint, check types, run every test
#   make test-interop       open results with the tools of others, in an environment of their own
#   make docs               build the documentation as a site, in site/
# and on a machine that has nothing else to do:
#   make bench              measure every CPU table anew, within 15 minutes on two cores
PYTHON ?= python3
VIDEO ?= synthetic:
OUT ?= annotated.mp4
VENV := .venv
OLDEST := .venv-oldest
INTEROP := .venv-interop
DOCS := .venv-docs

.PHONY: run test lint test-main test-interpreted test-oldest test-furthest test-processors test-interop docs bench clean

run: $(VENV)/.installed
	$(VENV)/bin/stream-rpn "$(VIDEO)" --overwrite -o "{stem}.proposals.jsonl" -o "$(OUT)"

test: lint test-main test-interpreted test-oldest test-furthest

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# Two tests at a time, each with as many threads as it likes: none of them spins while it waits. After
# a worker has crashed the others would wait for its tests for ever, so that ends the run.
SIDE_BY_SIDE := -n 2 --dist loadgroup --max-worker-restart 0
TESTS := test-main test-interpreted test-furthest test-processors test-oldest
$(TESTS): export OMP_WAIT_POLICY = PASSIVE
# Hundreds of processes start: what they import is compiled once, whatever the environment wishes.
$(TESTS): export PYTHONDONTWRITEBYTECODE =

# Those that are marked numeric run below, as two processors. A third of the time these wait for
# senders, signals and processes, hence one more at a time.
test-main: $(VENV)/.installed-dev
	$(VENV)/bin/python -m pytest $(SIDE_BY_SIDE) -n 3 -m "not slow and not numeric"

# Triton decides at import whether it interprets, so these run in processes of their own; torch has
# next to nothing to do in them.
INTERPRETED := TRITON_INTERPRET=1 OMP_NUM_THREADS=1

test-interpreted: $(VENV)/.installed-dev
	$(INTERPRETED) $(VENV)/bin/python -m pytest $(SIDE_BY_SIDE) -m "interpreter and not slow" tests/test_*interpreted.py

# Processors round differently, as they have other instructions and sum up in another order. oneDNN and
# torch use none that are above what is named here, and none that are not there.
NUMERIC := $(VENV)/bin/python -m pytest -m "numeric and not slow" $(shell grep -l mark.numeric tests/test_*.py)
AS_PLAIN := ONEDNN_MAX_CPU_ISA=SSE41 ATEN_CPU_CAPABILITY=default

# The two that differ most.
test-furthest: $(VENV)/.installed-dev
	$(AS_PLAIN) OMP_NUM_THREADS=1 $(NUMERIC) $(SIDE_BY_SIDE)
	OMP_NUM_THREADS=4 $(NUMERIC) $(SIDE_BY_SIDE)

test-processors: $(VENV)/.installed-dev
	set -e; for threads in 1 4; do \
		export OMP_NUM_THREADS=$$threads; \
		env $(AS_PLAIN) $(NUMERIC); \
		env ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 $(NUMERIC); \
		for isa in AVX512_CORE AVX512_CORE_BF16 AVX512_CORE_AMX; do \
			env ONEDNN_MAX_CPU_ISA=$$isa $(NUMERIC); \
		done; \
	done

# The kernels must also compile, and as compiled agree with their references, at the oldest supported
# versions. (Their interpreter is for those who write kernels, and they have the newest one.)
test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/python -m pytest $(SIDE_BY_SIDE) tests/test_kernels_compile.py tests/test_propose.py tests/test_nms.py \
		tests/test_ptx_faults.py tests/test_ptx_kernels.py tests/test_ptx_work.py

# Results are read without torch, and by heavy tools that need versions of their own.
test-interop: $(INTEROP)/.installed
	$(INTEROP)/bin/python -m pytest --confcutdir=tests/interop tests/interop

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(VENV)/bin/python -m pip install --quiet --editable ".[dev]"
	touch $@

# numpy 2.4 breaks Triton 3.6's interpreter ("only 0-dimensional arrays can be converted").
$(OLDEST)/.installed: pyproject.toml Makefile
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet "torch==2.11.*" "torchvision==0.26.*" "triton==3.6.*" \
		"numpy<2.4" "av>=18.1,<19" orjson rich safetensors pytest pytest-xdist hypothesis
	touch $@

$(INTEROP)/.installed: Makefile
	$(PYTHON) -m venv $(INTEROP)
	$(INTEROP)/bin/python -m pip install --quiet pytest "av>=18.1,<19" "numpy>=2" pyarrow pandas polars duckdb \
		lancedb pycocotools supervision datumaro label-studio-sdk fiftyone
	touch $@

# Every link is checked, and what cannot be resolved fails.
docs: $(DOCS)/.installed
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/python -m mkdocs build --strict

$(DOCS)/.installed: docs/requirements.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --requirement docs/requirements.txt
	touch $@

# Others that are not installed are skipped by name: pip install opencv-python-headless torchcodec
# ultralytics in the environment first to have them beside.
BENCH := $(VENV)/bin/python -m bench
bench: $(VENV)/.installed-dev
	$(BENCH).kernels --json bench/results/kernels_cpu.json
	$(BENCH).scaling --json bench/results/scaling_cpu.json
	$(BENCH).pipeline --json bench/results/pipeline_cpu.json
	$(BENCH).scripts --json bench/results/scripts_cpu.json
	$(BENCH).readme

clean:
	rm -rf $(VENV) $(OLDEST) $(INTEROP) $(DOCS) site build dist *.egg-info
