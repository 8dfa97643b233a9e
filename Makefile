# make demo       a talking video, out/demo.mp4, from a public-domain portrait
# make test       style, types and tests, in a few minutes
# make test-all   these, and all that takes longer: trainings, the browser, killed runs, the documentation
# make machines   the demo as other processors compute it
# make docs       the documentation site, out/site, from docs/; a dead link is an error
# make fuzz       N damaged files through the readers (N=2000)
# make load       N clients at once against the studio (N=40)
#
# All make a virtual environment when there is none. Settings, for example `make demo PYTHON=python3.11`:
#   PYTHON       the Python to make it with: 3.10 or newer
#   VENV         where it is
#   TORCH_INDEX  a PyTorch wheel index, such as https://download.pytorch.org/whl/cpu for the CPU build alone

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=

PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check
MSSYNC := $(VENV)/bin/mssync

.PHONY: demo test test-all machines docs fuzz load clean

demo: out/demo.mp4
	@echo "out/demo.mp4 is ready"

out/demo.mp4: $(VENV)/.demo $(shell find mssync -name '*.py' -o -name '*.safetensors' -o -name '*.ogg')
	@mkdir -p out
	$(MSSYNC) demo -o $@

test: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest -m 'not slow' --durations=10

test-all: test
	$(VENV)/bin/python -m pytest -m slow --durations=10
	$(VENV)/bin/python tests/load.py --clients 6

machines: $(VENV)/.dev
	$(VENV)/bin/python tests/machines.py

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict

fuzz: $(VENV)/.dev
	$(VENV)/bin/python tests/fuzz.py $(or $(N),2000)

load: $(VENV)/.dev
	$(VENV)/bin/python tests/load.py --clients $(or $(N),40)

clean:
	rm -rf out build dist .pytest_cache .ruff_cache .mypy_cache

# One stamp an extra, as old as the pyproject.toml it was installed from.
$(VENV)/.demo $(VENV)/.dev: $(VENV)/.%: $(VENV)/.torch pyproject.toml
	@echo "installing mssync[$*] into $(VENV)"
	$(PIP) --editable '.[$*]'
	@touch $@

$(VENV)/.torch: | $(VENV)/bin/python
	@$(if $(TORCH_INDEX),$(PIP) --index-url '$(TORCH_INDEX)' 'torch>=2.6$(comma)<2.14')
	@touch $@

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
		echo "error: MS-Sync needs Python 3.10 or newer, and $(PYTHON) is" \
		"$$($(PYTHON) --version 2>/dev/null || echo not installed); try: make PYTHON=python3.13" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

comma := ,
