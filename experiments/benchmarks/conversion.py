"""Peak memory of converting a checkpoint that memory would not hold, beside its size.

    python -m experiments.benchmarks.conversion [--layers 32] [--format int4_g128] [--folder /tmp]

Writes a bfloat16 checkpoint of Llama-3-8B's shapes (16 GB at 32 layers, as files with holes: their zeros take no space
on disk but are read like any others), converts it by `python -m qjax.io` in a process of its own, and prints that
process's peak resident memory. Goal: under 4 GB. Needs the space of the result, 5.7 GB at 32 layers.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from qjax.io.tensors import shards, write_index
from qjax.models import Architecture
from qjax.models.configuration import write_config
from qjax.models.safetensors import hf_name

SHARD = 5 * 10**9


def architecture(layers: int) -> Architecture:
    """Llama-3-8B's shapes, with so many layers."""
    return Architecture(
        vocab=128256, width=4096, layers=layers, heads=32, kv_heads=8, head_dim=128, ffn=14336, theta=5e5, tied=False
    )


def write(folder: Path, arch: Architecture) -> int:
    """A checkpoint of zeros in files with holes; its bytes."""
    shapes = {hf_name(path): shape[::-1] if path != "embed" else shape for path, shape in arch.shapes.items()}
    sizes = {name: 2 * math.prod(shape) for name, shape in shapes.items()}
    groups = shards(sizes, SHARD)
    for file, group in groups.items():
        header, offset = {}, 0
        for name in group:
            end = offset + sizes[name]
            header[name] = {"dtype": "BF16", "shape": list(shapes[name]), "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / file).open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            out.truncate(8 + len(text) + offset)
    total = sum(sizes.values())
    write_index(folder, groups, total)
    (folder / "config.json").write_text(json.dumps({**write_config(arch), "dtype": "bfloat16"}))
    return total


def main() -> None:
    """Write, convert, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--format", default="int4_g128")
    parser.add_argument("--folder", type=Path, help="where there is space; the system's temporary folder if not given")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as place:
        source, target = Path(place) / "source", Path(place) / "target"
        source.mkdir()
        arch = architecture(args.layers)
        size = write(source, arch)
        command = [sys.executable, "-m", "qjax.io", str(source), str(target), "--format", args.format]
        began = time.perf_counter()
        subprocess.run(command, check=True)
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        made = sum(file.stat().st_size for file in target.iterdir())
    print(
        f"{arch.parameters / 1e9:.2f} billion parameters, bfloat16 {size / 1e9:.1f} GB to {args.format} of "
        f"{made / 1e9:.1f} GB: peak memory {peak / 1e9:.2f} GB (goal 4), {seconds:.0f} s"
    )


if __name__ == "__main__":
    main()
