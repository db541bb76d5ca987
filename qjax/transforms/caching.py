"""Rounding of what attention remembers: the KV in W4A4KV4."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from qjax.formats import Format, as_format
from qjax.operators import Quantize
from qjax.quantization import quantize
from qjax.transforms.contract import Edit, Stage, Transform, stateless
from qjax.transforms.key_order import sorted_blocks
from qjax.transforms.rotating import wired


def cache_quantize(
    keys: Format | str | None = "int8",
    values: Format | str | None = "int8",
    *,
    ordered: bool = False,
    sites: tuple[str, str] = ("*/attn/key", "*/attn/value"),
) -> Transform:
    """Round keys and values, each token's of each head on its own, wherever attention reads them.

    Taps on the two sites (globs; the defaults are those of our decoder, keys after RoPE) round exactly what
    `qjax.kv.QuantizedCache` stores, so that the forward pass without a cache shows its error: perplexity of W4A4KV4.
    None leaves that side alone. To generate, give the decoder the codecs themselves.

    `ordered` sorts the channels of each key head by the norms of what makes them, so that the large ones share blocks
    (catalogue N5); each layer then has a tap of its own, on the site of its keys beside their projection, and no other
    transform may tap the keys.

    Catalogue N6.

    Raises:
        ValueError: nothing to round, or a format with one scale for all tokens, which would look into the future;
            `ordered` without a format for keys, for a model whose wiring is unknown or whose layers are stacked.

    >>> import qjax
    >>> qjax.transforms.cache_quantize("int4_g32_affine", "int4").name
    'cache_quantize int4_g32_affine int4'
    """
    if keys is None and values is None:
        raise ValueError("cache_quantize: keys and values are both None, nothing is left to round")
    if ordered and keys is None:
        raise ValueError("cache_quantize: ordered=True sorts keys, but keys=None rounds none")
    formats = [None if f is None else as_format(f) for f in (keys, values)]
    for f in formats:
        if f is not None and _spans_tokens(f):
            raise ValueError(
                f"cache_quantize: {f.name} has a scale that several tokens share, so a token would depend on later "
                "ones; name a format whose scales lie within a head of one token, such as int8, int4_g32_affine, mxfp4"
            )
    taps = {site: Quantize.dynamic(f) for site, f in zip(sites, formats, strict=True) if f is not None}

    def edit(stage: Stage, key: jax.Array) -> Edit:
        del key
        if not ordered:
            return Edit(taps=taps)
        pattern, own = sites[0], wired("cache_quantize", stage, scores=True).scores
        rounding, name = taps[pattern], pattern.rpartition("/")[2]
        places = {f"{pair.k.path.rpartition('/')[0]}/{name}": pair for pair in own}
        sorted_keys = {site: sorted_blocks(stage.reference, pair, rounding) for site, pair in places.items()}
        return Edit(taps={site: tap for site, tap in taps.items() if site != pattern} | sorted_keys)

    name = "cache_quantize " + " ".join("float" if f is None else f.name for f in formats) + " sorted" * ordered
    return stateless(name, "model", edit)


def _spans_tokens(fmt: Format) -> bool:
    shapes = jax.eval_shape(lambda x: quantize(x, fmt, axis=-1).scales, jax.ShapeDtypeStruct((2, 64), jnp.float32))
    return any(leaf.shape[0] == 1 for leaf in jax.tree.leaves(shapes))
