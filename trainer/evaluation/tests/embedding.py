"""Scores of an embedding by scikit-learn, its graph and the markers of its cell types by scanpy, on the cells
that come with scanpy. Arguments: folder to write to."""

import sys
import warnings
from pathlib import Path

import numpy as np
import scanpy as sc
from safetensors.numpy import save_file
from sklearn.metrics import calinski_harabasz_score, silhouette_samples, silhouette_score

warnings.filterwarnings("ignore")
out = Path(sys.argv[1])
adata = sc.datasets.pbmc68k_reduced()
x = np.ascontiguousarray(adata.obsm["X_pca"].astype(np.float32))
labels = adata.obs["bulk_labels"].cat.codes.to_numpy().astype(np.int64)
batches = adata.obs["phase"].cat.codes.to_numpy().astype(np.int64)

mixed = []
for label in np.unique(labels):
    own = labels == label
    if len(np.unique(batches[own])) > 1:
        mixed.append(np.mean(1 - np.abs(silhouette_samples(x[own], batches[own]))))
sc.pp.neighbors(adata, n_neighbors=15, use_rep="X_pca")
sc.tl.rank_genes_groups(adata, "bulk_labels", method="wilcoxon", tie_correct=True, use_raw=True)
group = adata.obs["bulk_labels"].cat.categories[2]
table = sc.get.rank_genes_groups_df(adata, group).set_index("names").loc[list(adata.raw.var_names)]

expression = adata.raw.X
expression = expression.toarray() if hasattr(expression, "toarray") else np.asarray(expression)
inputs = {"embedding": x, "labels": labels, "batches": batches, "expression": expression.astype(np.float32)}
expected = {
    "silhouette": silhouette_score(x, labels),
    "calinski_harabasz": calinski_harabasz_score(x, labels),
    "asw_batch": np.mean(mixed),
    "degrees": np.asarray(adata.obsp["connectivities"].astype(np.float64).sum(1)).ravel(),
    "score": table["scores"].to_numpy().astype(np.float64),
    "p_value": table["pvals"].to_numpy().astype(np.float64),
}
save_file({k: np.ascontiguousarray(v) for k, v in inputs.items()}, out / "inputs.safetensors")
save_file({k: np.atleast_1d(np.asarray(v)) for k, v in expected.items()}, out / "expected.safetensors")
