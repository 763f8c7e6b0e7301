#!/usr/bin/env python3
"""Prints the demo's comparison from what the runs and predictions left on disk.

usage: table.py DEMO_FOLDER

Reads runs/NAME/run.json, runs/NAME/BEST, the size of the checkpoint that it names, and
predictions/NAME/metrics.json for NAME in lora, head, full. Needs only Python's standard library.
"""

import json
import sys
from pathlib import Path

WAYS = [
    ("lora", "LoRA adapters + head"),
    ("head", "frozen backbone + head"),
    ("full", "full fine-tuning"),
]
HEADER = ["", "trainable", "share", "on disk", "seconds", "accuracy", "macro F1"]


def load(path):
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        sys.exit(f"table: error: no `{path}`\nhelp: run `make demo`")
    except json.JSONDecodeError as error:
        sys.exit(f"table: error: `{path}`, line {error.lineno}: {error.msg}")


def size(count):
    """Bytes for people, in decimal units."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def adapter_bytes(run):
    """Size of the tensors of the best checkpoint: all that a trained run adds to its backbone."""
    best = (run / "BEST").read_text().strip()
    return (run / "checkpoints" / best / "adapter" / "adapter_model.safetensors").stat().st_size


def majority(scores):
    """Accuracy and macro F1 of always answering the most frequent type."""
    counts = [one["cells"] for one in scores["per_type"] if one["cells"] > 0]
    accuracy = max(counts) / sum(counts)
    # Of the majority type precision is the accuracy and recall is 1; every other F1 is 0.
    return accuracy, 2 * accuracy / (1 + accuracy) / len(counts)


def rows(demo):
    first = load(demo / "predictions" / WAYS[0][0] / "metrics.json")
    accuracy, macro_f1 = majority(first)
    yield ["majority class", "0", "", "", "", f"{accuracy:.3f}", f"{macro_f1:.3f}"]
    for name, title in WAYS:
        run = demo / "runs" / name
        record = load(run / "run.json")
        scores = load(demo / "predictions" / name / "metrics.json")
        trainable, total = record["trainable_parameters"], record["total_parameters"]
        yield [
            title,
            f"{trainable:,}",
            f"{100 * trainable / total:.2f} %",
            size(adapter_bytes(run)),
            f"{record['seconds']:.1f}",
            f"{scores['accuracy']:.3f}",
            f"{scores['macro_f1']:.3f}",
        ]


def render(lines):
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for index, line in enumerate(lines):
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:])]
        yield "  ".join(cells).rstrip()
        if index == 0:
            yield "  ".join("-" * width for width in widths)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__.strip())
    demo = Path(sys.argv[1])
    scores = load(demo / "predictions" / "lora" / "metrics.json")
    peak = max(load(demo / "runs" / "lora" / "run.json")["peak_rss_bytes_per_rank"])
    text = "\n".join(render([HEADER, *rows(demo)]))
    print(f"{scores['cells']} held-out cells, {len(scores['per_type'])} types\n\n{text}\n")
    print(f"peak memory of a rank (LoRA): {size(peak)}")
    print(f"confusion matrix: {demo / 'predictions' / 'lora' / 'confusion_matrix.svg'}")


if __name__ == "__main__":
    main()
