# SPDX-License-Identifier: GPL-2.0
#
# Words for people. What they do is in scripts/; kbuild reads Kbuild, not this.
# Nothing is written to the source tree: see `make help` for where it goes.

.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

.PHONY: help setup build run shell check build-debug build-bench bench bench-quick check-host check-vm check-debug check-mutants check-long fuzz lint clean distclean

help:
	@echo 'make run           boot the stock Debian kernel and show a filesystem on /dev/cloop0'
	@echo 'make check         lint, host tests, tests in the VM'
	@echo 'make shell         a prompt in the VM, with cloop.ko and cloop installed'
	@echo
	@echo 'make build         cloop.ko and the cloop tool'
	@echo 'make lint          formatting, clippy, shellcheck, a module build without warnings'
	@echo 'make check-host    the tests that need no VM'
	@echo 'make check-vm      the tests in the VM'
	@echo 'make check-debug   some of them with lockdep, KASAN, kmemleak and fault injection'
	@echo 'make check-mutants small changes to the engine, of which the tests notice each'
	@echo 'make check-long    all tests, with more seeds and bigger loads'
	@echo 'make bench         measure cloop beside loop, dm-vdo, btrfs and others; bench-quick in 5 minutes'
	@echo 'make fuzz          let a fuzzer play with images (SECONDS=600 for each target)'
	@echo 'make setup         toolchain and VM; every target above does it when needed'
	@echo 'make clean         remove what was built; distclean removes toolchain and VM too'
	@echo
	@bash -c '. scripts/lib.sh; echo "All of it lives in $$cache (set CLOOP_CACHE to move it)."'

setup:
	@scripts/setup

build: setup
	@scripts/build-module
	@scripts/tree cargo build --release --locked

build-debug:
	@scripts/setup --debug
	@scripts/build-module --debug
	@scripts/tree cargo build --release --locked

build-bench:
	@scripts/setup --bench
	@scripts/build-module --bench
	@scripts/tree cargo build --release --locked --features bench --bin cloop --bin cloop-bench

run: build
	@scripts/demo

shell: build
	@scripts/vm --scratch 8G --shell

check: setup
	@scripts/check lint host vm

check-host: setup
	@scripts/check host

check-vm: setup
	@scripts/check vm

check-debug: build-debug
	@scripts/check debug

check-mutants: setup
	@scripts/check mutants

check-long: setup
	@scripts/check --long lint host fuzz mutants vm

bench: build-bench
	@scripts/bench

bench-quick: build-bench
	@scripts/bench --quick

SECONDS ?= 600
fuzz: setup
	@scripts/fuzz $(SECONDS)

lint: setup
	@scripts/check lint

clean:
	@scripts/clean

distclean:
	@scripts/clean --all
