#!/usr/bin/env python3
"""Prints the scores of every held-out patient as Markdown.

usage: table.py OUT_DIR PATIENT...
"""

import json
import sys
from pathlib import Path

METRICS = ["r2_delta_all", "pearson_delta_all", "mse_all"]


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    out = Path(sys.argv[1])
    for metric in METRICS:
        rows = {}
        for patient in sys.argv[2:]:
            report = json.loads((out / "evaluation" / patient / "report.json").read_text())
            for model in report["models"]:
                name = model["model"].replace(patient, "adapter", 1)
                mean = model["metrics"].get(metric, {}).get("mean")
                rows.setdefault(name, {})[patient] = mean
        if not any(value is not None for row in rows.values() for value in row.values()):
            continue
        print(f"\n`{metric}`\n")
        print("| | " + " | ".join(sys.argv[2:]) + " |")
        print("|---|" + "---|" * (len(sys.argv) - 2))
        for name, row in rows.items():
            shown = ["-" if row.get(p) is None else f"{row[p]:.3f}" for p in sys.argv[2:]]
            print(f"| {name} | " + " | ".join(shown) + " |")


main()
