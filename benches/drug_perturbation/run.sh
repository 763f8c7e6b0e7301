#!/usr/bin/env bash
# Responses to panobinostat with a held-out patient as the context never seen: prepares, imports, pretrains one
# small backbone, trains the adapter once for every patient, and evaluates each run beside the baselines.
#
# usage: run.sh DATA_DIR OUT_DIR
#
#   BIN=DIR         the programs                   [default: target/release of this checkout]
#   PYTHON=EXE      Python with anndata, pyarrow   [default: .venv/bin/python of this checkout]
#   PATIENTS="..."  who is held out in turn        [default: PW030 PW032 PW034 PW036 PW040]
#
# Every training has one thread. What is finished is not repeated; what was interrupted is resumed.
set -euo pipefail

die() {
    printf 'run: error: %s\n' "$1" >&2
    exit 1
}

[ $# -eq 2 ] || die "expected two arguments
help: run.sh DATA_DIR OUT_DIR"
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
data=$1
out=$2
bin=${BIN:-$root/target/release}
python=${PYTHON:-$root/.venv/bin/python}
read -r -a patients <<<"${PATIENTS:-PW030 PW032 PW034 PW036 PW040}"
[ -d "$data" ] || die "no folder \`$data\`"
[ -x "$bin/scpeft-train" ] || die "no \`$bin/scpeft-train\`
help: run \`make\`, or set BIN"
mkdir -p "$out/runs" "$out/logs"

finished() { grep -qs '"status": "done"' "$1/run.json"; }

# train NAME CONFIG KEY=VALUE...
train() {
    local name=$1 config=$2 setting
    shift 2
    finished "$out/runs/$name" && return
    local -a settings=()
    for setting in "$@"; do settings+=(--set "$setting"); done
    "$bin/scpeft-train" --config "$here/$config.toml" --resume --progress json \
        --set "run.dir=$out/runs/$name" --set run.threads=1 --set run.device=cpu "${settings[@]}" \
        >>"$out/logs/$name" 2>&1 || { tail -n 20 "$out/logs/$name" >&2; return 1; }
    printf 'trained %s\n' "$name"
}

if [ ! -e "$out/treated.h5ad" ]; then
    "$python" "$here/prepare.py" "$data" "$out"
fi
for cells in pretrain treated; do
    [ -e "$out/$cells/manifest.json" ] ||
        "$bin/scpeft-data" import --input "$out/$cells.h5ad" --output "$out/$cells" --overwrite
done
if [ ! -e "$out/backbone" ]; then
    train pretrain pretrain "data.corpus=$out/pretrain"
    "$bin/scpeft-checkpoint" export --run "$out/runs/pretrain" --output "$out/backbone"
fi
for patient in "${patients[@]}"; do
    train "$patient" drug "data.corpus=$out/treated" "data.split_column=$patient" \
        "backbone.path=$out/backbone" "perturbation.molecules=$out/molecules.parquet"
    [ -e "$out/evaluation/$patient/report.json" ] || "$bin/scpeft-train" evaluate --run "$out/runs/$patient" \
        --max-cells 500 --output "$out/evaluation/$patient" >>"$out/logs/$patient" 2>&1
done
"$python" "$here/table.py" "$out" "${patients[@]}" | tee "$out/table.md"
