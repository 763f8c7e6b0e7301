#!/usr/bin/env bash
# The whole product on 700 real cells: import, pretrain a small backbone on unlabelled cells, freeze
# it, train adapters on two ranks, predict held-out cells, compare. Called by `make demo`, which
# builds first. Everything goes to `demo/`; a step whose result is complete and newer than what it
# was made from is not repeated.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export PATH="$PWD/target/release:$PATH"

cells=demo/10x_pbmc68k_reduced.h5ad
corpus=demo/corpus
backbone=demo/backbone
configs=configs/demo
SECONDS=0

step() { printf '\n== %s\n' "$*"; }
die() {
    printf 'demo: error: %s\n' "$1" >&2
    exit 1
}

# fresh RESULT INPUT...: the result exists and none of the inputs is newer.
fresh() {
    local result=$1 input
    shift
    [ -e "$result" ] || return 1
    for input in "$@"; do
        if [ "$input" -nt "$result" ]; then return 1; fi
    done
}

# train NAME RANKS INPUT...: trains configs/demo/NAME.toml into demo/runs/NAME. An interrupted run is
# resumed; one whose configuration or inputs have changed since it began is repeated.
train() {
    local name=$1 ranks=$2 how=--resume
    local config=$configs/$name.toml record=demo/runs/$name/run.json
    shift 2
    if fresh "$record" "$config" "$@"; then
        if grep -q '"status": "done"' "$record"; then
            echo "already trained: demo/runs/$name"
            return
        fi
    elif [ -e "$record" ]; then
        how=--overwrite
    fi
    scpeft-launch -n "$ranks" -- scpeft-train --config "$config" "$how"
    grep -q '"status": "done"' "$record" || die "\`$record\` does not say that the run is done"
}

# predict NAME: predicts the test cells with the best checkpoint of a run.
predict() {
    local name=$1 output=demo/predictions/$1
    if fresh "$output/metrics.json" "demo/runs/$name/run.json"; then
        echo "already predicted: $output"
        return
    fi
    scpeft-train predict --run "demo/runs/$name" --output "$output" --overwrite
}

step "cells: 700 real PBMCs of 10 types"
deploy/setup/demo-data.sh
if fresh "$corpus/manifest.json" "$cells"; then
    echo "already imported: $corpus"
else
    scpeft-data import --input "$cells" --raw --label bulk_labels \
        --split train=0.7,valid=0.1,test=0.2 --split-seed 0 --output "$corpus" --overwrite
fi
scpeft-data inspect "$corpus"

step "backbone: pretrain on the training cells, without labels"
train pretrain 2 "$corpus/manifest.json"
if fresh "$backbone" demo/runs/pretrain/run.json; then
    echo "already exported: $backbone"
else
    rm -rf "$backbone"
    scpeft-checkpoint export --run demo/runs/pretrain --output "$backbone"
fi

step "LoRA adapters on the frozen backbone, two ranks"
train lora 2 "$backbone" "$corpus/manifest.json"

step "for comparison: the frozen backbone with a head alone"
train head 2 "$backbone" "$corpus/manifest.json"

step "for comparison: full fine-tuning"
train full 2 "$backbone" "$corpus/manifest.json"

step "predict the held-out cells"
for name in lora head full; do predict "$name"; done

step "result, after $SECONDS s"
python3 deploy/demo/table.py demo
