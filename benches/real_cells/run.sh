#!/usr/bin/env bash
# Cell-type identification on real cells: prepares, imports, pretrains one backbone, trains every way of
# identification in five folds, predicts the test cells of each, and prints the table.
#
# usage: run.sh DATA_DIR OUT_DIR
#
#   BIN=DIR     the programs                   [default: target/release of this checkout]
#   PYTHON=EXE  Python with scanpy's packages  [default: .venv/bin/python of this checkout]
#   JOBS=N      trainings at a time            [default: 1]
#   WAYS="..."  what to train                  [default: encoder lora hybrid head full scratch]
#   FOLDS="..."                                [default: 0 1 2 3 4]
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
jobs=${JOBS:-1}
read -r -a ways <<<"${WAYS:-encoder lora hybrid head full scratch}"
read -r -a folds <<<"${FOLDS:-0 1 2 3 4}"
[ -d "$data" ] || die "no folder \`$data\`"
[ -x "$bin/scpeft-train" ] || die "no \`$bin/scpeft-train\`
help: run \`make\`, or set BIN"
mkdir -p "$out/cpu" "$out/logs"

# measured NAME COMMAND...: runs, logs, and adds the CPU-seconds (user, system) to cpu/NAME.
measured() {
    local name=$1 TIMEFORMAT='%U %S' status=0
    shift
    { time "$@" >>"$out/logs/$name" 2>&1; } 2>>"$out/cpu/$name" || status=$?
    [ "$status" -eq 0 ] || tail -n 20 "$out/logs/$name" >&2
    return "$status"
}

finished() { grep -qs '"status": "done"' "$1/run.json"; }

# import CELLS [OPTION...]: makes the corpus of an h5ad file.
import() {
    local cells=$1
    shift
    [ -e "$out/$cells/manifest.json" ] && return
    "$bin/scpeft-data" import --input "$out/$cells.h5ad" --output "$out/$cells" --overwrite "$@"
}

# train NAME CONFIG KEY=VALUE...
train() {
    local name=$1 config=$2 setting
    shift 2
    finished "$out/runs/$name" && return
    local -a settings=()
    for setting in "$@"; do settings+=(--set "$setting"); done
    measured "$name" "$bin/scpeft-train" --config "$here/$config.toml" --resume --progress json \
        --set "run.dir=$out/runs/$name" --set run.threads=1 --set run.device=cpu "${settings[@]}"
    printf 'trained %s\n' "$name"
}

# identify WAY FOLD: trains and predicts the test cells.
identify() {
    local way=$1 fold=$2
    local name=$way-fold$fold
    local -a settings=("data.corpus=$out/identify" "data.split_column=fold$fold" "run.seed=$fold")
    [ "$way" = scratch ] || settings+=("backbone.path=$out/backbone")
    train "$name" "$way" "${settings[@]}"
    [ -e "$out/predictions/$name/metrics.json" ] && return
    "$bin/scpeft-train" predict --run "$out/runs/$name" --output "$out/predictions/$name" \
        --overwrite >>"$out/logs/$name" 2>&1
}

if [ ! -e "$out/identify.h5ad" ]; then
    "$python" "$here/prepare.py" "$data" "$out" | tee "$out/prepare.txt"
fi
import pretrain
import identify --label celltype

if [ ! -e "$out/backbone" ] && [ "${ways[*]}" != scratch ]; then
    train pretrain pretrain "data.corpus=$out/pretrain"
    "$bin/scpeft-checkpoint" export --run "$out/runs/pretrain" --output "$out/backbone"
fi

failed=0
for fold in "${folds[@]}"; do
    for way in "${ways[@]}"; do
        while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n || failed=1; done
        identify "$way" "$fold" &
    done
done
while [ -n "$(jobs -rp)" ]; do wait -n || failed=1; done
[ "$failed" -eq 0 ] || die "a training or prediction failed
help: see $out/logs; the same command continues"

if [ ! -e "$out/floor.json" ]; then
    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 "$python" "$here/floor.py" "$data" "$out" >"$out/floor.json.part"
    mv "$out/floor.json.part" "$out/floor.json"
fi
"$python" "$here/table.py" "$out" | tee "$out/table.md"
