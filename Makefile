# Every target makes its prerequisites; nothing is done twice.
PYTHON ?= python3
CORPUS ?= multilingual
YAML ?= yamls/dept_spec.yaml
WORKERS ?= 2
ARGS ?=
ROW ?=
BENCH_MB ?= 200
KILLS ?= 10
MODEL ?= exports/en
SOURCE ?= en
TASKS ?= prepared_text,prepared_continuation

BIN := .venv/bin
READY := .venv/.ready
TEST := $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --durations=10 tests
UV = $(if $(shell command -v uv),uv,$(BIN)/python -m uv)
UV_NEXT = $(if $(shell command -v uv),uv,.venv-torch2.11/bin/python -m uv)

.DEFAULT_GOAL := help
.PHONY: help setup lock lock-torch2.11 setup-torch2.11 unit-torch2.11 wheels data check-data downstream demo check \
    test unit reproduce bench bench-link gpu gpu-claim faults soak federation costs lm-eval lint clean

help:  ## this list
	@grep -E '^[a-z0-9.-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 17

setup: $(READY)  ## the environment, in .venv

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v <= (3, 12) else \
	    f"Python {v[0]}.{v[1]} is not supported by torch 2.7.0 and llm-foundry: call make PYTHON=python3.11 (3.10 to 3.12).")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	command -v uv >/dev/null || $(BIN)/python -m pip install --quiet uv
	$(UV) pip install --quiet --python $(BIN)/python --require-hashes -r requirements.txt
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

lock:  ## compile requirements.txt from requirements.in
	$(UV) pip compile --quiet --universal --python-version 3.10 --generate-hashes --no-emit-index-url \
	    --custom-compile-command 'make lock' requirements.in -o requirements.txt
	$(UV) pip compile --quiet --universal --python-version 3.10 --generate-hashes --no-emit-index-url \
	    --custom-compile-command 'make lock' -c requirements.txt requirements-lm-eval.in -o requirements-lm-eval.txt

lock-torch2.11:  ## compile requirements-torch2.11.txt, the second environment (docs/gpu.md)
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	    --custom-compile-command 'make lock-torch2.11' --override requirements-torch2.11-overrides.txt \
	    requirements.in -o requirements-torch2.11.txt

setup-torch2.11: .venv-torch2.11/.ready  ## the second environment, in .venv-torch2.11: Python 3.11 or 3.12

.venv-torch2.11/.ready: requirements-torch2.11.txt pyproject.toml
	test -x .venv-torch2.11/bin/python || $(PYTHON) -m venv .venv-torch2.11
	command -v uv >/dev/null || .venv-torch2.11/bin/python -m pip install --quiet uv
	$(UV_NEXT) pip install --quiet --python .venv-torch2.11/bin/python --no-deps --require-hashes \
	    -r requirements-torch2.11.txt
	$(UV_NEXT) pip install --quiet --python .venv-torch2.11/bin/python --no-deps --no-build-isolation -e .
	@touch $@

unit-torch2.11: .venv-torch2.11/.ready  ## the tests that launch no runs, in the second environment
	.venv-torch2.11/bin/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m 'not end_to_end' tests

wheels: $(READY)  ## into wheels/: what a GPU machine with Python 3.12, torch 2.11 and no index lacks
	mkdir -p build
	grep -E "^($$(paste -sd'|' bench/gpu-wheels.txt))==" requirements-torch2.11.txt | sed 's/ *\\$$//' > build/wheels.txt
	$(BIN)/python -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
	    $(foreach glibc,39 35 34 31 28 27 24 17 14 12 5,--platform manylinux_2_$(glibc)_x86_64) \
	    --platform manylinux2014_x86_64 --platform manylinux1_x86_64 -d wheels -r build/wheels.txt

data: $(READY)  ## tokenizers and MDS shards of CORPUS=multilingual, multidomain, languages, domains ...
	$(BIN)/python data_prep/prepare.py data_prep/corpora/$(CORPUS).yaml

check-data: $(READY)  ## every shard, count and tokenizer of a prepared CORPUS against each other
	$(BIN)/python data_prep/check.py $(CORPUS)

downstream: $(READY)  ## labelled text for fine-tuning
	$(BIN)/python data_prep/downstream.py

