"""Cells per CPU-second and per second of the Python loaders that a user would pick; start-up counts.

Needs torch, anndata, scdataset, datasets, annbatch and zarrs (Python 3.12 or newer). The cells are an h5ad file
(CSR counts), the pre-shuffled collection that annbatch makes of it, which is not timed, and Parquet files in the
layout of Tahoe-100M.
"""

import argparse
import glob
import json
import os
import resource
import statistics
import time

import anndata
import numpy as np
import torch

parser = argparse.ArgumentParser()
parser.add_argument("--h5ad", required=True)
parser.add_argument("--parquet", required=True)
parser.add_argument("--collection", required=True, help="where annbatch's collection is, or will be made: NAME.zarr")
parser.add_argument("--cells", type=int, default=60_000)
parser.add_argument("--repeats", type=int, default=3)
parser.add_argument("--max-len", type=int, default=1200)
options = parser.parse_args()
torch.set_num_threads(1)


def cpu_seconds():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def measure(name, batches):
    """Medians over some passes; `batches` makes an iterator over sizes of batches."""
    rates = []
    for _ in range(options.repeats):
        cpu, wall, cells = cpu_seconds(), time.time(), 0
        for size in batches():
            cells += size
            if cells >= options.cells:
                break
        rates.append((cells / (cpu_seconds() - cpu), cells / (time.time() - wall)))
    per_cpu, per_second = (statistics.median(rate) for rate in zip(*rates))
    print(json.dumps({"loader": name, "cells_per_cpu_s": per_cpu, "cells_per_s": per_second}), flush=True)


def scdataset():
    from scdataset import BlockShuffling, scDataset

    backed = anndata.read_h5ad(options.h5ad, backed="r")

    def matrix(part):
        return (part.to_memory() if hasattr(part, "to_memory") else part).X

    def batches():
        cells = scDataset(backed, BlockShuffling(block_size=64), batch_size=64, fetch_factor=256, fetch_transform=matrix)
        return (batch.shape[0] for batch in torch.utils.data.DataLoader(cells, batch_size=None))

    measure("scDataset, block 64, fetch 256, sparse rows", batches)


def annbatch_loader():
    import annbatch
    import zarr

    workers = {"threading.max_workers": 1, "codec_pipeline.chunk_concurrent_maximum": 1}
    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", **workers})
    if not os.path.exists(options.collection):
        annbatch.DatasetCollection(options.collection).add_adatas([options.h5ad])

    for size in (64, 256):

        def batches():
            loader = annbatch.Loader(batch_size=size, chunk_size=32, preload_nchunks=256, shuffle=True, preload_to_gpu=False, to="torch")
            loader.use_collection(annbatch.DatasetCollection(options.collection, mode="r"))
            return (batch["X"].shape[0] for batch in loader)

        measure(f"annbatch, pre-shuffled zarr, sparse rows of {size}", batches)


def hugging_face():
    from datasets import load_dataset

    files = sorted(glob.glob(options.parquet + "/**/*.parquet", recursive=True))

    def batches():
        stream = load_dataset("parquet", data_files=files, split="train", streaming=True)
        stream = stream.select_columns(["genes", "expressions"]).shuffle(seed=1, buffer_size=1000)
        loader = torch.utils.data.DataLoader(stream.with_format("numpy"), batch_size=64, collate_fn=list)
        return (len(batch) for batch in loader)

    measure("HF datasets, streaming, shuffle 1,000, no tokens", batches)


def collator():
    """Bins by quantiles with random ties, a sample of genes, a class token, padding: cells are in memory."""
    counts = anndata.read_h5ad(options.h5ad).X.tocsr()
    bounds = zip(counts.indptr[: options.cells], counts.indptr[1 : options.cells + 1])
    cells = [(counts.indices[a:b].astype(np.int64), counts.data[a:b]) for a, b in bounds]
    places = options.max_len - 1

    def tokens(genes, values, rng):
        edges = np.quantile(values, np.linspace(0, 1, 50))
        low, high = np.digitize(values, edges), np.digitize(values, edges, right=True)
        bins = np.ceil(rng.random(len(values)) * (high - low) + low)
        if len(genes) > places:
            chosen = rng.permutation(len(genes))[:places]
            genes, bins = genes[chosen], bins[chosen]
        ids, binned = np.zeros(options.max_len, np.int64), np.full(options.max_len, -2, np.float32)
        ids[0], binned[0] = 1, 0
        ids[1 : len(genes) + 1], binned[1 : len(genes) + 1] = genes, bins
        return torch.from_numpy(ids), torch.from_numpy(binned)

    def batches():
        rng = np.random.default_rng(0)
        while True:
            order = rng.permutation(len(cells))
            for first in range(0, len(order) - 63, 64):
                ids, binned = zip(*(tokens(*cells[cell], rng) for cell in order[first : first + 64]))
                torch.stack(ids), torch.stack(binned)
                yield 64

    measure(f"scGPT-style collator in memory, tokens, {options.max_len}", batches)


scdataset()
annbatch_loader()
hugging_face()
collator()
