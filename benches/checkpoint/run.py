#!/usr/bin/env python3
"""How long a checkpoint holds training up, and how long it takes to be written and verified.

usage: run.py WORK_DIR [--saves 80] [--every 4] [--ranks 1] [--programs target/release]

A real run of `scpeft-train` with encoder adapters of 1.58 million trainable parameters in a random
backbone of scGPT's width, on synthetic cells, saves every few steps. Its debug log says for each save how
long the loop waited for the one before and how long the copy took. Prints a Markdown table.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
[run]
dir = "{run}"
device = "cpu"
[data]
corpus = "{corpus}"
label = "plate"
split_column = "moa-fine"
train = "mechanism 02"
valid = "unclear"
max_len = 33
[backbone]
init = "random"
[backbone.shape]
d_model = 512
n_heads = 8
d_hid = 512
n_layers = 8
[adapter]
kind = "encoder"
layers = "all"
[task]
kind = "identification"
[train]
epochs = 1000
max_steps = {steps}
batch_cells = 8
[checkpoint]
every_steps = {every}
[metrics]
port = 0
"""


def run(command, env=None):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, env={**os.environ, **(env or {})})
    if done.returncode != 0:
        sys.exit(f"run: error: {' '.join(map(str, command))}\n{done.stderr}")
    return done


def row(name, values, unit="ms"):
    values = sorted(values)
    at = lambda share: values[min(len(values) - 1, int(share * len(values)))]
    mean = statistics.mean(values)
    cells = f"{mean:.1f} | {at(0.5):.1f} | {at(0.95):.1f} | {values[-1]:.1f}"
    over = sum(v > 20 for v in values)
    print(f"| {name}, {unit} | {len(values)} | {cells} | {over} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work")
    parser.add_argument("--saves", type=int, default=80)
    parser.add_argument("--every", type=int, default=4)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--programs", type=Path, default=ROOT / "target/release")
    options = parser.parse_args()
    programs = options.programs.resolve()
    work = Path(options.work)
    work.mkdir(parents=True, exist_ok=True)
    corpus = work / "corpus"
    if not corpus.exists():
        run([programs / "scpeft-data", "synth", "--cells", 4000, "--genes", 500, "--nonzeros", 100, "--output", corpus])
    steps = options.saves * options.every
    config = work / "config.toml"
    config.write_text(CONFIG.format(run=work / "run", corpus=corpus, steps=steps, every=options.every))
    train = [programs / "scpeft-train", "--config", config, "--overwrite"]
    if options.ranks > 1:
        train = ["mpirun", "--oversubscribe", "--bind-to", "none", "-n", options.ranks, *train]
    done = run(train, {"SCPEFT_LOG": "info,scpeft_trainer=debug"})
    find = lambda key: [float(x) for x in re.findall(rf"\b{key}=([0-9.e+-]+)", done.stderr)]
    waited, copied = find("waited_ms"), find("copied_ms")
    latest = work / "run/checkpoints" / (work / "run/LATEST").read_text().strip()
    verified = []
    for _ in range(5):
        begun = time.monotonic()
        run([programs / "scpeft-checkpoint", "verify", latest])
        verified.append(1e3 * (time.monotonic() - begun))
    size = sum(f.stat().st_size for f in latest.rglob("*") if f.is_file())
    print(f"{size / 1e6:.1f} MB a checkpoint\n")
    print("| | n | mean | median | 95 % | longest | above 20 |")
    print("|---|---|---|---|---|---|---|")
    row("stall", [w + c for w, c in zip(waited, copied)])
    row("of it waiting for the save before", waited)
    row("of it copying", copied)
    row("write, read back, rename, prune", find("write_ms"))
    row("verify, a process of its own", verified)


if __name__ == "__main__":
    main()
