# `make demo` and `make test` are all that a new machine needs; each sets up what is missing.
.DEFAULT_GOAL := help
SHELL := /bin/bash

# For the shell: what may hold anything that a folder's name may, as one word.
quoted = '$(subst ','\'',$1)'
# A path that is given, whose home folder not every shell has put in.
path = $(call quoted,$(if $(filter ~/%,$1),$(patsubst ~/%,$(HOME)/%,$1),$1))

PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3.11)
# One word, unless it is a command of several, such as `env python3.11`.
RUN_PYTHON := $(if $(shell command -v $(call path,$(PYTHON))),$(call path,$(PYTHON)),$(PYTHON))
# EXTRA=gpu is an environment of its own: TensorRT, and ONNX Runtime for CUDA where the other has the one for the CPU.
VENV := .venv$(if $(filter gpu,$(EXTRA)),-gpu)
BIN := $(VENV)/bin
GPU_PINS := requirements/all.txt
# What PyTorch is measured with; the one in here is for the CPU.
TORCH_PYTHON ?= $(BIN)/python
ifeq ($(EXTRA),gpu)
# CUDA's libraries, which ONNX Runtime finds nowhere else; as in the image, for TensorRT and the packages of NVIDIA's leave
# theirs in folders of their own. Not for torch, which brings those that it was built for.
CUDA_LIBRARIES := $(abspath $(VENV))/lib/cuda
LIBRARIES_BEFORE := $(LD_LIBRARY_PATH)
export LD_LIBRARY_PATH := $(CUDA_LIBRARIES)$(addprefix :,$(LD_LIBRARY_PATH))
TORCH_STARTER := $(if $(filter none,$(TORCH_PYTHON)),,torch-python)
endif
TORCH_RUNS = $(if $(TORCH_STARTER),$(VENV)/$(TORCH_STARTER),$(call path,$(TORCH_PYTHON)))

# Where packages are found is what uv is told, by its variables or a uv.toml; or else what pip is told, by its variables or
# a pip.conf, which uv does not read. Where neither names a place it is PyPI; but torch comes from PyTorch's own index for
# the CPU: PyPI's is for CUDA, takes gigabytes, and wants another cuda-python than the image has.
CONFIG := $(or $(XDG_CONFIG_HOME),$(HOME)/.config)
# Words for the shell; of pip's, the files that are there.
UV_FILES := $(if $(UV_CONFIG_FILE),$(call path,$(UV_CONFIG_FILE)),uv.toml $(call path,$(CONFIG)/uv/uv.toml) /etc/uv/uv.toml)
PIP_FILES := $(if $(filter /dev/null,$(PIP_CONFIG_FILE)),,$(shell for file in /etc/pip.conf /etc/xdg/pip/pip.conf \
	$(call path,$(HOME)/.pip/pip.conf) $(call path,$(CONFIG)/pip/pip.conf) $(call path,$(PIP_CONFIG_FILE)); do \
	[ ! -e "$$file" ] || printf '%q ' "$$file"; done))
UV_PLACES := $(UV_FIND_LINKS)$(UV_DEFAULT_INDEX)$(UV_INDEX)$(UV_INDEX_URL)$(UV_EXTRA_INDEX_URL)$(if $(UV_NO_CONFIG),,$(shell \
	grep -lsE '^ *([[][[](pip[.])?index]]|(index|index-url|extra-index-url|find-links) *=)' $(UV_FILES)))
# As words NAME=PLACE, of [global] and [install].
PIP_SAYS := $(if $(PIP_FILES),$(shell $(RUN_PYTHON) -c 'import configparser, sys; \
	found = configparser.RawConfigParser(strict=False); found.read(sys.argv[1:]); \
	print(*(key.replace("_", "-") + "=" + place for name in ("global", "install") if name in found \
	for key, value in found[name].items() for place in value.split()))' $(PIP_FILES)))
COMMA := ,
CLOSE := )
pip_says = $(patsubst $1=%,%,$(filter $1=%,$(PIP_SAYS)))
ifeq ($(UV_PLACES),)
PIP_PLACES := $(or $(PIP_FIND_LINKS),$(call pip_says,find-links))
PIP_INDEX := $(or $(PIP_INDEX_URL),$(lastword $(call pip_says,index-url)))
PIP_INDEXES := $(or $(PIP_EXTRA_INDEX_URL),$(call pip_says,extra-index-url))
# No index at all, which uv knows as an option alone: it has no variable for that. The words are those that pip takes.
NO_INDEX := $(if $(filter 1 y yes t true on,$(shell echo '$(or $(PIP_NO_INDEX),$(lastword $(call pip_says,no-index)))' | \
	tr A-Z a-z)),--no-index)
