#!/usr/bin/env python3
"""Writes the h5ad files of the report: cells to pretrain on, and treated cells with one split a patient.

usage: prepare.py DATA_DIR OUT_DIR

Reads DATA_DIR/NAME/NAME.h5ad. Both files have the genes of the treated cells. The pretraining file holds the
vehicle cells of all patients, as zero-shot lets a model see the control cells of the held-out context, and blood
cells. In the treated cells the column PATIENT holds `test` for that patient, `valid` for the next one in
order, and `train` for the others. The table of molecules has a fingerprint of panobinostat and of the vehicle.
Needs anndata, numpy, scipy, pandas, pyarrow.
"""

import hashlib
import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

TREATED = "glioblastoma_panobinostat"
BLOOD = {"pbmc4k_soupx": "gene_symbol", "pbmc_donorA_10x": "gene_symbol", "pbmc_facs_zheng2017": "gene_symbol"}
SMILES = {"ctrl": "CS(C)=O", "panobinostat": "CC1=C(C2=CC=CC=C2N1)CCNCC3=CC=C(C=C3)/C=C/C(=O)NO"}
BITS = 64


def fingerprint(smiles):
    """Hashed runs of one to four characters: two molecules need no chemistry, only to be different."""
    bits = np.zeros(BITS, dtype=np.float32)
    for length in range(1, 5):
        for at in range(len(smiles) - length + 1):
            digest = hashlib.blake2b(smiles[at : at + length].encode(), digest_size=4).digest()
            bits[int.from_bytes(digest, "little") % BITS] = 1.0
    return bits


def on_genes(cells, symbols, genes):
    """Counts of `cells` on `genes`; those that were not measured are zero."""
    place = {symbol: column for column, symbol in reversed(list(enumerate(symbols)))}
    columns = [place.get(gene) for gene in genes]
    known = [c for c in columns if c is not None]
    picked = sp.csc_matrix(cells.X)[:, known]
    spread = sp.csr_matrix(
        (np.ones(len(known)), (range(len(known)), [i for i, c in enumerate(columns) if c is not None])),
        shape=(len(known), len(genes)),
    )
    return sp.csr_matrix(picked @ spread)


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    data, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    treated = anndata.read_h5ad(data / TREATED / f"{TREATED}.h5ad")
    genes = treated.var["symbol"].astype(str).tolist()
    var = pd.DataFrame(index=genes)
    patients = sorted(treated.obs["patient_id"].astype(str).unique())
    obs = treated.obs[["patient_id", "condition", "sample_id"]].astype(str)
    for place, patient in enumerate(patients):
        following = patients[(place + 1) % len(patients)]
        parts = obs["patient_id"].map(lambda own: {patient: "test", following: "valid"}.get(own, "train"))
        obs[patient] = pd.Categorical(parts, categories=["train", "valid", "test"])
    for column in ["patient_id", "condition", "sample_id"]:
        obs[column] = pd.Categorical(obs[column])
    counts = sp.csr_matrix(treated.X).astype(np.float32)
    anndata.AnnData(X=counts, obs=obs, var=var).write_h5ad(out / "treated.h5ad")

    parts = [counts[(obs["condition"] == "ctrl").to_numpy()]]
    names = ["glioblastoma"] * parts[0].shape[0]
    for name, column in BLOOD.items():
        cells = anndata.read_h5ad(data / name / f"{name}.h5ad")
        own = on_genes(cells, cells.var[column].astype(str).tolist(), genes)
        # A cell that expresses few of these genes teaches little.
        own = own[np.diff(own.indptr) >= 30]
        parts.append(own)
        names += [name] * own.shape[0]
    generator = np.random.default_rng(0)
    split = np.where(generator.random(len(names)) < 0.1, "valid", "train")
    obs = pd.DataFrame({"source": pd.Categorical(names), "split": pd.Categorical(split)})
    obs.index = [f"cell-{i}" for i in range(len(names))]
    cells = sp.vstack(parts).tocsr().astype(np.float32)
    anndata.AnnData(X=cells, obs=obs, var=var).write_h5ad(out / "pretrain.h5ad")

    table = pd.DataFrame(
        {
            "name": list(SMILES),
            "smiles": list(SMILES.values()),
            "embedding": [fingerprint(smiles).tolist() for smiles in SMILES.values()],
        }
    )
    table.to_parquet(out / "molecules.parquet")
    print(f"{len(genes)} genes; {cells.shape[0]} cells to pretrain on, {counts.shape[0]} treated and vehicle cells")


main()
