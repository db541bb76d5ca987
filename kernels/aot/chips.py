"""TPU generations: what to compile for, and the numbers a roofline is drawn from, for one device as JAX counts them."""

from __future__ import annotations

from typing import NamedTuple


class Chip(NamedTuple):
    """One device.

    `flops` of bfloat16 products, `int8` and `int4` operations and `bandwidth` of HBM in bytes, all a second, are those
    of jax's own table (products of integers that its unit lacks run at bfloat16's rate); `clock` in Hz is inferred:
    peak flops over flops a cycle. `kind` is what a device says of itself. `estimated`: libtpu has a model of it.
    `cores` share the parallel blocks of a kernel.
    """

    topology: str
    kind: str
    clock: float
    flops: float
    bandwidth: float
    int8: float
    int4: float
    estimated: bool = True
    cores: int = 1


CHIPS = {
    "v4": Chip("v4:2x2x1", "TPU v4", 1.05e9, 275e12, 1.23e12, 275e12, 275e12, estimated=False, cores=2),
    "v5e": Chip("v5e:2x2", "TPU v5 lite", 1.5e9, 197e12, 0.82e12, 394e12, 788e12),
    "v5p": Chip("v5p:2x2x1", "TPU v5", 1.75e9, 459e12, 2.46e12, 918e12, 1840e12, cores=2),
    "v6e": Chip("v6e:2x2", "TPU v6 lite", 1.75e9, 920e12, 1.64e12, 1840e12, 3680e12),
    "7x": Chip("tpu7x:2x2x1", "TPU7x", 2.2e9, 1155e12, 3.7e12, 1155e12, 1155e12),
}


class Roofline(NamedTuple):
    """The cycles no kernel can do without."""

    compute: float
    memory: float

    @property
    def cycles(self) -> float:
        return max(self.compute, self.memory)


def roofline(chip: Chip, operations: float, hbm_bytes: float, rate: float | None = None) -> Roofline:
    """Cycles for so many operations at `rate` (bfloat16's if None), and for reading and writing so many bytes once.

    >>> roofline(CHIPS["v5e"], 2 * 16 * 4096 * 4096, 2 * 4096 * 4096).cycles > 61_000  # bfloat16 weights, 16 rows
    True
    """
    return Roofline(operations / (rate or chip.flops) * chip.clock, hbm_bytes / chip.bandwidth * chip.clock)
