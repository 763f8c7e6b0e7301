#!/usr/bin/env python3
"""The loader and the importer on synthetic cells, beside what a Python user runs: one table.

usage: run.py WORK_DIR [--cells 200000] [--peers PYTHON] [--repeats 3] [--only CASE,...]

Corpora are made once and reused. Every figure is the median of some runs, each a process of its own; cells
per CPU-second count the time of all its threads. --peers names a Python with torch, anndata, scdataset and
datasets; without it the peers are left out. The server that speaks S3 is moto from `.venv` (`make setup-test`).
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "target/release/scpeft-data"
BUCKET = "cells"


def run(command, env=None):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, env={**os.environ, **(env or {})})
    if done.returncode != 0:
        sys.exit(f"run: error: {' '.join(map(str, command))}\n{done.stderr}")
    return done


def loader_program():
    """The bench is a program that prints one line of JSON."""
    command = ["cargo", "bench", "-p", "scpeft-bench", "--bench", "loader", "--no-run", "--message-format=json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    built = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    programs = [b["executable"] for b in built if b.get("executable") and b["target"]["name"] == "loader"]
    if not programs:
        sys.exit(f"run: error: the bench does not build\n{done.stderr}")
    return programs[-1]


class Bench:
    def __init__(self, options):
        self.options = options
        self.work = Path(options.work)
        self.work.mkdir(parents=True, exist_ok=True)
        self.loader = loader_program()

    def corpus(self, name, *more):
        path = self.work / name
        if not path.exists():
            run([DATA, "synth", "--cells", self.options.cells, "--output", path, *more])
        return path

    def tahoe(self):
        files = self.corpus("tahoe", "--layout", "tahoe")
        path = self.work / "tahoe-index"
        if not path.exists():
            run([DATA, "index", "--preset", "tahoe", "--output", path, files])
        return path

    def measure(self, corpus, case, env=None, **more):
        """Medians of some runs of one case."""
        words = [w for k, v in more.items() for w in (f"--{k.replace('_', '-')}", v)]
        lines = []
        for _ in range(self.options.repeats):
            done = run([self.loader, "--corpus", corpus, "--case", case, *words], env)
            lines.append(json.loads(done.stdout.splitlines()[-1]))
        numbers = [k for k, v in lines[0].items() if isinstance(v, (int, float))]
        return {k: statistics.median(line[k] for line in lines) for k in numbers}


def row(name, found, *, note=""):
    rate = lambda key: f"{found[key]:>11,.0f}" if key in found else " " * 11
    peak = f"{found['peak_mb']:>7,.0f}" if "peak_mb" in found else " " * 7
    print(f"{name:<58}{rate('cells_per_cpu_s')}{rate('cells_per_s')}{peak}  {note}", flush=True)


def streams(bench):
    for name, corpus in (
        ("Tahoe-100M's layout, in place", bench.tahoe()),
        ("list profile", bench.corpus("list")),
        ("packed profile", bench.corpus("packed", "--layout", "packed")),
    ):
        for threads in (1, 2):
            found = bench.measure(corpus, "tokens", threads=threads)
            row(f"{name} -> tokens, 1,200, {threads} thread(s)", found)
    packed = bench.corpus("packed", "--layout", "packed")
    for batch in (64, 256):
        row(f"packed profile -> sparse rows, batch {batch}", bench.measure(packed, "raw", batch=batch))


def buckets(bench):
    packed = bench.corpus("packed", "--layout", "packed")
    for words, name in (({}, "without"), ({"buckets": 1}, "with")):
        found = bench.measure(packed, "tokens", max_len=2048, cells=60_000, **words)
        row(f"packed -> tokens, 2,048, {name} length buckets", found, note=f"padding {100 * found['padding']:.2f} %")


def starts(bench):
    shards = bench.corpus("shards", "--layout", "packed", "--shard-cells", bench.options.cells // 1000, "--row-group-cells", bench.options.cells // 1000)
    for corpus in (shards, bench.corpus("packed", "--layout", "packed"), bench.tahoe()):
        for share in (0.0, 0.5, 0.99):
            found = bench.measure(corpus, "first", **{"from": share})
            row(f"first batch: {corpus.name}, {found['shards']:.0f} shards, from {share:.0%}", {"peak_mb": found["peak_mb"]}, note=f"{found['first_batch_s']:.3f} s")


def memory(bench):
    small = bench.work / "tenth"
    if not small.exists():
        run([DATA, "synth", "--cells", bench.options.cells // 10, "--output", small])
    few = bench.measure(small, "tokens", threads=2)
    many = bench.measure(bench.corpus("list"), "tokens", threads=2)
    row("memory: a tenth of the cells", few)
    row("memory: all cells", many)


def store(bench):
    python = ROOT / ".venv/bin/python"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen([python, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    env = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ALLOW_HTTP": "true", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    packed = bench.corpus("packed", "--layout", "packed")
    upload = """