# To a make below this one, too, which finds uv's variables set and asks pip for nothing.
export NO_INDEX
ifneq ($(PIP_PLACES),)
export UV_FIND_LINKS := $(subst $() ,$(COMMA),$(strip $(PIP_PLACES)))
endif
# To pip all indexes are alike. uv takes a version from the first that has it, be it only for other machines; and its
# default is the last. So what is first to a reader is first to uv: pip's main index, whose address pip itself knows.
ifneq ($(PIP_INDEXES),)
PIP_INDEX := $(or $(PIP_INDEX),$(shell $(RUN_PYTHON) -m pip help install | tr -s '\n ' ' ' | grep -oE 'default http[^$(CLOSE)]+' | cut -c 9-))
PIP_ALL := $(PIP_INDEX) $(PIP_INDEXES)
export UV_DEFAULT_INDEX := $(lastword $(PIP_ALL))
export UV_INDEX := $(wordlist 2,$(words $(PIP_ALL)),_ $(PIP_ALL))
export UV_INDEX_STRATEGY ?= unsafe-best-match
else ifneq ($(PIP_INDEX),)
export UV_DEFAULT_INDEX := $(PIP_INDEX)
endif
ifeq ($(PIP_PLACES)$(PIP_INDEX)$(PIP_INDEXES)$(NO_INDEX),)
export UV_TORCH_BACKEND ?= cpu
endif
endif
# Test and demo models are local; nothing here may wait for a model hub.
export HF_HUB_OFFLINE ?= 1

