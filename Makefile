# Everything a newcomer needs is `make demo` and `make test`; `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Caches live outside the clone, so that a clean clone does not compile RocksDB again (13 minutes on 2 cores).
export BALSA_CACHE ?= $(HOME)/.cache/balsa
export CARGO_TARGET_DIR ?= $(BALSA_CACHE)/target
export BALSA_KUBE ?= /run/balsa-kube
export PATH := $(BALSA_CACHE)/bin:$(HOME)/.cargo/bin:/usr/local/go/bin:$(PATH)
BIN := $(CARGO_TARGET_DIR)/debug
# Always the whole workspace with its tests: building one package, or binaries without tests, selects other features and
# compiles the dependencies once more.
CARGO := cargo
SCENARIO ?=
CLIENT ?=
TIMES ?= 20
BENCHES ?= run watch watch-memory unread leases range tls loaded

.PHONY: help
help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z0-9-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## Bring up Kubernetes, the operator and a cluster of 3, use it, scale it to 5 and back
	@e2e/demo

.PHONY: demo-down
demo-down: ## Remove all that the demo left running
	@e2e/demo-down

.PHONY: run
run: build ## Start 3 nodes as plain local processes, no Kubernetes (ctrl-C ends them)
	@e2e/local/run

.PHONY: install
install: ## Install what building and testing need
	@e2e/install all

.PHONY: build
build: ## Build all binaries
	@e2e/install packages rust
	$(CARGO) build --workspace --tests --bins --locked

.PHONY: test
test: ## All tests but the long ones: checks, unit, simulation, processes, end-to-end on a real Kubernetes
	@.ci/phases

.PHONY: test-unit
test-unit: ## Tests that need no Kubernetes
	$(CARGO) test --workspace --locked

.PHONY: test-long
test-long: ## More seeds of the simulations, repeated end-to-end runs, and one of seven members
	BALSA_SEEDS=20000 $(CARGO) test --workspace --locked simulation -- --nocapture
	BALSA_REQUESTS=500000 $(MAKE) differential
	for round in 1 2 3; do $(MAKE) e2e || exit 1; done
	$(MAKE) e2e SCENARIO=seven

.PHONY: differential
differential: build ## The same drawn requests to etcd and to Balsa, all answers compared; BALSA_SEED=n, BALSA_REQUESTS=n
	@e2e/install etcd
	$(BIN)/balsa-differential --etcd $(BALSA_CACHE)/bin/etcd
	$(BIN)/balsa-differential --etcd $(BALSA_CACHE)/bin/etcd-3.7

.PHONY: clients
clients: build ## Real clients in several languages against a local cluster of 3; CLIENT=name runs one
	@e2e/install etcd clients
	$(BIN)/balsa-clients $(CLIENT)

.PHONY: e2e
e2e: images ## End-to-end scenarios on Kubernetes; SCENARIO=name runs one
	@e2e/install helm
	@e2e/run $(SCENARIO)

.PHONY: failover
failover: images ## How long writes pause when the leader is lost, on the Kubernetes that is up; TIMES=20
	@e2e/operator
	@KUBECONFIG=$${KUBECONFIG:-$(BALSA_KUBE)/kubeconfig} $(BIN)/balsa-e2e failover --times $(TIMES)

.PHONY: planned
planned: images ## How long writes pause while a cluster is grown, shrunk and rolled; TIMES=20
	@e2e/operator
	@KUBECONFIG=$${KUBECONFIG:-$(BALSA_KUBE)/kubeconfig} $(BIN)/balsa-e2e planned --times $(TIMES)

.PHONY: failover-local
failover-local: build ## The same on three local processes, side by side with etcd, no Kubernetes; TIMES=20
	@e2e/install etcd
	$(BIN)/balsa-e2e failover --times $(TIMES) --local etcd=$(BALSA_CACHE)/bin/etcd --local balsa=$(BIN)/balsa

.PHONY: idle
idle: images ## What three idle members and the operator cost, on the Kubernetes that is up
	@e2e/operator
	@e2e/bench/idle

.PHONY: images
images: build ## Build the container images and hand them to the local Kubernetes
	@e2e/images/build

.PHONY: kube-up
kube-up: build ## Bring up the local Kubernetes alone, on three processes of Balsa (BALSA_KUBE_STORE=etcd: on etcd)
	@e2e/install all
	@e2e/kubernetes/up

.PHONY: kube-down
kube-down: ## Take the local Kubernetes down, leaving nothing
	@e2e/kubernetes/down

.PHONY: bench
bench: build ## Compare with etcd in one run, about 35 minutes, the last 3 beside busy loops; prints the tables of docs/benchmarks.md
	@e2e/install etcd
	@status=0; for what in $(BENCHES); do echo "== e2e/bench/$$what"; e2e/bench/$$what || status=1; done; exit $$status

.PHONY: lint
lint: ## Formatting and clippy, warnings are errors
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

.PHONY: check
check: lint verify-generated test-unit ## What a change must pass before it is pushed, without Kubernetes

.PHONY: generate
generate: ## Rewrite generated files (CRD YAML, chart copies) and golden files
	UPDATE_GOLDEN=1 $(CARGO) test --workspace --locked golden -- --nocapture

.PHONY: verify-generated
verify-generated: ## Fail when a generated file is stale
	$(CARGO) test --workspace --locked generated
