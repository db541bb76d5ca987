"""Channels brought to one range, or near to it by powers of two, so that one static scale serves all of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from qjax.operators import Composed, Diag, Map, Shift
from qjax.transforms.contract import Edit, Needs, Stage, Transform, stateless
from qjax.transforms.leaves import channel_ends, float_core


def equal_ranges(*, shift: bool = True) -> Transform:
    """Map every input channel's calibrated range to [-1, 1], the counterpart in the weights.

    One static scale behind it rounds each channel as a scale of its own would: per-channel static quantization whose
    scales are multiplied out before (OutlierTune, arXiv:2406.18832; catalogue G16), or channel-wise scales and zero
    points made into one of each (RepQuant, arXiv:2402.05628, section 3; catalogue G15; the range of all is 1 here, the
    mean of the channels there, which changes no code). Without `shift` ranges are symmetric, [-max|x|, max|x|]. Online
    as a shift and a scale; `qjax.fold` moves both into a LayerNorm, of which an RMSNorm takes the scale.
    """

    def edit(stage: Stage, key: jax.Array) -> Edit:
        del key
        low, high = _ends(stage)
        z = (low + high) / 2 if shift else jnp.zeros_like(low)
        half = jnp.maximum(high - z, z - low)
        scale: Map = Diag(1 / jnp.where(half > 0, half, 1.0))
        m = Composed((Shift(-z), scale)) if shift else scale
        row = {"format": f"ranges {float(jnp.min(half)):.3g} to {float(jnp.max(half)):.3g} made one"}
        return Edit(equivalence=dict.fromkeys(stage.targets, m), rows=dict.fromkeys(stage.targets, row))

    return stateless("equal_ranges" + ("" if shift else " unshifted"), "inputs", edit, Needs(statistics=("min", "max")))


def shift_exponents(bits: int = 2) -> Transform:
    """Multiply small input channels by powers of two, up to 2^(2^bits - 1), the counterpart in the weights.

    The pre-shifted exponent bias of LLM-FP4 (Liu et al. 2023, arXiv:2310.16836, section 4.2; catalogue G14): a channel
    gets the power 2^b nearest to (largest channel)/(its own largest magnitude), b from 0 to 2^bits - 1 for inputs with
    `bits` bits of exponent. Powers of two are exact: nothing is rounded, and a floating-point weight only has its
    exponent shifted. The authors round the channel's and the tensor's bias separately and search the latter.

    Raises:
        ValueError: fewer than one bit.
    """
    if bits < 1:
        raise ValueError(f"shift_exponents: {bits} bits of exponent; give at least 1")

    def edit(stage: Stage, key: jax.Array) -> Edit:
        del key
        low, high = _ends(stage)
        size = jnp.maximum(-low, high)
        most = jnp.max(size, axis=-1, keepdims=True)
        power = jnp.round(jnp.log2(most / jnp.where(size > 0, size, most)))
        power = jnp.where(most > 0, jnp.clip(power, 0, 2**bits - 1), 0.0)
        m = Diag(jnp.exp2(power))
        row = {"format": f"powers of two up to {int(jnp.max(power))}"}
        return Edit(equivalence=dict.fromkeys(stage.targets, m), rows=dict.fromkeys(stage.targets, row))

    return stateless(f"shift_exponents {bits}", "inputs", edit, Needs(statistics=("min", "max")))


def _ends(stage: Stage) -> tuple[jax.Array, jax.Array]:
    """Least and largest value of each channel that meets the cores, [batch..., K]."""
    first = stage.targets[0]
    core, _ = float_core(first, stage.params[first], stage.uses[first])
    return channel_ends(first, core, stage.statistics[first])
