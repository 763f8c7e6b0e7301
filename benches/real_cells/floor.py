#!/usr/bin/env python3
"""Scores logistic regressions on the folds of the report, as JSON on standard output.

usage: floor.py DATA_DIR OUT_DIR

Three of them, each fitted inside its fold on everything but the test cells:
  variable genes   log1p(CP10k), the 2,000 genes with the highest variance to mean ratio in the fold's
                   training cells, 50 components, logistic regression
  same genes       the same on the genes of OUT_DIR/genes.txt, with all counts of a cell for its total
  same genes, all  the log values of those genes themselves, no components

They use the validation cells for fitting too, since they select nothing with them.
"""

import json
import sys
from pathlib import Path

import anndata
import numpy as np
import scipy.sparse as sp
from sklearn.decomposition import TruncatedSVD
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

SET, LABEL = "pbmc_facs_zheng2017", "celltype"


def components():
    svd = TruncatedSVD(50, random_state=0)
    return make_pipeline(svd, StandardScaler(), LogisticRegression(max_iter=2000))


def plain():
    return LogisticRegression(C=0.02, max_iter=2000)


def variable(x):
    mean = np.asarray(x.mean(axis=0)).ravel()
    variance = np.asarray(x.power(2).mean(axis=0)).ravel() - mean**2
    return np.argsort(-variance / np.maximum(mean, 1e-3))[:2000]


def score(x, y, model, genes):
    """Accuracy, balanced accuracy, macro F1 and F1 of each type, one row a fold."""
    rows = []
    types = sorted(set(y))
    for train, test in StratifiedKFold(5, shuffle=True, random_state=0).split(x, y):
        chosen = variable(x[train]) if genes is None else genes
        found = model().fit(x[train][:, chosen], y[train]).predict(x[test][:, chosen])
        each = f1_score(y[test], found, average=None, labels=types)
        rows.append(
            {
                "accuracy": accuracy_score(y[test], found),
                "balanced_accuracy": balanced_accuracy_score(y[test], found),
                "macro_f1": float(np.mean(each)),
                "f1": dict(zip(types, map(float, each))),
            }
        )
    return rows


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__.strip())
    data, out = map(Path, sys.argv[1:])
    cells = anndata.read_h5ad(data / SET / f"{SET}.h5ad")
    cells = cells[~cells.obs[LABEL].isna().to_numpy()]
    y = cells.obs[LABEL].astype(str).to_numpy()
    x = sp.csr_matrix(cells.X, dtype=np.float32)
    x = sp.csr_matrix(x.multiply(1e4 / np.maximum(np.asarray(x.sum(axis=1)), 1)))
    x.data = np.log1p(x.data)
    chosen = set((out / "genes.txt").read_text().split("\n"))
    symbols = cells.var["gene_symbol"].astype(str)
    same = [column for column, symbol in enumerate(symbols) if symbol in chosen]
    found = {
        "variable genes": score(x, y, components, None),
        "same genes": score(x, y, components, same),
        "same genes, all": score(x, y, plain, same),
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
