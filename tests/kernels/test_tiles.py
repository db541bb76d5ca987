"""The tuning table of the TPU kernels: well-formed, taken where its chip is, cut to fit any shape, and it compiles."""

from __future__ import annotations

import csv
import itertools
import os
import pathlib
import subprocess
import sys

import pytest

from qjax.kernels.aot import tpu
from qjax.kernels.aot.chips import CHIPS
from qjax.kernels.tpu import codings, group_scaled, integer_products, tiles

ROOT = pathlib.Path(__file__).parents[2]
SHAPES = ((4096, 4096, 128), (8192, 28672, 128), (576, 1536, 64), (11008, 4096, 128), (64, 128, 64), (28672, 8192, 128))


CODINGS = {
    coding.name: coding
    for coding in (codings.INT2, codings.INT4, codings.INT8, codings.E2M1, codings.E4M3, codings.TABLE4)
}


def taken(kernel, M, K, N, group, chip):
    if "a16" in kernel:
        name, scaled = kernel.split()
        return group_scaled.blocks(M, K, N, group, CODINGS[name], scaled, chip)
    return integer_products.blocks(M, K, N, int(kernel[1]), chip)


def test_entries_are_named_once_and_whole_tiles():
    with tiles.TABLE.open() as file:
        assert len(list(csv.DictReader(file, delimiter="\t"))) == len(tiles.table()) > 0
    kinds = [chip.kind for chip in CHIPS.values()]
    assert len(set(kinds)) == len(kinds)
    for (kernel, chip, most), entry in tiles.table().items():
        assert kernel in ("w8a8", "w4a4", *(f"{name} {scaled}" for name in CODINGS for scaled in ("sums", "codes")))
        assert chip in CHIPS and most in tiles.CLASSES
        assert entry.rows % 16 == entry.columns % tiles.LANES == entry.depth % tiles.LANES == 0
        assert 2 <= entry.buffers <= 8


@pytest.mark.parametrize("entry", tiles.table(), ids=str)
def test_every_entry_is_what_its_chip_takes(entry):
    kernel, chip, most = entry
    found = taken(kernel, most, 4096, 4096, 128, chip)
    known = tiles.table()[entry]
    assert found == known._replace(rows=min(known.rows, most))
    assert tiles.largest(kernel, most, None) is None


def test_blocks_divide_every_shape_and_fit():
    kernels = {kernel for kernel, _, _ in tiles.table()} | {"w4a16 codes", "e2m1a16 codes", "w8a8", "w4a4"}
    for kernel, chip, (K, N, group), M in itertools.product(kernels, (None, *CHIPS), SHAPES, (1, 20, 64, 100, 3000)):
        if "a16" not in kernel and K % 128:
            continue
        rows, columns, depth, buffers = taken(kernel, M, K, N, group, chip)
        assert rows >= min(M, 16) and rows % 16 == 0
        assert N % columns == 0 and K % depth == 0 and columns % 128 == 0
        if "a16" in kernel:
            assert depth == K or depth % (8 * group) == 0
        if buffers > 2:
            assert depth == K and rows >= M and "sums" in kernel
        if "a16" in kernel:
            assert buffers * columns * depth * CODINGS[kernel.split()[0]].bits / 8 <= 16 << 20
        else:
            held = 2 * (rows + columns) * depth * int(kernel[1]) / 8 + 2 * rows * columns * 4
            assert held <= integer_products.ROOM and integer_products.ROOM < integer_products.LIMIT


@pytest.mark.skipif(tpu.missing() is not None, reason=str(tpu.missing()))
@pytest.mark.slow
def test_every_entry_compiles_to_the_cycles_beside_it():
    """In a process of its own: what compiles there must not have run anything under JAX."""
    done = subprocess.run(
        [sys.executable, "-m", "experiments.benchmarks.tune", "--check"],
        cwd=ROOT,
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": "", "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
