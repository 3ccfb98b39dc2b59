# Each recipe is one command that can as well be typed; `.ci/run` is what must pass.

set shell := ["bash", "-euo", "pipefail", "-c"]

_default:
    @just --list

# Format the sources.
fmt:
    cargo fmt

# Check the format.
check-fmt:
    cargo fmt --check

# Lint all targets; warnings are errors.
clippy:
    cargo clippy --all-targets --locked -- -D warnings

# Build the documentation; warnings are errors.
doc:
    RUSTDOCFLAGS='-D warnings' cargo doc --no-deps --locked

# Run all tests, or those whose name contains FILTER.
test FILTER='':
    cargo test --locked -- {{ FILTER }}

# Licences, duplicates and sources of dependencies (needs cargo-deny).
deny:
    cargo deny check bans licenses sources

# All that is checked without running.
lint: check-fmt clippy doc

# The binary, as it is shipped.
build:
    cargo build --release --locked

# Learn a real stream before your eyes, in under a minute after the build.
demo *ARGS:
    cargo run --release --locked -- demo {{ ARGS }}

# What must pass before a merge.
ci:
    .ci/run
