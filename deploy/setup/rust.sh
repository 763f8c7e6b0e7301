#!/usr/bin/env bash
# Checks that a recent enough Rust is there. It is the user's to install: rustup keeps one toolchain
# for all projects.
source "$(dirname "$0")/lib.sh"

wanted=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
if ! command -v cargo >/dev/null; then
    die "no \`cargo\`, scpeft needs Rust $wanted or newer" \
        "run: curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y"
fi
found=$(cargo --version | awk '{ print $2 }')
if [ "$(printf '%s\n' "$wanted" "${found%%-*}" | sort -V | head -n 1)" != "$wanted" ]; then
    die "cargo is $found, scpeft needs Rust $wanted or newer" "run: rustup update stable"
fi
