# make demo, make test, make lint, make bench: each does all there is to do, from a fresh clone.
PYTHON ?= python3
# What pip is asked for; a CPU build of torch suffices.
TORCH ?= torch==2.13.0
VENV ?= .venv
# The concept that `make demo` moves the photographs' latents to.
TARGET ?= castle
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := pyproject.toml setup.py Makefile $(shell find csrc -type f)

.PHONY: demo test lint bench bench-docs sanitize simt gpu-aot gpu-model clean

# Exit code 1 of the first line is a run with an image below target or failed, which the report shows.
demo: $(STAMP)
	$(BIN)/shade-fast archive tests/photographs --out build/demo --target $(TARGET) --output png --view 256 --steps 30 --overwrite || [ $$? -eq 1 ]
	$(BIN)/shade-fast report build/demo

# So many processes at once, each with whole files; idle threads sleep instead of spinning in another's time.
TEST_PROCESSES ?= 2
test: $(STAMP)
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The CPU module's tests under AddressSanitizer with UndefinedBehaviorSanitizer, then under ThreadSanitizer. Python and
# torch are not instrumented: leaks and races of theirs are not looked at.
SANITIZED := build/sanitize
SANITIZED_TESTS := tests/ops tests/runtime
sanitize: $(STAMP)
	SHADE_FAST_CUDA=0 SHADE_FAST_SANITIZE=address,undefined $(BIN)/python setup.py -q build --build-base $(SANITIZED)/address --build-lib $(SANITIZED)/address/lib
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=$(SANITIZED)/address/lib $(BIN)/pytest $(SANITIZED_TESTS)
	SHADE_FAST_CUDA=0 SHADE_FAST_SANITIZE=thread $(BIN)/python setup.py -q build --build-base $(SANITIZED)/thread --build-lib $(SANITIZED)/thread/lib
	LD_PRELOAD="$$($(CXX) -print-file-name=libtsan.so)" TSAN_OPTIONS="ignore_noninstrumented_modules=1 die_after_fork=0" PYTHONPATH=$(SANITIZED)/thread/lib $(BIN)/pytest $(SANITIZED_TESTS)

# What is proven of the GPU's kernels without one (docs/lab/gpu.md). `make test` runs the first, and parts of the others.
# The CUDA kernels' own sources on the host, thread by thread, and under ThreadSanitizer.
simt: $(STAMP)
	$(BIN)/python -m pytest tests/simt

# Every kernel compiled for every architecture: spills, and figures worse than the committed ones, are errors.
gpu-aot: $(STAMP)
	$(BIN)/python -m benchmarks gpu resources

# Operations, bytes, time and memory of a step, counted from the modules' shapes, beside the committed table.
gpu-model: $(STAMP)
	$(BIN)/python -m benchmarks gpu model

# Well under 40 minutes on 2 cores. `make bench-docs` then writes the results into README.md and docs/.
BENCH_EXTRA := $(VENV)/.bench
bench: $(BENCH_EXTRA)
	$(BIN)/python -m benchmarks run --csv build/bench/times.csv
	$(BIN)/python -m benchmarks memory --backends eager,compile,onnxruntime,native --csv build/bench/memory.csv
	$(BIN)/python -m benchmarks time-to-quality --csv build/bench/quality.csv
	$(BIN)/python -m benchmarks table build/bench/*.csv

bench-docs: $(BENCH_EXTRA)
	$(BIN)/python -m benchmarks table build/bench/*.csv --into README.md docs/performance.md docs/lab/performance.md
	$(BIN)/python -m benchmarks plot build/bench/*.csv --out docs

$(BENCH_EXTRA): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	touch $@

# Torch goes first, so that a range in another package's metadata cannot choose a different build of it;
# lpips is read for its heads alone, and its own dependencies would bring torchvision.
$(STAMP): $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps lpips==0.1.4
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

clean:
	rm -rf build $(VENV) *.egg-info shade_fast/*.so .benchmarks .pytest_cache .mypy_cache .ruff_cache
