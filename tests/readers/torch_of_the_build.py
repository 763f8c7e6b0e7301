"""`torch` out of `.libtorch`, the wheel that the programs are built against.

Where no NVIDIA driver is, only the CPU's share of its libraries is installed, and torch cannot be
imported: its CUDA half names libraries that are not there. Empty stand-ins of the same names let the
loader go on; nothing in them is ever called, because no CUDA device is found.
"""
import ctypes
import os
import pathlib
import re
import subprocess
import sys
import tempfile

LIBTORCH = pathlib.Path(__file__).resolve().parents[2] / ".libtorch"


def missing():
    """Names of libraries that those of torch need and do not find."""
    found = set()
    for name in ("libtorch_cuda.so", "libtorch_nvshmem.so"):
        library = LIBTORCH / "torch" / "lib" / name
        listed = subprocess.run(["ldd", library], capture_output=True, text=True, check=True).stdout
        found.update(re.findall(r"^\s*(\S+) => not found", listed, re.MULTILINE))
    return sorted(found)


def load():
    """Imports torch."""
    sys.path.append(str(LIBTORCH))
    # Functions are looked up when they are called, which those of the stand-ins never are.
    sys.setdlopenflags(os.RTLD_LAZY)
    with tempfile.TemporaryDirectory() as folder:
        for name in missing():
            path = pathlib.Path(folder) / name
            options = ["-shared", f"-Wl,-soname,{name}", "-x", "c", os.devnull, "-o", path]
            subprocess.run(["cc", *options], check=True)
            ctypes.CDLL(str(path), mode=os.RTLD_GLOBAL | os.RTLD_LAZY)
    import torch

    return torch
