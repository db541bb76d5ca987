"""A prefix found token by token, for the least rounding error of the activations behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qjax.formats import Format, as_format
from qjax.operators import Quantize
from qjax.trace.sites import captured
from qjax.transforms.contract import Edit, Stage, Transform, stateless
from qjax.transforms.prefixing import SITES, added, read

# What the matrices of our decoder read.
INPUTS = ("*/attn_norm/output", "*/attn/mixed", "*/ffn_norm/output", "*/ffn/product")


def search_prefix(
    candidates: Sequence[int],
    fmt: Format | str = "int8_tensor",
    *,
    threshold: float = 0.5,
    longest: int = 8,
    rows: int = 8,
    inputs: tuple[str, ...] = INPUTS,
    sites: tuple[str, str] = SITES,
) -> Transform:
    """Put tokens in front, one after the other the candidate that lowers the rounding error most (catalogue I7).

    The greedy search of CushionCache (Son et al. 2024, arXiv:2406.12016): the prefix grows by the token behind which
    the activations that matrices read (`inputs`, globs of sites) lose least in `fmt`, as long as that is less than
    `threshold` times what they lost without it. The error is the mean square of each site's, summed over the sites, on
    the first calibration window. `rows` candidates are tried at a time; how many tokens there are at most and which
    candidates are tried is ours. See `prefix` for the leaves and for where it stands in a chain.

    Raises:
        ValueError: as `prefix`; no candidates; none of them lowers the error so far.
    """
    f, tried = as_format(fmt), np.asarray(candidates, np.int32)
    if not len(tried):
        raise ValueError("search_prefix: no candidates are given, nothing is left to try")

    def edit(stage: Stage, key: jax.Array) -> Edit:
        del key
        assert stage.fn is not None
        window, leaves = read(stage.inputs[0])[:1], tuple(stage.params.values())
        watch = jax.jit(error_behind(stage.fn, f, inputs), static_argnums=2)

        def losses(prefix: Sequence[int], last: np.ndarray) -> np.ndarray:
            """The error behind the prefix and each of the last tokens."""
            fixed = jnp.broadcast_to(jnp.asarray([prefix], jnp.int32), (len(last), len(prefix)))
            text = jnp.broadcast_to(jnp.asarray(window, jnp.int32), (len(last), window.shape[1]))
            tokens = jnp.concatenate([fixed, jnp.asarray(last)[:, None], text], axis=1)
            return np.asarray(watch(leaves, tokens, len(prefix) + 1))

        now = float(watch(leaves, jnp.asarray(window, jnp.int32), 0)[0])
        found: list[int] = []
        while len(found) < longest:
            # The last rows are tried twice rather than compiled for their number.
            starts = [min(i, max(len(tried) - rows, 0)) for i in range(0, len(tried), rows)]
            groups = [tried[i : i + rows] for i in starts]
            each = {int(t): float(e) for g in groups for t, e in zip(g, losses(found, g), strict=True)}
            best = min(each, key=lambda t: (each[t], t))
            if not each[best] < threshold * now:
                break
            found, now = [*found, best], each[best]
        if not found:
            raise ValueError(
                f"search_prefix: behind none of {len(tried)} candidates is the error less than {threshold:g} times "
                "what it is without a prefix; this model may need none"
            )
        return added(stage, found, sites)

    return stateless(f"search_prefix {f.name}", "model", edit)


def error_behind(fn: Any, fmt: Format, inputs: tuple[str, ...]) -> Any:
    """(leaves, tokens [rows, tokens], skip) -> the rounding error of each row's activations from token `skip` on."""

    def lost(x: jax.Array) -> jax.Array:
        return jnp.mean((x - jax.lax.stop_gradient(Quantize.dynamic(fmt).apply(x))) ** 2)

    def error(leaves: tuple[Any, ...], tokens: jax.Array, skip: int) -> jax.Array:
        _, seen = captured(fn, *inputs)(leaves, tokens)
        return jnp.sum(jnp.stack([jax.vmap(lost)(x[:, skip:]) for x in seen.values()]), axis=0)

    return error
