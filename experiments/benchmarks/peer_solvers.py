"""The peers' side of `solvers`: one solver of torch on arrays from a folder. Needs no qjax.

python peer_solvers.py FOLDER gptq|hqq REPEATS        (called by the benchmark)
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch


def gptq(folder: Path) -> tuple[Callable[[], torch.Tensor], str]:
    """llm-compressor's `quantize_weight`: symmetric int4 in groups of 64, scales given, damping 0.01."""
    import llmcompressor
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.utils import calculate_qparams
    from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight

    w = torch.tensor(np.load(folder / "w.npy").T.copy())
    gram = torch.tensor(np.load(folder / "gram.npy"))
    arguments = QuantizationArgs(num_bits=4, type="int", strategy="group", group_size=64, symmetric=True)

    def call() -> torch.Tensor:
        blocks = w.reshape(len(w), -1, 64)
        scale, zero = calculate_qparams(blocks.amin(-1), blocks.amax(-1), arguments)
        return quantize_weight(w[None].clone(), gram[None].clone(), scale[None], zero[None], None, arguments)[0][0]

    return call, f"llmcompressor {llmcompressor.__version__}"


def hqq(folder: Path) -> tuple[Callable[[], torch.Tensor], str]:
    """torchao's copy of the authors' HQQ: 4 bits in groups of 64, twenty iterations, float zeros."""
    import torchao
    from torchao.quantization.quant_primitives import _choose_qparams_and_quantize_affine_hqq

    w = torch.tensor(np.load(folder / "w.npy").T.copy())

    def call() -> torch.Tensor:
        codes, scale, zero, _ = _choose_qparams_and_quantize_affine_hqq(
            w, nbits=4, group_size=64, compute_dtype=torch.float32, device="cpu", raw_output=True, verbose=False
        )
        return ((codes.float().reshape(-1, 64) - zero.reshape(-1, 1)) * scale.reshape(-1, 1)).reshape(w.shape)

    return call, f"torchao {torchao.__version__}"


def main() -> None:
    """Run one solver once and then timed; print its least time and leave what it found beside its input."""
    folder = Path(sys.argv[1])
    call, version = {"gptq": gptq, "hqq": hqq}[sys.argv[2]](folder)
    call()
    seconds, found = float("inf"), torch.empty(0)
    for _ in range(int(sys.argv[3])):
        start = time.perf_counter()
        found = call()
        seconds = min(seconds, time.perf_counter() - start)
    np.save(folder / "peer.npy", found.float().numpy().T)
    print(json.dumps({"seconds": seconds, "versions": f"{version}, torch {torch.__version__}"}))


if __name__ == "__main__":
    main()
