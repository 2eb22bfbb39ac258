# Two commands do all: `make reproduce` measures and judges, `make test` checks.
PYTHON ?= python3
ENV ?= .env
BIN = $(ENV)/bin
QUICK = runs/quick
# A GPU gets vLLM 0.23.0 with CUDA, any other machine vLLM's CPU backend.
DEVICE ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
LOCK = requirements/$(DEVICE).txt
HASHES = requirements/$(DEVICE).hashes.txt

.PHONY: help reproduce test test-all lint figures rendered lab bench soak compat env

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

# One engine that switches pays for one start. A period has to be long enough for a full collection.
reproduce: env  ## measure both policies here, run the notebooks, judge the claims (5 minutes on two cores)
	$(BIN)/repro doctor
	$(BIN)/repro run $(QUICK) --policies alternate --replicates 1 --switch-s 48 --duration-s 192
	$(BIN)/repro page $(QUICK) --out runs/page

test: env lint  ## lint, types, unit tests, notebooks, the shared real engines
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not slow"

test-all: test  ## that, then faults, soak, workflow and deployments with real engines
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

figures: $(ENV)/.light  ## draw every figure again from data/; needs no vLLM
	$(BIN)/repro figures --data data --out figures

rendered: $(ENV)/.light  ## run the notebooks on data/, as Markdown to browse; needs no vLLM
	$(BIN)/repro rendered

lab: $(ENV)/.light  ## open copies of the notebooks in JupyterLab; runs/lab keeps your edits
	mkdir -p runs/lab
	cp -n notebooks/*.ipynb runs/lab/
	$(BIN)/jupyter lab runs/lab

bench: $(ENV)/.light  ## what the recorder and the prediction cost
	$(BIN)/python -m benchmarks

soak: env  ## an hour under load with recorder and freeze: does anything grow or drift?
	$(BIN)/python -m benchmarks.soak runs/soak

compat: env  ## one frozen and one unfrozen engine of each CPU release, checked (5 minutes per release)
	$(BIN)/python -m benchmarks.compat

env: $(ENV)/.full  ## install everything, vLLM included

# Analysis alone: what figures and notebooks on recorded data need.
$(ENV)/.light: $(LOCK) pyproject.toml
	$(PYTHON) -m venv $(ENV)
	$(BIN)/pip install -q --upgrade pip
	$(BIN)/pip install -q -c $(LOCK) -e '.[notebooks]'
	touch $@

# The lock is complete, so nothing is resolved. torch goes first and with what it needs: which
# build of it this machine gets is pip's configuration to say (README, "Install").
$(ENV)/.full: $(ENV)/.light
	$(if $(filter cpu,$(DEVICE)),$(BIN)/pip install -q -c $(LOCK) torch==2.13.0)
	$(BIN)/pip install -q --no-deps --require-hashes -r $(HASHES)
	touch $@
