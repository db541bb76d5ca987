"""RPTQ, by Yuan et al. 2023 (arXiv:2304.01089): static activation scales for clusters of reordered channels.

Section 3, and the authors' defaults: 32 clusters of channels with like ends, found by k-means; static scales and zero
points, one of each a cluster; weights by GPTQ with a scale and a zero point an output. The values that enter the output
projection are clustered like the others here, where the authors take four clusters a head, and queries, keys and
values, which they quantize in the same way, stay in float.
"""

from __future__ import annotations

from qjax import transforms
from qjax.transforms.contract import Chain


def rptq(format: str = "int4_affine", activations: str = "int4_input_affine", clusters: int = 32) -> Chain:
    """Reorder the channels, GPTQ, and static scales for each cluster. Catalogue G9."""
    return transforms.chain(
        transforms.reorder_channels(clusters),
        transforms.gptq(format),
        transforms.cluster_quantize(activations, clusters),
    )
