"""Rounding of what attention remembers, in a checkpoint: one static scale a layer for keys, one for values.

compressed-tensors' `kv_cache_scheme` and the tensors `k_scale` and `v_scale` beside a layer's attention; here taps
`Quantize` on the sites of keys (after RoPE, where the cache takes them) and values. Catalogue U4.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from qjax.io import inputs
from qjax.io.inputs import SCALE, Inputs
from qjax.operators import Quantize

SITES = {"k_scale": "attn/key", "v_scale": "attn/value"}
REMEDY = (
    "a checkpoint keeps one static scale a layer for keys and for values, such as Quantize.static('fp8_e4m3_tensor', "
    "low, high) on layers/<i>/attn/key and layers/<i>/attn/value of every layer; leave other taps out"
)


def write(taps: Mapping[str, Any], layers: int, dtype: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
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
            own = inputs.settings(tap) if isinstance(tap, Quantize) and tap.grid is not None else None
            if own is None or own != (scheme or own):
                raise ValueError(
                    f"{site}: {'no tap' if not keys else f'its tap {keys}'} has no kv_cache_scheme; {REMEDY}"
                )
            scheme, used = own, used | set(keys)
            tensors[f"layers/{layer}/attn/{name}"] = inputs.write(site, tap, dtype)[SCALE]
    if rest := sorted(set(taps) - used):
        raise ValueError(f"{rest[0]}: no checkpoint of weights holds a tap on this site; {REMEDY}")
    assert scheme is not None  # there is at least one layer
    return scheme, tensors


def parse(scheme: Any) -> Inputs | None:
    """What a `kv_cache_scheme` says; None or empty settings say nothing.

    Raises:
        ValueError: anything but symmetric 8 bits under a static scale of the tensor.
    """
    if not scheme:
        return None
    found = inputs.parse("kv_cache_scheme", scheme) if isinstance(scheme, Mapping) else None
    if found is None or found.tensor != SCALE:
        raise ValueError(f"kv_cache_scheme {scheme} is not symmetric 8 bits, static by tensor")
    return found


def read(found: Inputs, scales: Mapping[str, np.ndarray], layers: int) -> dict[str, Quantize]:
    """The taps of scales by "layers/<i>/attn/k_scale"; the inverse of `write`.

    Raises:
        ValueError: a scale that is missing, superfluous, not one, or no positive number.
    """
    wanted = {f"layers/{i}/attn/{name}": f"layers/{i}/{site}" for i in range(layers) for name, site in SITES.items()}
    if extra := sorted(set(scales) - set(wanted)):
        raise ValueError(f"the checkpoint has a {extra[0]}, the architecture {layers} layers")
    return {
        site: inputs.read(path, found._replace(tensor="scale"), {"scale": scales[path]} if path in scales else {})
        for path, site in wanted.items()
    }
