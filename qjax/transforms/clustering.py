"""RPTQ: input channels in an order by clusters of equal range, each cluster with static scales of its own."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from qjax.formats import FULL, Format, as_format
from qjax.operators import Permute, Quantize
from qjax.operators.operator import batched
from qjax.solvers.channel_clusters import by_range, shared_ends
from qjax.transforms.contract import Edit, Needs, Stage, Transform, stateless
from qjax.transforms.leaves import Core, channel_ends, refuse_rounded


def reorder_channels(clusters: int = 32) -> Transform:
    """Put the input channels of each of `clusters` ranges side by side, online as a gather in front of the leaf.

    The order in which one scale serves a run of channels, which a kernel wants; numbers stay what they are. The authors
    write channels in that order in the layer before. Before the methods that quantize. Catalogue G9.

    Raises:
        ValueError: fewer than one cluster, or more than a leaf has inputs.
    """
    _check("reorder_channels", clusters)

    def edit(stage: Stage, key: jax.Array) -> Edit:
        del key
        low, high = _ends(stage, clusters)

        def order(low: jax.Array, high: jax.Array) -> jax.Array:
            return jnp.argsort(by_range(low, high, count=clusters), stable=True).astype(jnp.int32)

        m = Permute(batched(order, low.ndim - 1)(low, high))
        return Edit(equivalence=dict.fromkeys(stage.targets, m))

    return stateless(f"reorder_channels {clusters}", "inputs", edit, Needs(statistics=("min", "max")))


def cluster_quantize(fmt: Format | str = "int4_input_affine", clusters: int = 32) -> Transform:
    """Round what enters every target with static scales, one for each of `clusters` of its channels (catalogue G9).

    Clusters are those of the channels' ends in calibration, found by k-means, and a cluster's scale holds them all. The
    format has a scale for each channel (`int4_input_affine`), which channels of a cluster then share. Behind the weight
    methods.

    Raises:
        ValueError: a format with other scales, fewer than one cluster, or more than a leaf has inputs; an input that is
            quantized already.
    """
    f = as_format(fmt)
    _check("cluster_quantize", clusters)
    if f.block != 1 or f.across != FULL:
        raise ValueError(
            f"cluster_quantize: {f.name} has no scale for each channel; give int4_input_affine or the like"
        )

    def edit(stage: Stage, key: jax.Array) -> Edit:
        del key
        low, high = _ends(stage, clusters)
        low, high = low.reshape(-1, low.shape[-1]).min(0), high.reshape(-1, high.shape[-1]).max(0)
        ends = shared_ends(low, high, by_range(low, high, count=clusters), count=clusters)
        rounding = Quantize.calibrated(f, jnp.stack(ends))
        params = {}
        for path in stage.targets:
            core = Core.of(stage.params[path], stage.uses[path])
            refuse_rounded(path, core)
            params[path] = core.behind(rounding).leaf()
        rows = {path: {"format": f"input {f.name} in {clusters} clusters"} for path in stage.targets}
        return Edit(params=params, rows=rows)

    return stateless(f"cluster_quantize {f.name} {clusters}", "inputs", edit, Needs(statistics=("min", "max")))


def _ends(stage: Stage, clusters: int) -> tuple[jax.Array, jax.Array]:
    """Least and largest value of each channel that meets the cores, [batch..., K]."""
    first = stage.targets[0]
    low, high = channel_ends(first, Core.of(stage.params[first], stage.uses[first]), stage.statistics[first])
    if clusters > low.shape[-1]:
        raise ValueError(f"{first}: {clusters} clusters of its {low.shape[-1]} inputs; give fewer")
    return low, high


def _check(name: str, clusters: int) -> None:
    if clusters < 1:
        raise ValueError(f"{name}: {clusters} clusters; give at least 1")
