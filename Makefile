# rcm: see `make help`.

PREFIX  ?= /usr/local
DESTDIR ?=

# The directory of runc's own `make install`: engines look for a runtime on root's PATH.
SBINDIR  = $(DESTDIR)$(PREFIX)/sbin
MANDIR   = $(DESTDIR)$(PREFIX)/share/man/man8
BASHDIR  = $(DESTDIR)$(PREFIX)/share/bash-completion/completions
ZSHDIR   = $(DESTDIR)$(PREFIX)/share/zsh/site-functions
FISHDIR  = $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d

CARGO      ?= cargo
INSTALL    ?= install
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
BINARY     := $(TARGET_DIR)/release/rcm
# Man pages and completions, written by the binary itself.
ASSETS     := $(TARGET_DIR)/assets
SOURCES    := Cargo.toml Cargo.lock $(wildcard build.rs) $(shell find src -name '*.rs')
# How the tests are run, see .config/nextest.toml: PROFILE=ci leaves a report for machines.
NEXTEST    := tests/in-memory.sh $(CARGO) nextest run --locked --profile $(or $(PROFILE),default)
# Tests that cannot run here say so in this file: the output of tests that pass is not shown.
SKIP_LOG   := $(abspath $(TARGET_DIR))/skips.log
MSRV       := $(shell sed -n 's/^rust-version *= *"\(.*\)"/\1/p' Cargo.toml)

# The tests need root. An ordinary user compiles as himself, and only the test programs run through sudo.
ifneq ($(shell id -u),0)
TRIPLE := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
export CARGO_HOME ?= $(HOME)/.cargo
export CARGO_TARGET_$(TRIPLE)_RUNNER ?= sudo --preserve-env
SUDO := sudo --preserve-env
UNPRIVILEGED := env -u CARGO_TARGET_$(TRIPLE)_RUNNER
endif

.DEFAULT_GOAL := build
.DELETE_ON_ERROR:

.PHONY: build
build: $(ASSETS) ## Build the release binary, its man pages and shell completions (the default)

# A plain file rule: after `make build`, `sudo make install` needs no Rust toolchain for root.
$(BINARY): $(SOURCES)
	$(CARGO) build --release --locked
	@touch $@

$(ASSETS): $(BINARY)
	@rm -rf $@
	@mkdir -p $@/man $@/completion
	$(BINARY) generate man $@/man
	$(BINARY) generate completion $@/completion
	@touch $@