$(VENV)/uv.stamp:
	@echo "== $(VENV): $(PYTHON), uv"
	@command -v $(RUN_PYTHON) >/dev/null || { echo 'found no Python 3.11; name one: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)' >&2; exit 1; }
	@$(RUN_PYTHON) -c 'import sys; v = sys.version_info[:2]; v == (3, 11) or sys.exit(f"needs Python 3.11, found {v[0]}.{v[1]}; name one: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)")'
	@$(RUN_PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@touch $@

$(VENV)/dev.stamp: $(VENV)/uv.stamp requirements/dev.txt
	@echo "== $(VENV): packages of requirements/dev.txt (the first time this takes minutes)"
	@$(BIN)/uv pip install $(NO_INDEX) --python $(BIN)/python -r requirements/dev.txt
	@touch $@

# PyCUDA comes as source, and the machine may have a driver and no CUDA toolkit.
WITH_CUDA_HEADERS := tests/cuda_driver/with_cuda_headers.sh

$(VENV)/gpu.stamp: $(VENV)/dev.stamp $(GPU_PINS) requirements/build.txt $(WITH_CUDA_HEADERS)
	@echo "== $(VENV): packages of $(GPU_PINS)"
	@# Both: their files are the same, and the pins of dev.txt have put the one for the CPU over that for CUDA.
	@$(BIN)/uv pip uninstall --quiet --python $(BIN)/python onnxruntime onnxruntime-gpu
	@$(WITH_CUDA_HEADERS) $(BIN)/python $(BIN)/uv pip install $(NO_INDEX) --python $(BIN)/python \
		--build-constraints requirements/build.txt -r $(GPU_PINS)
	@# By names relative to here, for the path to here may hold what ends a word.
	@rm -rf $(VENV)/lib/cuda && mkdir $(VENV)/lib/cuda
	@find $(VENV)/lib/python3.11/site-packages \( -path '*/nvidia/*/lib/*.so*' -o -path '*/tensorrt_libs/*.so*' \) \
		-exec ln -s -r -t $(VENV)/lib/cuda {} +
	@touch $@

.PHONY: help setup demo test lint types imports unit test-gpu gpu latency image test-image peers bench-quick uv-places lock all-pins clean

help: ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

setup: $(VENV)/$(or $(filter gpu,$(EXTRA)),dev).stamp ## the development environment in .venv (EXTRA=gpu: in .venv-gpu)

demo: setup ## export all-MiniLM-L6-v2, serve it against an emulated endpoint, send it jobs (EXTRA=gpu: with TensorRT)
	@$(BIN)/python -m benchmarks demo $(if $(filter gpu,$(EXTRA)),--tensorrt)

test: lint types imports unit ## all checks that need no GPU

lint: setup
	@echo "== ruff"
	@$(BIN)/ruff format --check . && $(BIN)/ruff check .

types: setup
	@echo "== mypy --strict"
	@$(BIN)/mypy

imports: setup
	@echo "== import contracts"
	@$(BIN)/lint-imports

unit: setup
	@echo "== pytest, a process for each CPU and one more; files in their order, so that the short ones come last"
	@$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

ifeq ($(EXTRA),gpu)
test-gpu: setup
	@$(BIN)/python -m pytest -m gpu tests/gpu

gpu: setup $(TORCH_STARTER)
	@$(BIN)/python -m benchmarks gpu --out $(call path,$(or $(OUT),build/gpu-results)) --torch-python $(TORCH_RUNS)

.PHONY: torch-python
torch-python: setup
	@printf '#!/bin/sh\nLD_LIBRARY_PATH=%q exec %q "$$@"\n' $(call quoted,$(LIBRARIES_BEFORE)) $(call path,$(TORCH_PYTHON)) \
		> $(VENV)/torch-python && chmod +x $(VENV)/torch-python
else
test-gpu: ## the tests that need a GPU, in .venv-gpu
	@$(MAKE) --no-print-directory EXTRA=gpu $@

gpu: ## all that a GPU machine can check and measure, into OUT=build/gpu-results
	@$(MAKE) --no-print-directory EXTRA=gpu $@
endif

latency: setup $(TORCH_STARTER) ## BERT encoders at real sizes: engine, copies, handler(job), beside torch
	@$(BIN)/python -m benchmarks latency --torch-python $(TORCH_RUNS)

IMAGE ?= worker-tensorrt:latest
DOCKER ?= docker
# Of bundle/: the build arguments that become the image's labels. Without bundle/ the build exports MODEL. A name may hold
# anything that a folder's may, so that it is quoted for the shell, twice.
BUNDLE_ARGS = $(shell $(RUN_PYTHON) -c 'import json, os, shlex, sys; \
	at = "bundle/manifest.json"; model = sys.argv[1]; m = json.load(open(at)) if os.path.exists(at) else {}; \
	named = {"MODEL": model or m["model"], "REVISION": m["revision"] or "", \
	"BUNDLE_SHA256": open("bundle/manifest.sha256").read()[:64]} if m else {"MODEL": model} if model else {}; \
	print(*("--build-arg " + shlex.quote(name + "=" + value) for name, value in named.items()))' $(call quoted,$(MODEL)))

image: ## the image around bundle/, or around an export of MODEL=...; IMAGE=... ENGINE_SET=... WITH_BUILDER=1 BUILD_OPTIONS=...
	$(DOCKER) build --tag $(IMAGE) --platform linux/amd64 $(foreach name,ENGINE_SET WITH_BUILDER,$(if $($(name)),--build-arg $(name)=$($(name)))) \
		$(BUNDLE_ARGS) $(if $(filter 0,$(.SHELLSTATUS)),,$(error $(PYTHON) did not tell what the image is of; name a Python with PYTHON=... or see bundle/manifest.json)) \
		$(BUILD_OPTIONS) .

test-image: setup ## build the image and run it (root, buildah and debootstrap; no docker)
	@$(BIN)/python -m pytest -m image -rs tests/image tests/unit/test_dockerfile.py

build/pycuda: tests/cuda_driver/install_pycuda.sh requirements/tensorrt.txt requirements/build.txt | setup
	@echo "== build/pycuda: PyCUDA, compiled"
	@$< $(BIN)/python && touch $@

.PHONY: test-driver test-slow test-zoo test-large
test-driver: build/pycuda ## real PyCUDA and cuda-python on a CUDA driver made of software, no GPU (C and C++ compilers)
	@$(BIN)/python -m pytest -m driver -rs tests/contract/test_cuda_driver.py

test-slow: setup ## exports interrupted at every stage, builds on pods, and whether a regression is noticed; minutes
	@$(BIN)/python -m pytest -n auto --dist loadfile -m slow
	@echo "== what measures, with nothing beside it"
	@$(BIN)/python -m pytest -m alone

test-zoo: setup ## every architecture of docs/models.md exported and compared, every task's plan built; minutes
	@$(BIN)/python -m pytest -m zoo -rs --durations=10 tests/e2e

test-large: setup ## a model of 1.3 GB exported within four times its weights, and booted; minutes
	@$(BIN)/python -m pytest -m large -rs tests/e2e

peers: setup ## our worker beside what users would run instead (docs/peers.md; made in build/peers), in one run
	@$(BIN)/python -m benchmarks peers --with all

bench-quick: setup ## a few minutes that tell a regression: counts, and ratios to the floor; BASELINE=earlier.json OUT=build/quick.json
	@$(BIN)/python -m benchmarks quick --json $(call path,$(or $(OUT),build/quick.json)) $(if $(BASELINE),--baseline $(call path,$(BASELINE)))

# For benchmarks/peer_env.py, which calls uv itself: its option, or an empty line, then its variables.
uv-places:
	@echo '$(NO_INDEX)'; env | grep '^UV_' || true

UPGRADE ?= --upgrade
TORCH_PINS := $(addprefix requirements/,export.txt dev.txt peers-infinity.txt peers-infinity-server.txt peers-litserve.txt)
PINS := $(BIN)/uv pip compile $(NO_INDEX) --quiet $(UPGRADE) --python-version 3.11 --no-header --annotation-style line

# All of them, or none: what fails half way, or is interrupted, gets the pins of before back.
lock: $(VENV)/uv.stamp ## resolve the pins in requirements/ anew; UPGRADE= keeps those that still fit
	@before=$$(mktemp -d) && cp -p requirements/*.txt "$$before" \
		&& trap '[ -e "$$before/done" ] || cp -p "$$before"/*.txt requirements; rm -rf "$$before"' EXIT \
		&& $(MAKE) --no-print-directory all-pins && touch "$$before/done"

all-pins: $(VENV)/uv.stamp
	@# The build for the CPU names itself 2.13.0+cpu, the pin must fit every build of that version. A pin of before would
	@# make uv keep to 2.13.0 itself, which is the one for CUDA.
	@sed -i '/^torch==/d' $(TORCH_PINS)
	@$(PINS) --generate-hashes --extra cpu pyproject.toml -o requirements/cpu.txt
	@for set in tensorrt onnxruntime; do $(PINS) --generate-hashes --extra $$set pyproject.toml -o requirements/$$set.txt || exit; done
	@$(PINS) --generate-hashes --extra tensorrt --extra onnxruntime pyproject.toml -o requirements/all.txt
	@# For the image: what makes it (on the Python of its base, too), and what PyCUDA and TensorRT need to be built.
	@printf "%s\n" uv cyclonedx-bom | $(subst 3.11,3.10,$(PINS)) --universal --generate-hashes - -o requirements/tools.txt
	@printf "%s\n" setuptools wheel wheel-stub "numpy<2" nvidia-cuda-runtime-cu11==11.8.89 nvidia-cuda-profiler-api-cu11==11.8.86 \
		| $(PINS) --generate-hashes - -o requirements/build.txt
	@echo "onnx>=1.23,<1.24" | $(PINS) --generate-hashes -c requirements/all.txt - -o requirements/builder.txt
	@$(PINS) --extra cpu --extra export pyproject.toml -o requirements/export.txt
	@$(PINS) --extra cpu --extra export --extra bench --extra dev pyproject.toml -o requirements/dev.txt
	@printf '%s\n' 'infinity-emb[torch]==0.0.78' 'optimum<2' 'transformers<4.49' 'torch==2.13.0' 'runpod==1.12.0' 'numpy<2' \
		| $(PINS) - -o requirements/peers-infinity.txt
	@printf '%s\n' 'infinity-emb[server,torch]==0.0.78' 'optimum<2' 'transformers<4.49' 'torch==2.13.0' 'numpy<2' \
		| $(PINS) - -o requirements/peers-infinity-server.txt
	@printf '%s\n' 'fastembed==0.9.1' 'runpod==1.12.0' | $(PINS) - -o requirements/peers-fastembed.txt
	@printf '%s\n' 'litserve==0.2.19' 'sentence-transformers==5.7.0' 'torch==2.13.0' 'transformers>=4.57,<4.58' 'numpy<2' \
		| $(PINS) - -o requirements/peers-litserve.txt
	@sed -i -E 's/^(torch==[0-9.]+)\+cpu/\1/' $(TORCH_PINS)

clean: ## remove what was built, environments of peers included; not .venv and .venv-gpu
	@rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis
