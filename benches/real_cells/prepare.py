#!/usr/bin/env python3
"""Writes the two h5ad files of the report: cells to pretrain on, and labelled cells with five folds.

usage: prepare.py DATA_DIR OUT_DIR [--genes N]

Reads DATA_DIR/NAME/NAME.h5ad for the sets in PRETRAINING and for LABELLED. Writes OUT_DIR/pretrain.h5ad,
OUT_DIR/identify.h5ad and OUT_DIR/genes.txt, all over the same genes: the N symbols that are detected in
the largest share of the pretraining cells, among those that
every set of whole transcriptomes measures. The labelled cells have
no say in that choice but for which genes they measure.

In the labelled cells the columns fold0 to fold4 hold `train`, `valid` and `test`. The test parts are
those of StratifiedKFold(5, shuffle=True, random_state=0), as in the floor; `valid` is a stratified tenth
of the rest. Needs anndata, numpy, scipy, pandas, scikit-learn.
"""

import argparse
import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from sklearn.model_selection import StratifiedKFold, train_test_split

PRETRAINING = ["pbmc4k_soupx", "pbmc_donorA_10x"]
# The genes are chosen on these: the third set came with 1,267 genes only. Its cells have a token for
# each chosen gene among them, which masking and cutting teach a model to live with.
WHOLE = PRETRAINING
LABELLED = "pbmc_facs_zheng2017"
LABEL = "celltype"
FOLDS = 5


def read(folder, name):
    """Counts as float32 CSR, one symbol a column, and obs."""
    path = folder / name / f"{name}.h5ad"
    if not path.is_file():
        sys.exit(f"prepare: error: no `{path}`\nhelp: DATA_DIR holds one folder per data set")
    cells = anndata.read_h5ad(path)
    column = next(name for name in ("gene_symbol", "SYMBOL") if name in cells.var)
    symbols = cells.var[column].astype(str).to_numpy()
    return sp.csr_matrix(cells.X, dtype=np.float32), symbols, cells.obs


def columns(symbols):
    """Symbol -> columns that bear it; the counts of repeated symbols are summed."""
    found = {}
    for column, symbol in enumerate(symbols):
        found.setdefault(symbol, []).append(column)
    return found


def take(counts, symbols, genes):
    """The counts of `genes`, in that order; zeros for those that were not measured."""
    found = columns(symbols)
    rows = [column for gene in genes for column in found.get(gene, [])]
    places = [place for place, gene in enumerate(genes) for _ in found.get(gene, [])]
    shape = (counts.shape[1], len(genes))
    pick = sp.csr_matrix((np.ones(len(rows), np.float32), (rows, places)), shape=shape)
    return sp.csr_matrix(counts @ pick)


def choose(sets, labelled_symbols, number):
    """The symbols with the highest share of cells that express them, each set weighing the same."""
    common = set(labelled_symbols)
    for name in WHOLE:
        common &= set(sets[name][1])
    common = sorted(common)
    if len(common) < number:
        sys.exit(f"prepare: error: {number} genes asked for, {len(common)} are in every whole set")
    shares = [np.asarray((take(*sets[name][:2], common) > 0).mean(axis=0)).ravel() for name in WHOLE]
    order = np.argsort(-np.mean(shares, axis=0), kind="stable")
    return sorted(common[place] for place in order[:number])


def write(path, counts, genes, obs):
    var = pd.DataFrame({"gene_symbol": genes}, index=genes)
    anndata.AnnData(X=counts, obs=obs, var=var).write_h5ad(path, compression="gzip")
    tokens = np.diff(counts.indptr)
    print(
        f"{path.name}: {counts.shape[0]} cells x {counts.shape[1]} genes, expressed genes a cell: "
        f"median {np.median(tokens):.0f}, largest {tokens.max()}"
    )


def pretraining_cells(sets, genes):
    parts = [take(counts, symbols, genes) for counts, symbols, _ in sets.values()]
    obs = pd.concat(
        pd.DataFrame({"set": name}, index=[f"{name}:{cell}" for cell in cells.index])
        for name, (_, _, cells) in sets.items()
    )
    _, valid = train_test_split(np.arange(len(obs)), test_size=0.1, stratify=obs["set"], random_state=0)
    split = np.full(len(obs), "train", dtype=object)
    split[valid] = "valid"
    obs["split"] = split
    return sp.vstack(parts, format="csr"), obs


def folds(labels):
    found = pd.DataFrame({LABEL: labels})
    splits = StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(labels, labels)
    for fold, (rest, test) in enumerate(splits):
        _, valid = train_test_split(rest, test_size=0.1, stratify=labels[rest], random_state=fold)
        split = np.full(len(labels), "train", dtype=object)
        split[valid], split[test] = "valid", "test"
        found[f"fold{fold}"] = split
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--genes", type=int, default=150)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    sets = {name: read(options.data, name) for name in PRETRAINING}
    counts, symbols, obs = read(options.data, LABELLED)
    genes = choose(sets, symbols, options.genes)
    (options.out / "genes.txt").write_text("".join(f"{gene}\n" for gene in genes))

    cells, split = pretraining_cells(sets, genes)
    write(options.out / "pretrain.h5ad", cells, genes, split)

    known = ~obs[LABEL].isna().to_numpy()
    table = folds(obs[LABEL].to_numpy()[known].astype(str))
    table.index = obs.index[known].astype(str)
    write(options.out / "identify.h5ad", take(counts[known], symbols, genes), genes, table)


if __name__ == "__main__":
    main()
