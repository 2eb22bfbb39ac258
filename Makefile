# Two commands do all: `make reproduce` measures and judges, `make test` checks.
PYTHON ?= python3
ENV ?= .env
BIN = $(ENV)/bin
QUICK = runs/quick
# A GPU with Python 3.12 gets vLLM 0.23.0 and CUDA; any other machine vLLM's CPU backend.
DEVICE ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)

.PHONY: reproduce test figures lab env bench lint

reproduce: env  ## measure both policies on this machine, run the notebooks, judge the claims
	$(BIN)/repro doctor
	$(BIN)/repro run $(QUICK) --replicates 1 --duration-s 75
	$(BIN)/repro figures --data runs --out runs/figures
	$(BIN)/repro claims $(QUICK)
	$(BIN)/repro page $(QUICK) --out runs/page

test: env lint  ## lint, types, unit tests, notebooks on data/, one run with a real engine
	$(BIN)/python -m pytest

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

figures: env  ## draw every figure again from data/
	$(BIN)/repro figures --data data --out figures

lab: env  ## open the notebooks
	$(BIN)/jupyter lab notebooks

bench: env  ## what the recorder and the prediction cost
	$(BIN)/python -m benchmarks

env: $(ENV)/.installed

$(ENV)/.installed: requirements/$(DEVICE).txt pyproject.toml
	$(PYTHON) -m venv $(ENV)
	$(if $(filter cpu,$(DEVICE)),$(BIN)/pip install -q torch==2.13.0)
	$(BIN)/pip install -q --no-deps -r requirements/$(DEVICE).txt
	$(BIN)/pip install -q --no-deps -e .
	touch $@
