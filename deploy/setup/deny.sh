#!/usr/bin/env bash
# The licence and advisory checker: the one in PATH, else a pinned one built into `.tools`.
source "$(dirname "$0")/lib.sh"

version=0.20.2
export PATH="$PWD/.tools/bin:$PATH"
if cargo deny --version >/dev/null 2>&1; then exit 0; fi
lock
say "building cargo-deny $version (once, several minutes)"
root=$PWD/.tools
cd /
CARGO_PROFILE_RELEASE_OPT_LEVEL=0 cargo install --quiet --locked --root "$root" \
    "cargo-deny@$version" >&2
