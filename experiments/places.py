"""What the activations of a float model look like, place by place: the quantities of claims that round nothing.

A place is what one module of a layer reads or makes, a measure one number of it in each layer. Places are read off the
sites of `qjax.models.Decoder` (catalogue T7, T10, T11).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

import qjax

Part = Callable[[np.ndarray], np.ndarray]


def _all(x: np.ndarray) -> np.ndarray:
    return x


def _fast(x: np.ndarray) -> np.ndarray:
    """Channels of a head whose RoPE pairs turn fast: the first half of each of the two halves."""
    half = x.shape[-1] // 2
    return np.concatenate([x[..., : half // 2], x[..., half : half + half // 2]], axis=-1)


def _slow(x: np.ndarray) -> np.ndarray:
    half = x.shape[-1] // 2
    return np.concatenate([x[..., half // 2 : half], x[..., half + half // 2 :]], axis=-1)


# The site, the leaf of the layer it is divided by (a gain, to see what was there before it), the channels looked at.
PLACES: dict[str, tuple[str, tuple[str, str] | None, Part]] = {
    "attention input": ("attn_norm/output", None, _all),
    "attention input before its gain": ("attn_norm/output", ("attn_norm", "scale"), _all),
    "output projection input": ("attn/mixed", None, _all),
    "feed-forward input": ("ffn_norm/output", None, _all),
    "feed-forward input before its gain": ("ffn_norm/output", ("ffn_norm", "scale"), _all),
    "down projection input": ("ffn/product", None, _all),
    "queries": ("attn/query", None, _all),
    "slow queries": ("attn/query", None, _slow),
    "fast queries": ("attn/query", None, _fast),
    "keys": ("attn/key", None, _all),
    "slow keys": ("attn/key", None, _slow),
    "fast keys": ("attn/key", None, _fast),
    "values": ("attn/value", None, _all),
}


def _norms(x: np.ndarray) -> np.ndarray:
    return np.linalg.norm(x.reshape(-1, *x.shape[2:]), axis=0)


# On the host: medians by selection, where XLA on a CPU would sort millions of numbers.
MEASURES: dict[str, Callable[[np.ndarray], np.floating[Any]]] = {
    "kurtosis": lambda x: np.mean(np.square(x * x, dtype=np.float64)) / np.mean(x * x, dtype=np.float64) ** 2,
    "max/median": lambda x: np.max(np.abs(x)) / np.median(np.abs(x)),
    # Of the channels' norms over all tokens; heads count their channels on their own.
    "largest channel": lambda x: np.max(_norms(x)),
    "largest/median channel": lambda x: np.max(_norms(x)) / np.median(_norms(x)),
}


def activations(model: Any, params: Any, tokens: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Sites by their name within a layer, [layers, batch, tokens, channels]; equal layers are compiled once."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    segments = qjax.stages(model, params, tokens)
    programs = {s.fn: jax.jit(qjax.captured(s.fn, *(f"*{n}" for n in names))) for s in segments if s.kind == "group"}
    carry = segments.begin(tokens)
    for segment in segments[:-1]:
        if segment.kind == "group":
            carry, seen = programs[segment.fn](segment.leaves(params), carry)
            for name in names:
                (value,) = (v for site, v in seen.items() if site.endswith(name))
                found[name].append(np.asarray(value))
        else:
            carry = segment.fn(segment.leaves(params), carry)
    return {name: np.stack(values) for name, values in found.items()}


def measured(model: Any, params: Any, window: Any, wanted: Sequence[tuple[str, str]]) -> dict[str, list[float]]:
    """{"measure of place": [layers]} for each wanted (measure, place) on tokens [batch, n].

    Raises:
        KeyError: a measure or a place that does not exist.
        ValueError: a model without the sites of a place.
    """
    sites = sorted({PLACES[place][0] for _, place in wanted})
    seen = activations(model, params, window, sites)
    found: dict[str, list[float]] = {}
    for measure, place in wanted:
        site, leaf, part = PLACES[place]
        values = []
        for layer, x in enumerate(seen[site]):
            if leaf is not None:
                x = x / np.asarray(params["layers"][str(layer)][leaf[0]][leaf[1]], np.float32)
            values.append(float(MEASURES[measure](part(x))))
        found[f"{measure} of {place}"] = values
    return found
