# make demo: a real scaling study on this machine.  make test: everything that is tested.  make help: all targets.
#
# TORCH=cpu (default) or TORCH=cuda chooses the PyTorch build; the version is the lock's either way.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
TORCH ?= cpu
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready-$(TORCH)
# Where CPU-only builds of PyTorch are published; ignored where pip has a source of its own for them.
TORCH_INDEX_cpu := --extra-index-url https://download.pytorch.org/whl/cpu
TORCH_INDEX_cuda :=
export PATH := $(CURDIR)/$(BIN):$(PATH)
SNAKEMAKE := $(BIN)/snakemake

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | column -t -s "$$(printf '\t')"

.PHONY: setup
setup: $(STAMP) ## the environment in .venv, from the lock

$(STAMP): requirements.lock pyproject.toml scripts/setup.sh
	@PYTHON="$(PYTHON)" VENV="$(VENV)" TORCH_INDEX="$(TORCH_INDEX_$(TORCH))" bash scripts/setup.sh
	@touch "$@"

# No `setup`, which downloads: what is there is checked.
.PHONY: verify
verify: ## is this machine ready for the study? downloads nothing; ON_NODE=1: a node of the cluster, in a job
	@test -x $(BIN)/dist3dgs || { echo "fail  python  no environment in $(VENV)"; echo "fix: make setup"; exit 1; }
	@$(BIN)/dist3dgs verify $(if $(ON_NODE),--on-node)

.PHONY: demo
demo: setup ## photographs to report on this machine, under 10 minutes; a second time: nothing to do
	@bash scripts/demo.sh

.PHONY: test
test: setup ## all tests, fast ones first
	@bash scripts/test.sh

.PHONY: test-fast
test-fast: setup ## tests in Python alone, without the slow ones: about a minute
	@bash scripts/test.sh fast

.PHONY: check
check: setup ## formatting, lint, types, workflow lint
	@bash scripts/check.sh

.PHONY: journey
journey: setup ## the historic configurations again, in their order, and their story; LOGS=folder adds real jobs (LOGS_LAYOUT=n1g4)
	@bash scripts/journey.sh

.PHONY: workshop
workshop: setup ## a ResNet and two transformers on 1, 2 and 4 ranks of this machine, tables and figures, under 6 minutes
	@$(SNAKEMAKE) --profile profiles/local --configfile config/workshop.yaml -- all
	@echo "workshop: $(CURDIR)/results/workshop/report/report.html"

.PHONY: reference
reference: setup ## tables and figures from the committed reference records; trains nothing
	@$(SNAKEMAKE) --profile profiles/cached --config only_existing=true results=results/reference -- figures
	@echo "reference: $(CURDIR)/results/reference/figures"

.PHONY: bench-readers bench-distributed
bench-readers: setup ## log readers against grep -c on the same 1 GB file
	@$(BIN)/python -m dist3dgs.bench.readers
bench-distributed: setup ## images per second at 1 and 2 ranks, side by side
	@$(BIN)/python -m dist3dgs.bench.distributed

# No `setup`: that is the CPU build, and a machine with a GPU has a Python whose PyTorch fits its driver.
.PHONY: gpu-check gpu-wheels
gpu-check: ## on a machine with an NVIDIA GPU: build, agreement, NCCL, training, steps; again: only what is left; FOX=its photographs, or packed; GSPLAT=checkout COLMAP=scene: gsplat's trainer beside
	@PYTHON="$(PYTHON)" BIN="$(CURDIR)/$(BIN)" FOX="$(FOX)" GSPLAT="$(GSPLAT)" COLMAP="$(COLMAP)" FACTOR="$(FACTOR)" OUT="$(OUT)" OWN="$(OWN)" WHEELS="$(WHEELS)" bash scripts/gpu-check.sh
gpu-wheels: setup ## download what gpu-check needs beside PyTorch, to be carried to a machine without internet; FOR=3.12: the version of its Python (default: the one here)
	@$(BIN)/python -m pip download --disable-pip-version-check --no-deps --only-binary=:all: -r scripts/gpu-wheels.txt -d wheels \
	  $(if $(FOR),--python-version $(FOR) --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --platform any)

.PHONY: bench-render
bench-render: setup ## the CPU renderer against the torch reference, side by side
	@$(BIN)/python -m dist3dgs.bench.render

.PHONY: slurm-up slurm-down
slurm-up: setup ## a real Slurm on this machine, for tests: 3 nodes x 4 GPUs (fake) and a CPU node
	@$(BIN)/python tests/slurm/cluster.py up
slurm-down: setup ## stop it
	@$(BIN)/python tests/slurm/cluster.py down

.PHONY: lock
lock: setup ## resolve the dependencies of pyproject.toml anew
	@bash scripts/lock.sh

.PHONY: clean
clean: ## remove what runs made here (results, data, logs), keep the environment
	rm -rf results/builtin results/tables results/figures results/report results/journey results/workshop
	rm -rf data/builtin data/journey logs .snakemake
