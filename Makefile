# Every target runs in a virtual environment, which is created on first use. A fresh machine needs only Python 3.11+,
# make and a package registry. Set PYTHON to choose the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo demo-picogpt test fuzz kill architectures where test-triton gpu-check docs bench bench-full study lint format clean

demo: $(VENV)/demo.installed  ## compress a language model from the package index, and compare it with the dense one
	$(BIN)/python -m demo

demo-picogpt: $(VENV)/demo.installed  ## compare a trained character transformer, PicoGPT, dense and compressed
	$(BIN)/python -m studies.picogpt demo

test: lint  ## run all checks: style, types, tests
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadscope

fuzz: $(VENV)/dev.installed  ## read 100,000 damaged and hostile files (12 minutes); COUNT and SEED choose others, and it resumes
	PYTHONPATH=tests $(BIN)/python -m fuzz --count $(COUNT) --seed $(SEED) --out $(FUZZ_RESULT)
	$(BIN)/python tests/tested.py

COUNT := 100000
SEED := 0
FUZZ_RESULT := docs/results/fuzz.json

kill: $(VENV)/dev.installed  ## kill processes at KILLS operations on files (half an hour), SEED chooses which
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -m kill.suite --number $(KILLS) --seed $(SEED) --out $(KILL_RESULT)
	$(BIN)/python tests/tested.py

KILLS := 200
KILL_RESULT := docs/results/kills.json

architectures: $(VENV)/dev.installed  ## compress every architecture of transformers, tiny (25 minutes; resumes), and write the page
	PYTHONPATH=tests OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m architectures

where: $(VENV)/dev.installed  ## run compressed models in tools of others, as far as they are installed, and write the page
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -m pytest -p where.recording --where docs/results/where.json $(WHERE)
	$(BIN)/python tests/where/page.py

WHERE := tests

test-triton: $(VENV)/triton.installed  ## test the kernels in Triton on a CPU: in its interpreter, and compiled for a GPU
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/execution/test_triton.py
	$(BIN)/python -m pytest tests/execution/test_gpu_programs.py

gpu-check: $(VENV)/dev.installed  ## test and time the kernels in Triton on an NVIDIA GPU (under 8 minutes); writes docs/results/gpu.json
	$(BIN)/python benchmarks/gpu_check.py

docs: $(VENV)/docs.installed  ## build the documentation site into docs/_build; every warning is an error
	$(BIN)/python -m sphinx --nitpicky --fail-on-warning --keep-going --quiet --builder html docs docs/_build
	@echo "open docs/_build/index.html"

bench bench-full: $(VENV)/bench.installed  ## time chains against dense, low rank and every peer; finished cells are kept
	$(MEASURE)
	$(BIN)/python benchmarks/disturbed.py $(GRID)
	$(MEASURE)
	$(BIN)/python benchmarks/render.py $(GRID)

bench: GRID := small
bench-full: GRID := full
MEASURE = MPOCHAIN_BENCH_RECORD=1 MPOCHAIN_BENCH_GRID=$(GRID) $(BIN)/python -W ignore -m pytest benchmarks -W ignore --benchmark-enable \
	--benchmark-only --benchmark-columns=median,iqr,rounds --benchmark-group-by=group

study: $(VENV)/demo.installed  ## run the PicoGPT study (hours; resumes after an interruption) and write docs/results/study.md
	$(BIN)/python -m studies.picogpt study --preset best --preset paper --out studies/picogpt/results --page docs/results/study.md

lint: $(VENV)/dev.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/dev.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "mpochain needs Python 3.11 or newer; set PYTHON=/path/to/it" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# The stamp files let a second run start at once, and trigger a new installation when a pin changes.
$(VENV)/demo.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[hf,plot]'
	@touch $@

$(VENV)/dev.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/demo.installed

$(VENV)/triton.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[dev,triton]'
	@touch $@ $(VENV)/dev.installed $(VENV)/demo.installed

$(VENV)/docs.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[docs]'
	@touch $@

# torch-mpo requires a newer Python and dependencies that its layers do not need, hence the separate install.
$(VENV)/bench.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[bench,dev]'
	$(PIP) --no-deps --ignore-requires-python torch-mpo==0.2.3
	@touch $@ $(VENV)/dev.installed $(VENV)/demo.installed

clean:
	rm -rf $(VENV) docs/_build .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
