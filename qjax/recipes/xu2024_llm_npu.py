"""llm.npu, by Xu et al. 2024 (arXiv:2407.05858): static 8-bit inputs, their outliers in float beside them.

Section 3.3, shadow outlier execution: a mobile NPU multiplies integers with one static scale a tensor; what lies beyond
its range is taken out at run time, goes through the same weights in float on the CPU and is added. Chunked prefill and
the scheduling of both processors are no part of the numbers; that the authors drop the shadows of layers where outliers
matter least is left out.
"""

from __future__ import annotations

from qjax import ranges, transforms
from qjax.transforms.contract import Chain


def llm_npu(format: str = "int8_channel", activations: str = "int8_tensor_narrow", p: float = 99.9) -> Chain:
    """Rounded weights, static inputs that hold `p` percent of the values, the others in float. Catalogue G26."""
    inputs = transforms.act_quantize(activations, static=True, range=ranges.percentile(p), keep="beyond")
    return transforms.chain(transforms.rtn(format), inputs)
