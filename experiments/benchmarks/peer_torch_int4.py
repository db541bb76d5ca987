"""PyTorch's products on a CUDA GPU: bfloat16, and four-bit weights under scales of groups (`_weight_int4pack_mm`).

python -m experiments.benchmarks.peer_torch_int4 REPEATS M,K,N,GROUP...

Prints for each shape a line of JSON, a list of (name, bits of a weight, microseconds of the kernels); weights in turn
that do not fit the cache together, as in `kernels_gpu`, which calls this. Needs PyTorch alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

WEIGHTS = 2**28  # bytes of all weights of a call: five times the cache of an H100


def main() -> None:
    """Time both at every shape."""
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("PyTorch finds no CUDA GPU")
    repeats, *shapes = sys.argv[1:]
    for shape in shapes:
        M, K, N, group = map(int, shape.split(","))
        print(json.dumps(list(products(M, K, N, group, int(repeats)))), flush=True)


def products(M: int, K: int, N: int, group: int, repeats: int) -> Iterator[tuple[str, float, float]]:
    """(name, bits of a weight with its scale and offset, microseconds)."""
    import torch

    torch.manual_seed(0)
    x = torch.randn(M, K, device="cuda", dtype=torch.bfloat16)
    dense = [torch.randn(K, N, device="cuda", dtype=torch.bfloat16) for _ in range(count(2 * K * N))]
    yield "torch bfloat16", 16, kernel_time(lambda w: x @ w, dense, repeats)
    del dense
    if N % 8 or K % 128:
        return
    packed = []
    for _ in range(count(K * N // 2)):
        codes = torch.randint(0, 256, (N, K // 2), device="cuda", dtype=torch.uint8)
        grid = torch.rand(K // group, N, 2, device="cuda").to(torch.bfloat16)
        packed.append((torch.ops.aten._convert_weight_to_int4pack(codes, 8), grid))
    time = kernel_time(lambda w: torch.ops.aten._weight_int4pack_mm(x, w[0], group, w[1]), packed, repeats)
    yield "torch int4 (tinygemm)", 4 + 32 / group, time


def count(size: int) -> int:
    """Weights of `size` bytes that overflow the cache; no more than 64."""
    return min(64, max(2, WEIGHTS // size))


def kernel_time(f: Callable[[Any], Any], weights: Sequence[Any], repeats: int) -> float:
    """Microseconds of kernels a product."""
    import torch

    def turn() -> None:
        for w in weights:
            f(w)

    turn()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        for _ in range(repeats):
            turn()
        torch.cuda.synchronize()
    total = sum(e.self_device_time_total for e in seen.key_averages())
    return total / repeats / len(weights)


if __name__ == "__main__":
    main()