import boto3, pathlib, sys
client = boto3.client("s3"); client.create_bucket(Bucket=sys.argv[1]); root = pathlib.Path(sys.argv[2])
for file in root.rglob("*"):
    if file.is_file(): client.upload_file(str(file), sys.argv[1], "packed/" + str(file.relative_to(root)))
"""
    try:
        time.sleep(3)
        run([python, "-c", upload, BUCKET, packed], env)
        for threads in (1, 2):
            near = bench.measure(packed, "tokens", threads=threads)
            far = bench.measure(f"s3://{BUCKET}/packed", "tokens", env, threads=threads)
            row(f"packed, local -> tokens, {threads} thread(s)", near)
            share = far["cells_per_s"] / near["cells_per_s"]
            row(f"packed, S3 server beside -> tokens, {threads} thread(s)", far, note=f"{share:.0%} of local")
    finally:
        server.kill()


def imports(bench):
    cells = min(60_000, bench.options.cells)
    h5ad = bench.work / "cells.h5ad"
    if not h5ad.exists():
        run([DATA, "synth", "--cells", cells, "--output", bench.work / "same", "--h5ad", h5ad])
    for name, words in (("list", []), ("packed", ["--profile", "packed"]), ("list, cells in random order", ["--shuffle", "1"])):
        output = bench.work / "imported"
        found = []
        for _ in range(bench.options.repeats):
            command = [DATA, "import", "--input", h5ad, "--output", output, "--overwrite", *words]
            begun = time.time()
            child = subprocess.Popen([str(c) for c in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            _, status, usage = os.wait4(child.pid, 0)
            if status:
                sys.exit("run: error: import failed")
            found.append({"cells_per_cpu_s": cells / (usage.ru_utime + usage.ru_stime), "cells_per_s": cells / (time.time() - begun), "peak_mb": usage.ru_maxrss / 1024})
        row(f"import of CSR h5ad, {name}", {k: statistics.median(f[k] for f in found) for k in found[0]})


def peers(bench):
    if not bench.options.peers:
        return
    h5ad = bench.work / "cells.h5ad"
    if not h5ad.exists():
        sys.exit("run: error: the case `imports` makes the h5ad file of the peers")
    files = bench.tahoe().parent / "tahoe/data"
    script = ROOT / "benches/peers/loaders.py"
    collection = bench.work / "annbatch.zarr"
    done = run([bench.options.peers, script, "--h5ad", h5ad, "--parquet", files, "--collection", collection, "--cells", 20_000, "--repeats", bench.options.repeats], {"HF_DATASETS_OFFLINE": "1", "HF_HOME": str(bench.work / "hf")})
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            found = json.loads(line)
            row(f"peer: {found['loader']}"[:58], found)


CASES = {f.__name__: f for f in (streams, buckets, starts, memory, store, imports, peers)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work")
    parser.add_argument("--cells", type=int, default=200_000)
    parser.add_argument("--peers", help="a Python with torch, anndata, scdataset, datasets, annbatch and zarrs")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default=",".join(CASES), help="cases: " + ", ".join(CASES))
    options = parser.parse_args()
    bench = Bench(options)
    print(f"{'':<58}{'cells/CPU-s':>11}{'cells/s':>11}{'MB':>7}")
    for name in options.only.split(","):
        CASES[name](bench)


if __name__ == "__main__":
    main()
