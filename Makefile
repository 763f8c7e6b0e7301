# Everything starts here; `make` lists the targets. Each target installs what it needs and is
# missing, and costs next to nothing when nothing is.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules
# The steps share one build folder and two are already parallel inside.
.NOTPARALLEL:

# Daemons that the tests start lie in /usr/sbin, which users often do not have in theirs.
export PATH := $(CURDIR)/.tools/bin:$(PATH):$(HOME)/.cargo/bin:/usr/sbin

# mpirun refuses to run as root, as in most containers, unless both are set.
ifeq ($(shell id -u),0)
export OMPI_ALLOW_RUN_AS_ROOT := 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM := 1
endif

# Tests run in the folders of their crates: a relative folder of fixtures must not depend on that.
ifdef SCPEFT_FIXTURES
override SCPEFT_FIXTURES := $(abspath $(SCPEFT_FIXTURES))
export SCPEFT_FIXTURES
endif

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: demo
demo: build ## Import real cells, train adapters on two ranks, predict, compare
	@deploy/demo/demo.sh

.PHONY: setup
setup: ## Install what the build needs: system packages, libtorch
	@deploy/setup/system.sh
	@deploy/setup/rust.sh
	@deploy/setup/libtorch.sh

.PHONY: setup-test
setup-test: setup ## Also install what the tests need: the test runner, Prometheus, Slurm, Python readers
	@deploy/setup/system.sh test
	@deploy/setup/nextest.sh
	@deploy/setup/python-dev.sh

.PHONY: build
build: setup ## Build the four binaries into target/release
	cargo build --release --workspace --bins

.PHONY: test
test: setup-test build ## Run all tests, and the examples of the documentation
	cargo nextest run --release --workspace
	cargo test --release --workspace --doc

.PHONY: golden
golden: setup ## Run the golden tests alone, on SCPEFT_FIXTURES=FOLDER when given
	@deploy/setup/nextest.sh
	cargo nextest run --release --workspace --test 'golden_*'

.PHONY: bench
bench: setup ## Run the benchmarks
	cargo bench --package scpeft-bench
	cargo bench --package scpeft-launcher --bench heartbeats

.PHONY: lint
lint: setup ## Check formatting and lints
	cargo fmt --all --check
	cargo clippy --release --workspace --all-targets -- -D warnings
	@if command -v shellcheck >/dev/null; then shellcheck -x -P SCRIPTDIR .ci/run deploy/*/*.sh; fi

.PHONY: deny
deny: setup ## Check licences, advisories and sources of the dependencies
	@deploy/setup/deny.sh
	cargo deny check

.PHONY: clean
clean: ## Remove what was built and what the demo wrote
	rm -rf target demo

.PHONY: distclean
distclean: clean ## Also remove libtorch, the Python readers and the tools
	rm -rf .libtorch .libtorch.part .libtorch.old .venv .tools
