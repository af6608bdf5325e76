# The front door. Each target is a line that can be typed by hand; `make help` lists them.
.POSIX:
.PHONY: help demo test test-drivers test-barriers test-chromium test-interop test-soak doc lint ci driver cargo

help:
	@echo 'make demo           train a teacher, distil a student, print the table'
	@echo 'make test           all tests on this machine'"'"'s adapter'
	@echo 'make test-drivers   all tests on every software driver there is (Linux)'
	@echo 'make test-barriers  the calls to Vulkan and the barriers, under its validation layer (Linux)'
	@echo 'make test-chromium  all kernels through the compiler of a browser (Linux)'
	@echo 'make test-interop   files in and out, held against Keras, onnxruntime and others from PyPI'
	@echo 'make test-soak      200,000 steps: neither memory nor the time of a step may grow (Linux)'
	@echo 'make doc            the library'"'"'s pages, in target/doc'
	@echo 'make lint           formatting and clippy'
	@echo 'make ci             what the CI runs; as root on a clean Debian'

demo: driver
	cargo build --release
	./target/release/limbeck demo

test: driver
	cargo test

test-drivers: cargo
	@sh scripts/test-drivers.sh

test-barriers: cargo
	@sh scripts/test-barriers.sh gradients faults runs

test-chromium: cargo
	@sh scripts/apt.sh chromium chromium
	cargo test --test chromium -- --nocapture

# Takes minutes.
test-soak: driver
	cargo test --release --test runs -- --ignored --nocapture soak

# Needs python3 and, the first time, the network.
test-interop: driver
	@sh tests/interop/run.sh

doc: cargo
	RUSTDOCFLAGS='-D warnings' cargo doc --no-deps

lint: cargo
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	# "All" leaves out what `cargo test` leaves out.
	cargo clippy --test chromium -- -D warnings

ci:
	bash .ci/run

# Kernels need a Vulkan driver on Linux; a software one is installed only where there is none.
driver: cargo
	@sh scripts/vulkan.sh

cargo:
	@command -v cargo >/dev/null || { \
	    echo "Rust is missing: curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh" >&2; \
	    echo "(or https://rustup.rs), then open a new shell" >&2; exit 1; }