.PHONY: install
install: build ## Install binary, man pages and completions (PREFIX=/usr/local, DESTDIR=)
	$(INSTALL) -d $(SBINDIR) $(MANDIR) $(BASHDIR) $(ZSHDIR) $(FISHDIR)
	$(INSTALL) -m 755 $(BINARY) $(SBINDIR)/rcm
	$(INSTALL) -m 644 $(ASSETS)/man/*.8 $(MANDIR)
	$(INSTALL) -m 644 $(ASSETS)/completion/rcm.bash $(BASHDIR)/rcm
	$(INSTALL) -m 644 $(ASSETS)/completion/_rcm $(ZSHDIR)/_rcm
	$(INSTALL) -m 644 $(ASSETS)/completion/rcm.fish $(FISHDIR)/rcm.fish
	@scripts/engines.sh $(PREFIX)/sbin/rcm

.PHONY: uninstall
uninstall: ## Remove the files of `make install` (same PREFIX and DESTDIR)
	rm -f $(SBINDIR)/rcm $(MANDIR)/rcm.8 $(MANDIR)/rcm-*.8
	rm -f $(BASHDIR)/rcm $(ZSHDIR)/_rcm $(FISHDIR)/rcm.fish

.PHONY: deps
deps: ## Install system packages and a CRIU that works on the running kernel
	@scripts/deps.sh

.PHONY: check
check: ## Formatting, clippy, rustdoc, the rules of the source tree and its prose; needs no root
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --locked --no-deps
	$(UNPRIVILEGED) $(CARGO) test --locked --test house
	scripts/prose.sh

.PHONY: test
test: deps example-rootfs ## Build and run all tests, those that need root and CRIU included
	@mkdir -p $(TARGET_DIR) && : > $(SKIP_LOG)
	RCM_PREVIOUS_RELEASE=$$(scripts/previous-release.sh $(TARGET_DIR)/previous) RCM_SKIP_LOG=$(SKIP_LOG) $(NEXTEST); status=$$?; cat $(SKIP_LOG); exit $$status

.PHONY: test-engines
test-engines: deps ## Run the tests with Docker, containerd and Podman alone
	$(NEXTEST) --test engines

.PHONY: msrv
msrv: ## Compile with the oldest supported Rust (needs rustup)
	rustup toolchain install $(MSRV) --profile minimal --no-self-update
	rustup run $(MSRV) cargo check --locked --all-targets --target-dir $(TARGET_DIR)/msrv

.PHONY: bench
bench: deps build ## Measure rcm beside runc, crun and youki, and a streamed migration beside a copy
	RCM_BENCH_YOUKI="$$(scripts/bench-tools.sh)" $(CARGO) bench --locked

.PHONY: demo
demo: deps build ## Move a running container between two hosts on this machine
	$(SUDO) env RCM="$(abspath $(BINARY))" scripts/demo.sh

# --- the training job that moves, see examples/mnist-trainer ---

EXAMPLE := $(SUDO) env RCM="$(abspath $(BINARY))" RCM_EXAMPLE_DIR="$(abspath $(TARGET_DIR))/example" $(if $(MNIST),MNIST="$(MNIST)")

.PHONY: deps-example
deps-example: ## Install the tool that builds the training job: debootstrap
	@scripts/deps.sh --example

# A root file system that is up to date is kept.
.PHONY: example-rootfs
example-rootfs: deps-example
	@$(EXAMPLE) examples/mnist-trainer/build.sh rootfs

.PHONY: example
example: deps-example build ## Build the bundle of a Keras training (MNIST=DIR: with MNIST's files)
	@$(EXAMPLE) examples/mnist-trainer/build.sh

.PHONY: example-demo
example-demo: deps example ## Move that training between two hosts on this machine, and compare its losses
	$(EXAMPLE) examples/mnist-trainer/demo.sh

# --- the lab: two virtual machines, see docs/lab.md ---

.PHONY: deps-vm
deps-vm: ## Install the lab's own requirements: QEMU and debootstrap
	@scripts/deps.sh --vm

# Static, because they run in a root file system without libraries.
GUEST := $(addprefix $(TARGET_DIR)/release/,workload beacon stop_at)
$(GUEST): $(TARGET_DIR)/release/%: tests/vm/%.rs
	@mkdir -p $(@D)
	rustc --edition 2024 -O -C target-feature=+crt-static -o $@ $<

# Test program of which the scenario "kernel" runs a part in the machines. Without debugging symbols they are a tenth as large.
GUEST_TESTS := it
.PHONY: guest-tests
guest-tests: deps-vm
	@mkdir -p $(TARGET_DIR)/guest-tests
	$(CARGO) test --locked --no-run $(GUEST_TESTS:%=--test %) --message-format=json >$(TARGET_DIR)/guest-tests/built
	@jq -r 'select(.executable and .profile.test) | "\(.target.name) \(.executable)"' $(TARGET_DIR)/guest-tests/built \
		| while read -r name program; do strip -o $(TARGET_DIR)/guest-tests/$$name $$program || exit; done

.PHONY: test-vm
test-vm: deps-vm build $(GUEST) $(if $(filter trainer,$(SCENARIOS)),example-rootfs) $(if $(filter kernel,$(or $(SCENARIOS),kernel)),guest-tests) ## Run the scenarios of tests/vm in two virtual machines
	$(SUDO) env RCM="$(abspath $(BINARY))" GUEST="$(abspath $(TARGET_DIR)/release)" TESTS="$(abspath $(TARGET_DIR)/guest-tests)" tests/vm/test.sh $(SCENARIOS)

.PHONY: lab-up
lab-up: deps-vm build ## Start the two machines, with this tree's rcm
	$(SUDO) tests/vm/build-image.sh
	$(SUDO) tests/vm/up.sh
	$(SUDO) tests/vm/push.sh "$(abspath $(BINARY))" /usr/local/sbin/rcm

.PHONY: lab-shell
lab-shell: ## A shell in one of them (HOST=source or HOST=destination)
	@$(SUDO) tests/vm/run.sh "$(or $(HOST),source)"

.PHONY: lab-down
lab-down: ## Stop them
	$(SUDO) tests/vm/down.sh

.PHONY: clean
clean: ## Remove everything that was built
	$(CARGO) clean

.PHONY: help
help: ## List the targets
	@echo 'usage: make [TARGET] [VARIABLE=VALUE]...'
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
