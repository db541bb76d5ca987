"""ODQ, "Output-Directed Dynamic Quantization for DNN Acceleration" (ICPP 2023): full precision for large outputs only.

As its abstract has it: the two upper bits of inputs and weights predict each output, and those that matter are computed
with all bits. Of networks with ReLU, where what is not large is mostly cut off; a language model's projections have no
such outputs, so that this shows what the method costs them.
"""

from __future__ import annotations

from qjax import transforms
from qjax.transforms.contract import Chain


def odq(format: str = "int4_narrow", inputs: str = "int4_narrow", high: int = 2, share: float = 0.5) -> Chain:
    """A `share` of each leaf's outputs with all bits, the others with the `high` upper ones. Catalogue G25."""
    return transforms.chain(transforms.output_directed(format, inputs, high=high, share=share))
