#!/usr/bin/env bash
# `.venv`: the independent readers with which the tests check what scpeft writes. Never needed at
# run time.
source "$(dirname "$0")/lib.sh"

requirements=deploy/setup/python-dev.txt
folder=.venv
stamp=$folder/scpeft-stamp
wanted=$(sha256sum <"$requirements")

present() { [ -x "$folder/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; }

if present; then exit 0; fi
lock
if present; then exit 0; fi

python=$(find_python 11 venv ensurepip) ||
    die "the tests need Python 3.11 to 3.14 with pip and venv" \
        "on Debian: sudo apt-get install -y python3 python3-pip python3-venv"
need_space . 1900 "the Python environment of the tests"
say "installing the Python readers for the tests into \`$folder\`"
# A virtual environment cannot be moved, so it is made in place: it counts once the stamp is there.
rm -rf "$folder"
"$python" -m venv "$folder"
# The list is complete, and PEFT must not pull in a torch besides the one in `.libtorch`.
"$folder/bin/python" -m pip install -q --no-deps --only-binary :all: -r "$requirements" >&2 ||
    die "could not install the Python readers" \
        "check the network and the package index of pip (pip config list), then run the same command again"
printf '%s\n' "$wanted" >"$stamp"
