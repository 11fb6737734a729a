# What people do with floodgate; `just` lists it. https://just.systems

_list:
    @just --list

# See a flash sale happen, with a crash in the middle
demo *arguments:
    cargo run --release -- demo {{ arguments }}

# Start a private RabbitMQ, Redis and PostgreSQL; then: eval "$(scripts/services env)"
services:
    scripts/services up

# Every test, on servers of its own
test *arguments:
    scripts/test {{ arguments }}

# Format, lints and documentation
lint:
    cargo fmt --all -- --check
    cargo clippy --locked --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps
    cargo deny --locked check bans licenses sources

# Measure the whole path on the configured servers
bench *arguments:
    cargo run --release -p floodgate-lab -- bench {{ arguments }}

# Run the worker in simulated worlds, and check that the promises hold
simulate *arguments:
    cargo run --release -p floodgate-lab -- simulate {{ arguments }}

# All that a change must pass
ci:
    .ci/run
