#!/usr/bin/env bash
# libtorch 2.11.0 in `.libtorch`, out of the Python wheel: the CPU minimum, or everything that a GPU
# needs when an NVIDIA driver is present. Unpacked beside and moved into place when complete.
#
# SCPEFT_LIBTORCH_DIR    another folder than `.libtorch` (to try this script out)
# SCPEFT_LIBTORCH_SET    `cpu` or `full` instead of what this machine needs (to build an image)
# SCPEFT_LIBTORCH_FROM   a site-packages folder with torch 2.11.0 already in it, for a machine without
#                        a network: linked to, not copied
source "$(dirname "$0")/lib.sh"

version=2.11.0
cpu_set=("torch==$version" nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85)
full_set=("torch==$version")

folder=${SCPEFT_LIBTORCH_DIR:-.libtorch}
stamp=$folder/scpeft-stamp

flavour=cpu
if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then flavour=full; fi
case ${SCPEFT_LIBTORCH_SET:-} in
    '') ;;
    cpu | full) flavour=$SCPEFT_LIBTORCH_SET ;;
    *) die "SCPEFT_LIBTORCH_SET is \`$SCPEFT_LIBTORCH_SET\`, expected \`cpu\` or \`full\`" ;;
esac
if [ -n "${SCPEFT_LIBTORCH_FROM:-}" ]; then flavour="from $SCPEFT_LIBTORCH_FROM"; fi

present() {
    [ -e "$folder/torch/lib/libtorch_cpu.so" ] || return 1
    case $(cat "$stamp" 2>/dev/null) in
        "torch $version $flavour" | "torch $version from "*) return 0 ;;
        # Everything includes the minimum.
        "torch $version full") [ "$flavour" = cpu ] ;;
        *) return 1 ;;
    esac
}

if present; then exit 0; fi
lock
if present; then exit 0; fi

part=$folder.part
old=$folder.old
rm -rf "$part" "$old"
trap 'rm -rf "$part"' EXIT
mkdir -p "$part/tmp"

link() {
    local from=$SCPEFT_LIBTORCH_FROM found
    found=$(sed -n "s/^__version__ = '\([0-9.]*\).*/\1/p" "$from/torch/version.py" 2>/dev/null || true)
    if [ "$found" != "$version" ]; then
        die "\`$from\` holds torch ${found:-(none)}, expected $version"
    fi
    ln -s "$(realpath "$from/torch")" "$part/torch"
}

# fetch MEGABYTES PIP_ARGUMENTS...
fetch() {
    local python megabytes=$1
    shift
    need_space "$part" "$megabytes" "libtorch ($flavour)"
    python=$(find_python 10) || die "no Python 3.10 to 3.14 with pip" "run: make setup"
    say "fetching libtorch $version ($flavour) from the Python wheel"
    # pip unpacks into TMPDIR first; on another file system that would be a copy more.
    TMPDIR=$PWD_PART/tmp "$python" -m pip install -q --no-compile --only-binary :all: \
        --target "$part" "$@" >&2 ||
        die "could not fetch libtorch $version" \
            "check the network and the package index of pip (pip config list), then run the same command again"
}

PWD_PART=$(realpath "$part")
case $flavour in
    cpu) fetch 3000 --no-deps "${cpu_set[@]}" ;;
    full) fetch 8000 "${full_set[@]}" ;;
    *) link ;;
esac
rmdir "$part/tmp" 2>/dev/null || rm -rf "$part/tmp"

# The loader of NCCL's symbols looks for this name, which the wheel lacks.
while IFS= read -r nccl; do
    ln -sfn libnccl.so.2 "${nccl%.2}"
done < <(find "$part" -name libnccl.so.2)

for file in lib/libtorch.so lib/libtorch_cpu.so lib/libtorch_cuda.so lib/libc10.so include/torch/csrc/api/include/torch/torch.h; do
    if [ ! -e "$part/torch/$file" ]; then die "the wheel of torch $version lacks \`torch/$file\`"; fi
done
if unresolved=$(ldd "$part/torch/lib/libtorch_cpu.so" | grep 'not found'); then
    die "libtorch does not find all of its libraries: $unresolved"
fi

printf 'torch %s %s\n' "$version" "$flavour" >"$part/scpeft-stamp"
if [ -e "$folder" ] || [ -L "$folder" ]; then mv -T "$folder" "$old"; fi
mv -T "$part" "$folder"
rm -rf "$old"
say "libtorch $version ($flavour) is in \`$folder\`"
