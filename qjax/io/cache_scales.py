"""Rounding of what attention remembers, in a checkpoint: static scales of a layer's keys and values, one or one a head.

compressed-tensors' `kv_cache_scheme` and the tensors `k_scale` and `v_scale` beside a layer's attention; here taps
`Quantize` or `PerHead` on the sites of keys (after RoPE, where the cache takes them) and values. Catalogue U4.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import jax
import numpy as np

from qjax.formats import Format
from qjax.io import inputs
from qjax.io.exact import exactly
from qjax.io.inputs import SCALE
from qjax.operators import PerHead, Quantize

SITES = {"k_scale": "attn/key", "v_scale": "attn/value"}
HEADS = "attn_head"
REMEDY = (
    "a checkpoint keeps static scales of keys and values, one a layer or one a head, such as "
    "Quantize.static('fp8_e4m3_tensor', low, high) or PerHead.static on layers/<i>/attn/key and layers/<i>/attn/value "
    "of every layer; leave other taps out"
)


class Scheme(NamedTuple):
    """Rounding to a format under static scales: one a layer, or one a head."""

    format: Format
    by_head: bool


def write(taps: Mapping[str, Any], layers: int, heads: int, dtype: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The `kv_cache_scheme` that says the taps of a program, and its tensors by "layers/<i>/attn/k_scale".

    Raises:
        ValueError: a tap that the scheme does not hold, or layers without one; names the site and the remedy.
    """
    tensors: dict[str, np.ndarray] = {}
    scheme, used = None, set()
    for layer in range(layers):
        for name, local in SITES.items():
            site = f"layers/{layer}/{local}"
            keys = [key for key in taps if key == site or fnmatchcase(site, key)]
            tap = taps[keys[0]] if len(keys) == 1 else None
            said = _said(tap, heads)
            if said is None or said[0] != (scheme or said[0]):
                raise ValueError(
                    f"{site}: {'no tap' if not keys else f'its tap {keys}'} has no kv_cache_scheme; {REMEDY}"
                )
            scheme, used = said[0], used | set(keys)
            tensors[f"layers/{layer}/attn/{name}"] = exactly(f"{site} as {name}", said[1], dtype)
    if rest := sorted(set(taps) - used):
        raise ValueError(f"{rest[0]}: no checkpoint of weights holds a tap on this site; {REMEDY}")
    assert scheme is not None  # there is at least one layer
    return scheme, tensors


def _said(tap: Any, heads: int) -> tuple[dict[str, Any], np.ndarray] | None:
    """A tap as settings and scales [1] or [heads, 1, 1]; None where a scheme has no words for it."""
    by_head = isinstance(tap, PerHead) and tap.rounding.batch_shape == (heads,)
    one = jax.tree.map(lambda scales: scales[0], tap.rounding) if by_head else tap
    settings = inputs.settings(one) if isinstance(one, Quantize) and one.grid is not None else None
    if settings is None:
        return None
    (scales,) = jax.tree.leaves(tap)  # static ones, as the settings say, are all that it has
    if by_head:
        return {**settings, "strategy": HEADS}, np.asarray(scales)
    return settings, np.asarray(scales).reshape(1)


def parse(scheme: Any) -> Scheme | None:
    """What a `kv_cache_scheme` says; None or empty settings say nothing.

    Raises:
        ValueError: anything but symmetric 8 bits under static scales of the tensor or of heads.
    """
    if not scheme:
        return None
    by_head = isinstance(scheme, Mapping) and scheme.get("strategy") == HEADS
    alike = {**scheme, "strategy": "tensor"} if by_head else scheme
    found = inputs.parse("kv_cache_scheme", alike) if isinstance(alike, Mapping) else None
    if found is None or found.tensor != SCALE:
        raise ValueError(f"kv_cache_scheme {scheme} is not symmetric 8 bits, static by tensor or attn_head")
    return Scheme(found.format, by_head)


def read(found: Scheme, scales: Mapping[str, np.ndarray], layers: int, heads: int) -> dict[str, Quantize | PerHead]:
    """The taps of scales by "layers/<i>/attn/k_scale"; the inverse of `write`.

    Raises:
        ValueError: a scale that is missing, superfluous, not one or one a head, or no positive number.
    """
    wanted = {f"layers/{i}/attn/{name}": f"layers/{i}/{site}" for i in range(layers) for name, site in SITES.items()}
    if extra := sorted(set(scales) - set(wanted)):
        raise ValueError(f"the checkpoint has a {extra[0]}, the architecture {layers} layers")
    taps: dict[str, Quantize | PerHead] = {}
    for path, site in wanted.items():
        if not found.by_head:
            one = inputs.Inputs(found.format, "scale")
            taps[site] = inputs.read(path, one, {"scale": scales[path]} if path in scales else {})
            continue
        stored = scales.get(path)
        if stored is None or stored.size != heads or not inputs.positive(stored):
            raise ValueError(f"{path}: its scheme wants a positive scale for each of {heads} heads, there is {stored}")
        taps[site] = PerHead(inputs.under(found.format, stored.reshape(-1, 1, 1)))
    return taps
