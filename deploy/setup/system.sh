#!/usr/bin/env bash
# Compilers, libraries and Python; with the argument `test`, also the programs that tests check us
# against. Installs the missing Debian packages as root; otherwise prints
# the one command that does. Needs no network when nothing is missing.
source "$(dirname "$0")/lib.sh"
lock

if [ "$(uname -s)-$(uname -m)" != Linux-x86_64 ]; then
    die "scpeft runs on Linux x86-64, this is $(uname -s) $(uname -m)"
fi

missing=()
# want PACKAGE CHECK...: the package is missing when the check fails. Checks look for the files that
# the build uses, so that a library from elsewhere than apt counts as well.
want() {
    local package=$1
    shift
    if ! "$@" >/dev/null 2>&1; then missing+=("$package"); fi
}
has() { local name; for name in "$@"; do command -v "$name" || return 1; done; }
has_libclang() {
    [ -n "${LIBCLANG_PATH:-}" ] && return 0
    ldconfig -p | grep -q 'libclang[-.0-9]*\.so' && return 0
    # Not `libclang-cpp.so`, which comes with other packages and cannot stand in for it.
    compgen -G '/usr/lib/llvm-*/lib/libclang[-.][0-9s]*'
}
has_hdf5() { pkg-config --exists hdf5 || compgen -G '/usr/include/hdf5*/**/hdf5.h' || [ -e /usr/include/hdf5.h ]; }
has_browser() { has chromium-headless-shell || has chromium || has google-chrome; }
has_certificates() { [ -s /etc/ssl/certs/ca-certificates.crt ] || [ -s /etc/pki/tls/certs/ca-bundle.crt ]; }

want build-essential has cc c++ make
want pkg-config has pkg-config
want libclang-dev has_libclang
want libopenmpi-dev has mpicc
want openmpi-bin has mpirun
want libhdf5-dev has_hdf5
want ca-certificates has_certificates
if [ "${1:-}" = test ]; then
    want prometheus has promtool prometheus
    want slurm-wlm has sbatch srun slurmctld slurmd
    want munge has munged
    want iproute2 has ip
    want chromium-headless-shell has_browser
fi
if ! has cargo >/dev/null; then want curl has curl; fi
if ! find_python 10 venv ensurepip >/dev/null; then missing+=(python3 python3-pip python3-venv); fi

if [ ${#missing[@]} -eq 0 ]; then exit 0; fi

if ! command -v apt-get >/dev/null; then
    die "missing, by their Debian names: ${missing[*]}" \
        "install your system's counterparts (a C++ compiler, libclang, Open MPI and HDF5 with headers, Python 3.10 to 3.14 with pip)"
fi
if [ "$(id -u)" != 0 ]; then
    die "system packages are missing" \
        "run: sudo apt-get update && sudo apt-get install -y --no-install-recommends ${missing[*]}"
fi
say "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -q >&2
apt-get install -q -y --no-install-recommends "${missing[@]}" >&2
if ! find_python 10 >/dev/null; then
    die "no Python 3.10 to 3.14 with pip, also not from this system's packages" "put one in PATH"
fi
