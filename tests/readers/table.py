"""Reads `metrics.csv` with pandas and prints, for each split and metric, its steps and values."""

import json
import sys

import pandas as pd

# The default of pandas is faster and may miss the last bit.
table = pd.read_csv(sys.argv[1], float_precision="round_trip")
assert str(table["value"].dtype) == "float64", table.dtypes
found = {}
for (split, metric), rows in table.groupby(["split", "metric"]):
    found[f"{split}/{metric}"] = list(zip(rows["step"].tolist(), rows["value"].tolist()))
json.dump(found, sys.stdout)