demo: data  ## pre-train SPEC on eight languages; YAML=... for another experiment, WORKERS=1, 2, 4 or 8
	$(BIN)/composer -n $(WORKERS) train.py $(YAML) $(ARGS)

check: $(READY)  ## check in seconds whether YAML=... can start here, with WORKERS and ARGS
	$(BIN)/python train.py --check $(YAML) --workers $(WORKERS) $(ARGS)

test: $(READY)  ## every test, in two processes: a line a file with its time, and the slowest at the end
	$(TEST)

unit: $(READY)  ## the tests that launch no runs
	$(TEST) -m 'not end_to_end'

reproduce: $(READY)  ## the paper's comparison on both corpora, into results/; resumes after an interruption
	$(MAKE) data CORPUS=multilingual
	$(MAKE) data CORPUS=multidomain
	$(MAKE) downstream
	$(BIN)/python -m dept.evaluation.reproduce $(ARGS)

bench: $(READY)  ## speed against the libraries, as ratios, into results/bench/; ROW=list, ROW=<name>, BENCH_MB=200
	$(if $(filter list --list,$(ROW) $(ARGS)),,$(MAKE) data CORPUS=multilingual && $(MAKE) data CORPUS=multidomain)
	@$(BIN)/python bench/run.py $(addprefix --row ,$(ROW)) --mb $(BENCH_MB) $(ARGS)

bench-link: $(READY)  ## the exchange of two workers over a slow link, as root; ARGS="--rates 100 --repeats 5"
	$(BIN)/python bench/slow_link.py $(ARGS)

gpu:  ## whether, how fast and with how much memory DEPT runs on one GPU, in ten minutes (docs/gpu.md)
	bash bench/gpu.sh $(ARGS)

gpu-claim: $(READY)  ## STD, SPEC and GLOB with a body of 38 million parameters on one GPU, at most ten minutes a call
	$(BIN)/python -m dept.evaluation.reproduce --plan eval/gpu.yaml --results results/gpu --jobs 2 --minutes 8

faults: data  ## killed runs and federations against uninterrupted ones, KILLS=10; detection of a damaged corpus
	$(BIN)/python bench/kills.py --workers 1 $(ARGS)
	$(BIN)/python bench/kills.py --workers 2 $(ARGS)
	$(BIN)/python bench/kills.py --workers 2 --launcher --window 2 $(ARGS)
	$(BIN)/python bench/damage.py
	$(BIN)/python bench/federation_faults.py --kills $(KILLS)

soak: data  ## a thousand short rounds: memory, open files, shared memory, threads
	$(BIN)/python bench/soak.py $(ARGS)

federation: data  ## three silos and a server over Flower, on this machine, compared with one job
	$(BIN)/python bench/federation.py $(ARGS)

costs: $(READY)  ## the paper's table of costs beside ours, and the bytes of coded updates
	$(BIN)/python -m dept.costs --paper
	$(BIN)/python -m dept.costs --codecs $(wildcard yamls/mc4/*_glob.yaml yamls/mc4/*_trim.yaml \
		yamls/mc4/*_spec_opt.yaml yamls/pile/*_glob.yaml yamls/pile/*_spec.yaml)

lm-eval: $(READY)  ## lm-evaluation-harness on the export MODEL, with validation text of CORPUS and SOURCE
	test -x .venv-lm-eval/bin/python || $(PYTHON) -m venv .venv-lm-eval
	$(UV) pip install --quiet --python .venv-lm-eval/bin/python --require-hashes -r requirements-lm-eval.txt
	$(BIN)/python eval/lm_eval_text.py --corpus $(CORPUS) --source $(SOURCE)
	.venv-lm-eval/bin/lm_eval --model hf --model_args pretrained=$(MODEL) --include_path eval/lm_eval_tasks \
	    --tasks $(TASKS) $(ARGS)

lint: $(READY)  ## ruff, which rooms import which, and known vulnerabilities of what requirements.txt pins
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/python .ci/audit.py

clean:  ## remove all generated files, including data and runs
	rm -rf .venv .venv-lm-eval .venv-torch2.11 wheels .lm_eval build *.egg-info data tokenizers runs
