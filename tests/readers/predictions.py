"""Joins predictions to the cells in an AnnData, as a user of scanpy does, and scores them anew."""
import json
import pathlib
import sys

import anndata
import numpy as np
import pandas as pd
import scanpy as sc
from scipy.sparse import csr_matrix
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

output, corpus = map(pathlib.Path, sys.argv[1:])
cells = pd.concat(pd.read_parquet(p) for p in sorted((corpus / "shards").glob("*.parquet"))).set_index("cell_id")
indptr = np.concatenate([[0], cells["genes"].map(len).cumsum()])
counts = csr_matrix((np.concatenate(cells["values"].to_list()), np.concatenate(cells["genes"].to_list()), indptr))
data = anndata.AnnData(counts.astype("float32"), obs=cells[["cell_type"]])

predicted = pd.read_parquet(output / "predictions.parquet").set_index("cell_id").loc[data.obs_names]
data.obs["predicted_type"] = predicted["predicted_type"]
data.obsm["X_scpeft"] = np.stack(predicted["embedding"])
sc.pp.neighbors(data, use_rep="X_scpeft", n_neighbors=5)
truth, guess = data.obs["cell_type"].astype(str), data.obs["predicted_type"].astype(str)
print(json.dumps({
    "cells": data.n_obs,
    "categories": list(predicted["predicted_type"].cat.categories),
    "embedding_shape": data.obsm["X_scpeft"].shape,
    "accuracy": accuracy_score(truth, guess),
    "balanced_accuracy": balanced_accuracy_score(truth, guess),
    "macro_f1": f1_score(truth, guess, average="macro"),
}))
