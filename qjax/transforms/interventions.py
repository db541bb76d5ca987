"""Changes that quantize nothing and show what a network leans on: weights or features zeroed, activations pinned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from qjax.operators import Diag, Pinned
from qjax.trace.paths import named_key
from qjax.trace.sites import captured
from qjax.transforms.contract import Edit, Needs, Stage, Transform, stateless
from qjax.transforms.leaves import Core, float_core
from qjax.transforms.matrices import behind_maps

By = Literal["product", "magnitude", "random"]


def zero_weights(count: int = 1, *, by: By = "product", skip: int = 0) -> Transform:
    """Set the `count` largest weights of all targets together to zero.

    `by` says largest in what: the "product" of a weight and the largest input it meets in calibration, which finds
    super weights; its own "magnitude"; or nothing ("random", from the run's key). The `skip` weights of the largest
    products are left alone, so that the others can be removed without them.

    Source: super weights (Yu et al. 2024, arXiv:2411.07191, section 3, where one forward pass shows them by the spikes
    of a matrix's input and output); catalogue T6.

    Raises:
        ValueError: a count below 1 or beyond the targets' weights, a measure that does not exist; a leaf that is
            quantized already, by name.
    """
    if count < 1 or skip < 0 or by not in get_args(By):
        raise ValueError(
            f"zero_weights: count={count}, skip={skip}, by={by!r}; give at least 1, at least 0, one of {get_args(By)}"
        )

    def edit(stage: Stage, key: jax.Array) -> Edit:
        cores = {path: float_core(path, stage.params[path], stage.uses[path]) for path in stage.targets}
        total = sum(w.size for _, w in cores.values())
        if count + skip > total:
            raise ValueError(f"zero_weights: {count} and {skip} of {total} weights; give fewer, or more targets")
        products = largest_products(stage, cores)
        if by == "product":
            scores = products
        elif by == "magnitude":
            scores = {path: jnp.abs(w) for path, (_, w) in cores.items()}
        else:
            scores = {path: jax.random.uniform(named_key(key, path), w.shape) for path, (_, w) in cores.items()}
        kept = largest(products, skip)
        gone = largest({path: jnp.where(kept[path], -1.0, score) for path, score in scores.items()}, count)
        new, rows = {}, {}
        for path, (core, w) in cores.items():
            number = int(jnp.sum(gone[path]))
            rows[path] = {"format": f"{number} zeroed"}
            if number:
                new[path] = core.holding(jnp.where(gone[path], 0.0, w).astype(core.matrix.dtype)).leaf()
        return Edit(params=new, rows=rows)

    return stateless(f"zero_weights {count} {by}", "model", edit, Needs(statistics=("absmax",)))


def largest_products(stage: Stage, cores: Mapping[str, tuple[Core, jax.Array]]) -> dict[str, jax.Array]:
    """Each weight's magnitude times that of the largest input it meets: what finds super weights."""
    return {
        path: jnp.abs(w) * behind_maps(path, core, stage, ("absmax",))["absmax"][..., None]
        for path, (core, w) in cores.items()
    }


def largest(scores: Mapping[str, jax.Array], count: int) -> dict[str, jax.Array]:
    """Masks of the `count` largest numbers of all arrays together."""
    flat = np.concatenate([np.asarray(s, np.float32).reshape(-1) for s in scores.values()])
    chosen = np.zeros(flat.size, bool)
    chosen[np.argpartition(flat, flat.size - count)[flat.size - count :] if count else []] = True
    ends = np.cumsum([s.size for s in scores.values()])[:-1]
    parts = np.split(chosen, ends)
    return {path: jnp.asarray(m.reshape(s.shape)) for (path, s), m in zip(scores.items(), parts, strict=True)}


def pin_massive(
    fill: Literal["mean", "zero"] = "mean", *, magnitude: float = 1000.0, site: str = "*/residual/ffn"
) -> Transform:
    """Replace massive activations where they first appear, by zero or by their mean over the calibration data.

    The first of the sites (a glob, in the order of the network) with a value of at least `magnitude` gets a tap: from
    there on, such a value of a channel is the constant. Later layers are not touched.

    Source: Sun et al. 2024 (arXiv:2402.17762, section 3): zero makes the model collapse, the mean changes nothing, so
    they act as constant biases; catalogue T5.

    Raises:
        ValueError: no site of that name; no value that large, naming the largest there is.
    """
    if fill not in ("mean", "zero"):
        raise ValueError(f"pin_massive: fill={fill!r}; give 'mean' or 'zero'")

    def edit(stage: Stage, key: jax.Array) -> Edit:
        del key
        assert stage.fn is not None
        look = jax.jit(captured(stage.fn, site))
        leaves = tuple(stage.params.values())
        sums: dict[str, Any] = {}
        largest = 0.0
        for batch in stage.inputs:
            for name, x in look(leaves, batch)[1].items():
                x = x.astype(jnp.float32).reshape(-1, x.shape[-1])
                large = jnp.abs(x) >= magnitude
                here = jnp.stack([jnp.sum(jnp.where(large, x, 0.0), axis=0), jnp.sum(large, axis=0).astype(x.dtype)])
                sums[name] = sums[name] + here if name in sums else here
                largest = max(largest, float(jnp.max(jnp.abs(x))))
        first = next((name for name, (_, n) in sums.items() if float(jnp.sum(n))), None)
        if first is None:
            raise ValueError(
                f"pin_massive: the largest value at {site!r} is {largest:.4g}, below magnitude = {magnitude:g}"
            )
        total, number = sums[first]
        values = jnp.where(number > 0, total / jnp.maximum(number, 1.0) if fill == "mean" else 0.0, jnp.nan)
        return Edit(taps={first: Pinned(values, magnitude)})

    return stateless(f"pin_massive {fill} {magnitude:g}", "model", edit)


def zero_features(
    count: int = 7,
    *,
    by: Literal["outliers", "random"] = "outliers",
    magnitude: float = 6.0,
    site: str = "*/attn_norm/output",
) -> Transform:
    """Set `count` channels of what the attention projections read to zero, the same in every layer.

    Either the "outliers", which have the most values of at least `magnitude` over the calibration tokens of all layers,
    or "random" ones from the run's key.

    Source: Dettmers et al. 2022 (arXiv:2208.07339, section 4): without at most seven outlier features the top-1
    probability is halved, without as many random ones nothing happens; catalogue T3.

    Raises:
        ValueError: no site of that name; a count below 1 or beyond the channels; fewer channels with such values.
    """
    if count < 1 or by not in ("outliers", "random"):
        raise ValueError(f"zero_features: count={count}, by={by!r}; give at least 1, 'outliers' or 'random'")

    def edit(stage: Stage, key: jax.Array) -> Edit:
        assert stage.fn is not None
        look = jax.jit(captured(stage.fn, site))
        leaves = tuple(stage.params.values())
        large: Any = 0
        for batch in stage.inputs:
            for x in look(leaves, batch)[1].values():
                large = large + jnp.sum(jnp.abs(x.reshape(-1, x.shape[-1])) >= magnitude, axis=0)
        if count > large.size:
            raise ValueError(f"zero_features: {count} of {large.size} channels at {site!r}")
        if by == "outliers" and count > (found := int(jnp.sum(large > 0))):
            raise ValueError(
                f"zero_features: {found} channels at {site!r} reach {magnitude:g}; give a smaller count or magnitude"
            )
        order = jnp.argsort(-large) if by == "outliers" else jax.random.permutation(key, large.size)
        return Edit(taps={site: Diag(jnp.ones(large.size, jnp.float32).at[order[:count]].set(0.0))})

    return stateless(f"zero_features {count} {by}", "model", edit)
