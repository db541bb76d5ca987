"""Rounding of what attention remembers, in a checkpoint: of keys and values, under static scales or by group.

compressed-tensors' `kv_cache_scheme`: one static scale a layer or a head, which are the tensors `k_scale` and `v_scale`
beside a layer's attention, or dynamic ones of groups of a head's channels; here taps `Quantize` or `PerHead` on the
sites of keys (after RoPE, where the cache takes them) and values. Its dynamic strategies "tensor" and "token" let later
tokens have a say in the scale of earlier ones, which no cache can do, and have no tap. Catalogue U4.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from qjax.formats import Format
from qjax.io import inputs
from qjax.io.exact import exactly
from qjax.io.inputs import SCALE
from qjax.operators import PerHead, Quantize

if TYPE_CHECKING:
    from qjax.models.architecture import Architecture

SITES = {"k_scale": "attn/key", "v_scale": "attn/value"}
TENSOR, HEAD, GROUP = "tensor", "attn_head", "group"
REMEDY = (
    "a checkpoint keeps static scales of keys and values, one a layer or one a head, such as "
    "Quantize.static('fp8_e4m3_tensor', low, high) or PerHead.static, or rounds groups of a head's channels, such as "
    "Quantize.dynamic('int8_g16_f32'), on layers/<i>/attn/key and layers/<i>/attn/value of every layer; leave other "
    "taps out"
)


class Scheme(NamedTuple):
    """Rounding to a format under static scales, one a `TENSOR` or one a `HEAD`, or under dynamic ones by `GROUP`."""

    format: Format
    strategy: str


def write(taps: Mapping[str, Any], arch: Architecture, dtype: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The `kv_cache_scheme` that says the taps of a program, and its tensors by "layers/<i>/attn/k_scale".

    Raises:
        ValueError: a tap that the scheme does not hold, or layers without one; names the site and the remedy.
    """
    tensors: dict[str, np.ndarray] = {}
    scheme, used = None, set()
    for layer in range(arch.layers):
        for name, local in SITES.items():
            site = f"layers/{layer}/{local}"
            keys = [key for key in taps if key == site or fnmatchcase(site, key)]
            said = _said(taps[keys[0]], arch) if len(keys) == 1 else None
            if said is None or said[0] != (scheme or said[0]):
                raise ValueError(
                    f"{site}: {'no tap' if not keys else f'its tap {keys}'} has no kv_cache_scheme; {REMEDY}"
                )
            scheme, used = said[0], used | set(keys)
            if said[1] is not None:
                tensors[f"layers/{layer}/attn/{name}"] = exactly(f"{site} as {name}", said[1], dtype)
    if rest := sorted(set(taps) - used):
        raise ValueError(f"{rest[0]}: no checkpoint of weights holds a tap on this site; {REMEDY}")
    assert scheme is not None  # there is at least one layer
    return scheme, tensors


def _said(tap: Any, arch: Architecture) -> tuple[dict[str, Any], np.ndarray | None] | None:
    """A tap as settings and scales, [1], [heads, 1, 1] or none; None where a scheme has no words for it."""
    by_head = isinstance(tap, PerHead) and tap.rounding.batch_shape == (arch.kv_heads,)
    one = jax.tree.map(lambda scales: scales[0], tap.rounding) if by_head else tap
    settings = inputs.settings(one) if isinstance(one, Quantize) and one.outer is None else None
    if settings is None:
        return None
    if settings["dynamic"]:
        whole = settings["strategy"] == GROUP and arch.head_dim % settings["group_size"] == 0
        return (settings, None) if whole else None
    (scales,) = jax.tree.leaves(tap)  # static ones, as the settings say, are all that it has
    if by_head:
        return {**settings, "strategy": HEAD}, np.asarray(scales)
    return settings, np.asarray(scales).reshape(1)


def parse(scheme: Any) -> Scheme | None:
    """What a `kv_cache_scheme` says; None or empty settings say nothing.

    Raises:
        ValueError: anything but symmetric 8 bits, static by tensor or head or dynamic by group.
    """
    if not scheme:
        return None
    strategy = scheme.get("strategy") if isinstance(scheme, Mapping) else None
    alike = {**scheme, "strategy": TENSOR} if strategy == HEAD else scheme
    found = inputs.parse("kv_cache_scheme", alike) if isinstance(alike, Mapping) else None
    if found is None or (found.tensor, strategy) not in ((SCALE, TENSOR), (SCALE, HEAD), (None, GROUP)):
        raise ValueError(
            f"kv_cache_scheme {scheme} is not symmetric 8 bits, static by {TENSOR} or {HEAD} or dynamic by {GROUP}"
        )
    return Scheme(found.format, str(strategy))


def read(found: Scheme, scales: Mapping[str, np.ndarray], arch: Architecture) -> dict[str, Quantize | PerHead]:
    """The taps of scales by "layers/<i>/attn/k_scale"; the inverse of `write`.

    Raises:
        ValueError: a scale that is missing, superfluous, not one or one a head, or no positive number; groups that do
            not divide a head.
    """
    layers, heads, group = arch.layers, arch.kv_heads, found.format.block
    wanted = {f"layers/{i}/attn/{name}": f"layers/{i}/{site}" for i in range(layers) for name, site in SITES.items()}
    if extra := sorted(set(scales) - set(wanted if found.strategy != GROUP else ())):
        raise ValueError(f"the checkpoint has a {extra[0]}; its scheme is by {found.strategy}, of {layers} layers")
    if found.strategy == GROUP:
        if arch.head_dim % group:
            raise ValueError(f"kv_cache_scheme has groups of {group}, which do not divide heads of {arch.head_dim}")
        return {site: Quantize.dynamic(found.format) for site in wanted.values()}
    taps: dict[str, Quantize | PerHead] = {}
    for path, site in wanted.items():
        if found.strategy == TENSOR:
            one = inputs.Inputs(found.format, "scale")
            taps[site] = inputs.read(path, one, {"scale": scales[path]} if path in scales else {})
            continue
        stored = scales.get(path)
        if stored is None or stored.size != heads or not inputs.positive(stored):
            raise ValueError(f"{path}: its scheme wants a positive scale for each of {heads} heads, there is {stored}")
        taps[site] = PerHead(inputs.under(found.format, stored.reshape(-1, 1, 1)))
    return taps
