# shellcheck shell=bash
# What the set-up scripts share. Source it; it finds the root of the checkout and changes to it.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# The user's pip settings must not send our packages elsewhere; every call names its folder.
export PIP_USER=0 PIP_REQUIRE_VIRTUALENV=0 PIP_ROOT_USER_ACTION=ignore
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_PROGRESS_BAR=off
unset PIP_TARGET PIP_PREFIX PYTHONHOME PYTHONPATH

say() { printf 'setup: %s\n' "$*" >&2; }

# die MESSAGE [HELP]: exit code 1.
die() {
    printf 'setup: error: %s\n' "$1" >&2
    if [ $# -gt 1 ]; then printf 'help: %s\n' "$2" >&2; fi
    exit 1
}

# One set-up at a time in a checkout: a second one waits, then finds everything done.
lock() {
    mkdir -p .tools
    exec 9>.tools/setup.lock
    if command -v flock >/dev/null && ! flock -n 9; then
        say "waiting for another set-up in this checkout"
        flock 9
    fi
}

# find_python MINOR [MODULE...]: prints the first Python 3.MINOR or newer (up to 3.14, the newest
# with wheels of libtorch) that can import these modules besides pip.
find_python() {
    local minor=$1 python
    shift
    for python in python3 python3.14 python3.13 python3.12 python3.11 python3.10 /usr/bin/python3; do
        if command -v "$python" >/dev/null && "$python" - "$minor" pip "$@" 2>/dev/null <<'PY'; then
import importlib.util, sys
minor, modules = int(sys.argv[1]), sys.argv[2:]
fits = sys.version_info[0] == 3 and minor <= sys.version_info[1] <= 14
sys.exit(0 if fits and all(importlib.util.find_spec(m) for m in modules) else 1)
PY
            command -v "$python"
            return 0
        fi
    done
    return 1
}

# need_space FOLDER MEGABYTES WHAT
need_space() {
    local free
    free=$(df -Pm "$1" | awk 'NR == 2 { print $4 }')
    if [ "$free" -lt "$2" ]; then
        die "$3 needs $2 MB of free disk, \`$1\` has $free MB" "free some space and run the same command again"
    fi
}
