# The commands of this project. `make demo` and `make test` need nothing but a Rust toolchain, gcc and make.
SHELL := /bin/bash
.ONESHELL:
.SHELLFLAGS := -eu -o pipefail -c

# What the tests talk to, as Debian packages.
TEST_PACKAGES := nginx-light haproxy wrk nghttp2-client docker-registry skopeo python3 nftables curl
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.PHONY: demo build static test test-packages lint runtimes unit e2e e2e-processes e2e-kubernetes e2e-inside chaos zero-loss bench plots soak dist clean

demo: build
	$(SUDO) target/release/colibri up --demo

build:
	@for tool in cargo gcc; do
	  command -v $$tool >/dev/null || { echo "$$tool is missing. Install it: $$( [ $$tool = cargo ] && echo 'see https://rustup.rs' || echo "$(SUDO) apt-get install -y gcc" )"; exit 1; }
	done
	cargo build --release --locked --bin colibri
	$(MAKE) --no-print-directory static

# The example server, linked statically so that it can be an image of one file.
STATIC_TARGET := $(shell uname -m)-unknown-linux-gnu
static:
	RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --locked -p hello-container --target $(STATIC_TARGET) --target-dir target/static
	cp target/static/$(STATIC_TARGET)/release/hello-container target/static/hello-container

test: test-packages lint runtimes unit e2e e2e-processes

test-packages:
	@missing=""
	for package in $(TEST_PACKAGES); do dpkg -s $$package >/dev/null 2>&1 || missing="$$missing $$package"; done
	command -v kubectl >/dev/null || missing="$$missing kubernetes-client"
	command -v node >/dev/null || missing="$$missing nodejs"
	if [ -n "$$missing" ]; then
	  $(SUDO) apt-get update -qq
	  DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq --no-install-recommends $$missing
	fi

lint:
	cargo fmt --all --check
	cargo clippy --profile ci --locked --workspace --all-targets -- -D warnings
	if command -v cargo-deny >/dev/null; then cargo deny --offline check bans licenses sources; else echo "cargo-deny is not installed: its check is skipped"; fi

# The runtimes' own tests, in their own languages.
runtimes:
	(cd runtimes/python && python3 -B -W ignore -m unittest discover -s tests)
	(cd runtimes/nodejs && node --test tests/*.test.js)

# All tests but the end-to-end ones; the build is shared with them.
unit:
	cargo build --profile ci --locked --workspace --bins
	$(call run-tests,not package(e2e),--exclude e2e)

e2e: static
	cargo build --profile ci --locked --workspace --bins
	$(call run-tests,package(e2e),--package e2e)

# Kills platform, supervisors and containers at random under load, and prints what was seen. KILLS and SEED choose.
KILLS ?= 200
chaos: static
	cargo build --profile ci --locked --workspace --bins
	COLIBRI_CHAOS_KILLS=$(KILLS) COLIBRI_CHAOS_SEED=$(or $(SEED),$(shell date +%s)) cargo test --profile ci --locked --workspace --test it -- --nocapture --exact chaos::nothing_acknowledged_is_lost_and_nothing_is_left

# Mixed load on services that roll through five revisions, scale from 0 to 20 and back and lose pods: no request fails.
# Prints what was asked and lost. SECONDS and SEED choose.
zero-loss: SECONDS := 60
zero-loss:
	cargo build --profile ci --locked --workspace --bins
	COLIBRI_ZERO_LOSS_SECONDS=$(SECONDS) COLIBRI_ZERO_LOSS_SEED=$(or $(SEED),$(shell date +%s)) cargo test --profile ci --locked --workspace --test it -- --nocapture --exact zero_loss::no_request_fails_while_revisions_change_and_pods_come_and_go

# Those tests once more, with the four roles as processes of their own. Those that say nothing about that are skipped by
# themselves, with the reason.
e2e-processes: static
	cargo build --profile ci --locked --workspace --bins
	export E2E_LAYOUT=processes
	$(call run-tests,package(e2e),--package e2e)

# The same with Kubernetes' own control plane instead of our API server, in a network namespace made for it. Its programs
# are in KUBEBUILDER_ASSETS (etcd, kube-apiserver, kube-controller-manager, kube-scheduler), or are built first.
KUBEBUILDER_ASSETS ?= $(CURDIR)/target/kubernetes
e2e-kubernetes: static
	test -x "$(KUBEBUILDER_ASSETS)/kube-apiserver" || tools/kubernetes-control-plane "$(KUBEBUILDER_ASSETS)"
	cargo build --profile ci --locked --workspace --bins
	export KUBEBUILDER_ASSETS="$(KUBEBUILDER_ASSETS)"
	unshare --net $(MAKE) --no-print-directory e2e-inside

e2e-inside:
	ip link set lo up
	ip address add 192.0.2.1/32 dev lo
	export E2E_LAYOUT=kubernetes NEXTEST_TEST_THREADS=1 RUST_TEST_THREADS=1
	$(call run-tests,package(e2e),--package e2e)

# Measures a fresh platform on free ports beside nginx, haproxy and plain processes, and writes docs/benchmarks.md.
bench: build test-packages
	cargo build --release --locked -p colibri -p echo-container --bins
	dir=$$(mktemp -d)
	tools/program-root target/release/echo-container "$$dir/echo"
	run() { $(SUDO) target/release/colibri "$$@" --data-dir "$$dir/data"; }
	$(SUDO) target/release/colibri up --data-dir "$$dir/data" --api-port 0 --gateway-port 0 --gateway-tls-port 0 --metrics-port 0 2>"$$dir/log" &
	platform=$$!
	trap '$(SUDO) kill $$platform; wait $$platform || true; $(SUDO) rm -rf "$$dir"' EXIT
	until $(SUDO) test -e "$$dir/data/endpoints.json"; do kill -0 $$platform || { cat "$$dir/log"; exit 1; }; sleep 0.2; done
	target/release/colibri image pack target/static/hello-container --tag hello:latest --output "$$dir/hello.tar"
	target/release/colibri image pack "$$dir/echo" --entrypoint /echo-container --tag echo:latest --output "$$dir/echo.tar"
	run image load "$$dir/hello.tar"
	run image load "$$dir/echo.tar"
	run bench --markdown >"$$dir/page"
	cp "$$dir/page" docs/benchmarks.md
	cat docs/benchmarks.md

# Plays the autoscaler's scenarios in virtual time, and writes docs/plots and the table of docs/autoscaling.md.
plots:
	cargo build --profile ci --locked --package testkit --bin plots
	target/ci/plots docs

# Many seeds of the simulation; SEEDS says how many, SEED the first.
SEEDS ?= 10000
soak:
	cargo build --profile ci --locked --package testkit --bin simulate
	target/ci/simulate --seed $(or $(SEED),0) --seeds $(SEEDS)

dist: build
	mkdir -p target/dist
	cp target/release/colibri target/dist/
	(cd target/dist && sha256sum colibri > colibri.sha256)

clean:
	cargo clean

# cargo-nextest where it is installed, else cargo test. The filter, not `--package`, chooses the tests: with another choice
# of packages cargo would build the dependencies anew with other features.
define run-tests
	if command -v cargo-nextest >/dev/null; then
	  cargo nextest run --cargo-profile ci --locked --no-fail-fast --workspace -E '$(1)'
	else
	  cargo test --profile ci --locked --no-fail-fast $(if $(findstring exclude,$(2)),--workspace )$(2)
	fi
endef
