"""Writes an AnnData with something of everything, lets `scpeft-data export` add to it, and compares.

Arguments: the program, a folder of predictions, a folder of embeddings, a folder to work in."""
import json
import pathlib
import subprocess
import sys

import anndata
import numpy as np
import pandas as pd
import scanpy as sc
from scipy.sparse import csr_matrix

program, predictions, embeddings, work = map(pathlib.Path, sys.argv[1:])
rng = np.random.default_rng(0)
n, genes = 130, 30
obs = pd.DataFrame({
    "kind": pd.Categorical(rng.choice(["a", "b", "c"], n)),
    "depth": rng.integers(0, 1000, n),
    "share": rng.random(n),
    "kept": rng.random(n) < 0.5,
    "maybe": pd.array([None if i % 7 == 0 else i for i in range(n)], dtype="Int64"),
}, index=[f"cell-{i}" for i in rng.permutation(n)])
data = anndata.AnnData(
    csr_matrix(rng.poisson(0.4, (n, genes)).astype("float32")), obs=obs,
    var=pd.DataFrame({"length": rng.integers(1, 9, genes)}, index=[f"G{i}" for i in range(genes)]))
data.raw = data.copy()
data.layers["dense"] = rng.random((n, genes))
data.obsm["X_pca"] = rng.random((n, 5))
data.obsm["frame"] = pd.DataFrame({"x": rng.random(n)}, index=data.obs_names)
data.varm["PCs"] = rng.random((genes, 5))
data.obsp["distances"] = csr_matrix(rng.random((n, n)) > 0.97).astype("float64")
data.uns["deep"] = {"list": np.array(["u", "v"]), "number": 3, "inner": {"array": np.arange(4)}}
data.write_h5ad(work / "cells.h5ad", compression="gzip")

subprocess.run([program, "export", "--input", work / "cells.h5ad", "--table", predictions,
                "--table", f"unit={embeddings}", "--output", work / "annotated.h5ad"],
               check=True, stdout=subprocess.DEVNULL)
found = sc.read_h5ad(work / "annotated.h5ad")


def same(a, b):
    if hasattr(a, "toarray"):
        return type(a) is type(b) and (a != b).nnz == 0 and a.dtype == b.dtype
    if isinstance(a, pd.DataFrame):
        return a.equals(b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return bool(np.array_equal(a, b)) and np.asarray(a).dtype == np.asarray(b).dtype


before = sc.read_h5ad(work / "cells.h5ad")
old = list(before.obs.columns)
assert list(found.obs.columns)[:len(old)] == old
assert found.obs[old].equals(before.obs) and found.obs_names.equals(before.obs_names)
assert found.var.equals(before.var) and same(before.X, found.X) and same(before.raw.X, found.raw.X)
for part in ("layers", "obsm", "varm", "obsp"):
    for key in getattr(before, part):
        assert same(getattr(before, part)[key], getattr(found, part)[key]), (part, key)
assert same(dict(before.uns), {k: found.uns[k] for k in before.uns})

table = pd.read_parquet(predictions / "predictions.parquet").set_index("cell_id")
names = found.obs_names.intersection(table.index)
there, missing = found[names], found[~found.obs_names.isin(names)]
assert (there.obs["scpeft_predicted_type"].astype(str) == table.loc[names, "predicted_type"].astype(str)).all()
assert missing.obs["scpeft_predicted_type"].isna().all() and np.isnan(missing.obsm["X_scpeft"]).all()
assert np.array_equal(there.obsm["X_scpeft"], np.stack(table.loc[names, "embedding"]))
classes = [str(c) for c in found.uns["scpeft"]["predictions"]["probability_classes"]]
wanted = table.loc[names, [f"probability:{c}" for c in classes]].to_numpy()
assert np.array_equal(there.obsm["X_scpeft_probability"], wanted)
unit = pd.read_parquet(embeddings / "embeddings.parquet").set_index("cell_id")
assert np.array_equal(there.obsm["X_unit"], np.stack(unit.loc[names, "embedding"]))
sc.pp.neighbors(there.copy(), use_rep="X_scpeft", n_neighbors=5)
# anndata itself writes it again, and nothing of it is a legacy form.
found.write_h5ad(work / "again.h5ad")
print(json.dumps({
    "cells": len(names), "missing": missing.n_obs, "classes": classes,
    "added": [c for c in found.obs.columns if c not in old],
    "obsm": sorted(set(found.obsm) - set(before.obsm)),
}))
