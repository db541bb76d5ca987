"""Block sizes of the TPU kernels: every candidate is compiled for the chip, the one of the smallest estimate is kept.

python -m experiments.benchmarks.tune [--chips v5e v6e] [--kernels "w4a16 sums" w8a8] [--rows 64 512]
python -m experiments.benchmarks.tune --check

writes kernels/tpu/tiles.tsv; what is not named stays as it is. Candidates are judged at 4096 x 4096, groups of 128
(t4a16: 64), for 16, 512 or 2048 rows, by the larger of libtpu's estimate and bytes over bandwidth, then by the length
of the program. With --check the entries alone are compiled and their cycles compared with those written beside them.
Needs qjax[kernels]; seconds a candidate. Nothing is measured on a chip.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from typing import NamedTuple

from experiments.benchmarks import kernels_aot
from qjax.kernels.aot import tpu
from qjax.kernels.aot.chips import CHIPS
from qjax.kernels.tpu.tiles import CLASSES, FEW, TABLE, Blocks

SIZE = 4096
LARGEST = 4 << 20  # weights a block; above it the compiler runs out of vector memory
FIELDS = ("kernel", "chip", "up_to", *Blocks._fields, "cycles")
TUNED = [(kernel, FEW) for kernel in ("w4a16 sums", "t4a16 sums", "w8a16 sums")]
TUNED += [(kernel, most) for kernel in ("w4a16 codes", "w8a16 codes") for most in CLASSES if most > FEW]
TUNED += [(kernel, most) for kernel in ("w8a8", "w4a4") for most in CLASSES]
MODELLED = [name for name, chip in CHIPS.items() if chip.estimated]


class Judged(NamedTuple):
    """What a candidate is chosen by: less is better, the first difference decides."""

    cycles: int
    bundles: int
    blocks: Blocks


def candidates(kernel: str, M: int) -> Iterator[Blocks]:
    """The blocks that are tried for M rows."""
    if kernel.endswith("sums"):
        for columns, buffers in ((512, 4), (1024, 3)):
            if columns * buffers * int(kernel[1]) // 8 * SIZE <= 8 << 20:
                yield Blocks(M, columns, SIZE, buffers)
    integers = kernel in kernels_aot.INTEGERS
    for rows in (M,) if M <= FEW else (512, 1024) if M > 512 else (256, 512):
        for columns in (512, 1024, 2048, 4096):
            for depth in (512, 1024, 2048, 4096):
                weights = columns * depth
                if not (LARGEST // 4 <= weights <= LARGEST) or (M > FEW and rows * columns > 1 << 20):
                    continue
                if integers or depth >= 1024:  # eight groups of 128
                    yield Blocks(rows, columns, depth)


def judge(kernel: str, chip: str, M: int, blocks: Blocks) -> Judged | None:
    """The candidate's cycles, or None where it did not compile or has no estimate."""
    f, arguments = kernels_aot.build(kernel, chip, M, SIZE, SIZE, blocks)
    found = tpu.estimate(CHIPS[chip], f, *arguments)
    if found.problem is not None or found.cycles is None:
        print(f"    {tuple(blocks)}: {found.problem or 'no estimate'}", flush=True)
        return None
    floor = kernels_aot.floor(kernel, chip, M, SIZE, SIZE)
    cycles = max(found.cycles, round(floor.memory))
    print(f"    {tuple(blocks)}: {cycles} cycles, {floor.cycles / cycles:.3f} of the roofline", flush=True)
    return Judged(cycles, found.bundles, blocks)


def main() -> None:
    """Tune what is named and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--chips", nargs="+", default=MODELLED, choices=MODELLED)
    parser.add_argument("--kernels", nargs="+", default=sorted({kernel for kernel, _ in TUNED}))
    parser.add_argument("--rows", type=int, nargs="+", default=list(CLASSES), choices=CLASSES)
    parser.add_argument("--check", action="store_true", help="compile the entries of the table and compare cycles")
    arguments = parser.parse_args()
    why = tpu.missing()
    if why is not None:
        raise SystemExit(why)
    if arguments.check:
        check()
        return
    for kernel, most in TUNED:
        for chip in arguments.chips:
            if kernel not in arguments.kernels or most not in arguments.rows:
                continue
            M = 16 if most == FEW else most
            print(f"{chip} {kernel}, up to {most} rows", flush=True)
            judged = [
                found for blocks in candidates(kernel, M) if (found := judge(kernel, chip, M, blocks)) is not None
            ]
            if judged:
                keep(kernel, chip, most, min(judged))


def check() -> None:
    """SystemExit naming the entries that do not compile, or whose cycles are not those written within two percent."""
    wrong = []
    for (kernel, chip, most), row in written().items():
        M = 16 if most == FEW else most
        blocks = Blocks(*(int(row[field]) for field in Blocks._fields))
        found = judge(kernel, chip, M, blocks._replace(rows=min(blocks.rows, M)))
        if found is None or abs(found.cycles / int(row["cycles"]) - 1) > 0.02:
            wrong.append(f"{kernel} on {chip} up to {most}: {row['cycles']} written, {found and found.cycles} found")
    if wrong:
        raise SystemExit("\n".join(wrong))


def written() -> dict[tuple[str, str, int], dict[str, str]]:
    """The table's file, by kernel, chip and class of rows."""
    with TABLE.open(newline="") as file:
        return {(row["kernel"], row["chip"], int(row["up_to"])): row for row in csv.DictReader(file, delimiter="\t")}


def keep(kernel: str, chip: str, most: int, best: Judged) -> None:
    """Put an entry in the table's file, in the order of kernels, chips and rows."""
    rows = written()
    blocks = best.blocks._replace(rows=max(best.blocks.rows, most)) if most == FEW else best.blocks
    rows[kernel, chip, most] = dict(zip(FIELDS, map(str, (kernel, chip, most, *blocks, best.cycles)), strict=True))
    order = {entry: i for i, entry in enumerate((k, c, m) for k, m in TUNED for c in CHIPS)}
    with TABLE.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[key] for key in sorted(rows, key=order.__getitem__))


if __name__ == "__main__":
    main()
