# Two commands matter: `make demo` (the product, on a real Kubernetes on this machine) and `make test` (everything we promise).
# The rest are their parts. Every target works from a clean clone; what a bare machine lacks is installed or named.

XTASK = cargo run --quiet --package xtask --

.PHONY: demo demo-down test test-unit e2e test-long bench lint audit codegen tools

demo: NEEDS = demo $(if $(filter-out 0,$(OBSERVE)),prometheus)
demo: tools
	$(XTASK) demo up

demo-down:
	$(XTASK) demo down

test: tools
	$(XTASK) test

test-unit: tools
	$(XTASK) test --unit

# On the running local cluster, alone: make e2e, or make e2e TEST=part-of-a-name
e2e: tools
	$(XTASK) e2e $(TEST)

# Fuzzers need a C++ compiler.
test-long: NEEDS = g++
test-long: tools
	$(XTASK) test --long

bench: tools
	$(XTASK) bench

lint: tools
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	$(XTASK) codegen --check
	$(XTASK) tidy

# Compiles for a quarter of an hour the first time, so it is no part of `make test`.
audit:
	command -v cargo-deny >/dev/null || cargo install --locked cargo-deny
	cargo deny check licenses bans sources

codegen:
	$(XTASK) codegen

tools:
	@sh e2e/prerequisites.sh $(NEEDS)
