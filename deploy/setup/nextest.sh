#!/usr/bin/env bash
# The test runner: the one in PATH, else a pinned one built into `.tools`.
source "$(dirname "$0")/lib.sh"

version=0.9.143
export PATH="$PWD/.tools/bin:$PATH"
if cargo nextest --version >/dev/null 2>&1; then exit 0; fi
lock
if cargo nextest --version >/dev/null 2>&1; then exit 0; fi
say "building the test runner cargo-nextest $version (once, a few minutes)"
root=$PWD/.tools
# Optimised code would take longer to build than it can save. Outside the checkout, so that its
# .cargo/config.toml does not apply.
cd /
CARGO_PROFILE_RELEASE_OPT_LEVEL=0 cargo install --quiet --locked --root "$root" \
    "cargo-nextest@$version" >&2
