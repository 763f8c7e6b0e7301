#!/usr/bin/env python3
"""Prints the report's tables, as Markdown, from what `run.sh` and `floor.py` left on disk.

usage: table.py OUT_DIR

Means and standard deviations (n) over the folds that are there; the number of folds is in the table.
Needs only Python's standard library.
"""

import json
import statistics
import sys
from pathlib import Path

WAYS = [
    ("encoder", "ENCODER + head"),
    ("lora", "LoRA + head"),
    ("hybrid", "HYBRID + head"),
    ("head", "head alone"),
    ("full", "full fine-tuning"),
    ("scratch", "from scratch"),
]
FLOORS = [
    ("variable genes", "floor: 2,000 variable genes"),
    ("same genes", "logistic regression, same genes, 50 components"),
    ("same genes, all", "logistic regression, same genes, all values"),
]
SCORES = ["macro_f1", "balanced_accuracy", "accuracy"]


def load(path):
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        sys.exit(f"table: error: no `{path}`\nhelp: run `run.sh`")


def spread(values):
    return f"{statistics.fmean(values):.3f} ± {statistics.pstdev(values):.3f}"


def cpu_seconds(path):
    """User plus system seconds, over all starts of a run."""
    return sum(float(word) for word in path.read_text().split())


def trained(out, way):
    """One entry a fold that is finished."""
    for place in sorted((out / "predictions").glob(f"{way}-fold*/metrics.json")):
        name = place.parent.name
        run = out / "runs" / name
        best = run / "checkpoints" / (run / "BEST").read_text().strip()
        scores = load(place)
        yield {
            **{score: scores[score] for score in SCORES},
            "f1": {one["cell_type"]: one["f1"] for one in scores["per_type"]},
            "trainable": load(run / "run.json")["trainable_parameters"],
            "bytes": (best / "adapter" / "adapter_model.safetensors").stat().st_size,
            "cpu": cpu_seconds(out / "cpu" / name),
        }


def markdown(header, rows):
    yield "| " + " | ".join(header) + " |"
    yield "|---" * len(header) + "|"
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def summary(found, floors):
    for title, folds in floors.items():
        yield [title, str(len(folds)), *(spread([f[s] for f in folds]) for s in SCORES), "", "", ""]
    for title, folds in found.items():
        yield [
            title,
            str(len(folds)),
            *(spread([f[s] for f in folds]) for s in SCORES),
            f"{folds[0]['trainable']:,}",
            f"{folds[0]['bytes'] / 1000:.0f} kB",
            f"{statistics.fmean(f['cpu'] for f in folds):.0f}",
        ]


def per_type(both):
    for one in sorted(next(iter(both.values()))[0]["f1"]):
        yield [one, *(f"{statistics.fmean(f['f1'][one] for f in folds):.2f}" for folds in both.values())]


def pretraining(out):
    for line in (out / "runs" / "pretrain" / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if entry["kind"] == "eval":
            values = [entry[key] for key in ("loss", "gep_mse", "gepc_mse")]
            yield [str(entry["epoch"] + 1), str(entry["step"]), *(f"{v:.3f}" for v in values)]


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__.strip())
    out = Path(sys.argv[1])
    scored = load(out / "floor.json")
    floors = {title: scored[key] for key, title in FLOORS}
    found = {title: list(trained(out, way)) for way, title in WAYS}
    found = {title: folds for title, folds in found.items() if folds}
    header = ["", "folds", "macro F1", "balanced accuracy", "accuracy"]
    header += ["trainable", "adapter file", "CPU-seconds"]
    print(*markdown(header, summary(found, floors)), "", sep="\n")
    both = {**floors, **found}
    print(*markdown(["F1", *both], per_type(both)), "", sep="\n")
    if (out / "runs" / "pretrain").is_dir():
        header = ["epoch", "step", "loss", "from the token (MSE)", "from the cell (MSE)"]
        print(*markdown(header, pretraining(out)), "", sep="\n")
        print(f"pretraining: {cpu_seconds(out / 'cpu' / 'pretrain'):.0f} CPU-seconds")


if __name__ == "__main__":
    main()
