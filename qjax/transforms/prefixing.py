"""Prefixes: the keys and values of a few tokens that every sequence attends to first, and never computes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qjax.diagnose.outliers import outlier_tokens
from qjax.trace.sites import captured
from qjax.transforms.contract import Edit, Stage, Transform, stateless

SITES = ("*/attn/key", "*/attn/value")
PRODUCT = "*/ffn/product"


def prefix(tokens: Sequence[int], *, sites: tuple[str, str] = SITES) -> Transform:
    """Put the float model's keys and values of `tokens` in front of every sequence (IntactKV; catalogue I8).

    They become two leaves of each layer (`qjax.models.prefix`), beside those that make the sites' values (globs; the
    defaults are those of our decoder): "layers/0/attn/key" gives "layers/0/attn/prefix_key", [tokens, heads, dim].
    They come from the reference, whatever has been rounded before, but behind the taps: put this in front of
    `cache_quantize`, which then rounds the other tokens only, behind `rotate`, and in front of methods that calibrate
    activations. Batches must be int [batch, tokens].

    Raises:
        ValueError: no tokens; batches of another kind; a model without these sites, or one that does not read such
            leaves; one that has a prefix already.

    >>> import qjax
    >>> qjax.transforms.prefix([13, 1]).name
    'prefix 13 1'
    """
    if not tokens:
        raise ValueError("prefix: no tokens are given, nothing is left to remember")

    def edit(stage: Stage, key: jax.Array) -> Edit:
        del key
        return added(stage, tokens, sites)

    return stateless(f"prefix {' '.join(map(str, tokens))}", "model", edit)


def outlier_prefix(
    start: int, ratio: float = 64.0, *, product: str = PRODUCT, sites: tuple[str, str] = SITES
) -> Transform:
    """Put the tokens in front that become outliers, so that no later one does (PrefixQuant; catalogue I6).

    Chen et al. 2024, "PrefixQuant" (arXiv:2410.05265), section 4.2 and the authors' code: a token is an outlier of a
    layer if its largest magnitude before the down projection (`product`, a glob of sites) exceeds `ratio` times the
    median of its window's tokens. The prefix is the `frequent` ones, then `start`, the tokenizer's first token.
    See `prefix` for the leaves and for where it stands in a chain.

    Raises:
        ValueError: as `prefix`; no token is an outlier.
    """

    def edit(stage: Stage, key: jax.Array) -> Edit:
        del key
        assert stage.fn is not None
        watch = captured(stage.fn, product)

        @jax.jit
        def outliers(leaves: tuple[Any, ...], batch: Any) -> jax.Array:
            return jnp.stack([outlier_tokens(x, ratio) for x in watch(leaves, batch)[1].values()])

        leaves = tuple(stage.params.values())
        found = [np.asarray(outliers(leaves, read(x))) for x in stage.inputs]
        windows = np.concatenate([np.asarray(x) for x in stage.inputs])
        return added(stage, [*frequent(np.concatenate(found, axis=1), windows), start], sites)

    return stateless(f"outlier_prefix {ratio:g}", "model", edit)


def frequent(outliers: np.ndarray, tokens: np.ndarray) -> list[int]:
    """The ids of the outlier tokens to put in front, the most frequent first.

    As many as the layer with most outliers has in a window on average, rounded up; those at position 0, where any token
    is one, are counted for this but give no id. A single id seen in fewer windows than one in ten gives none.

    Args:
        outliers: boolean [layers, windows, tokens].
        tokens: int [windows, tokens].

    Raises:
        ValueError: no outliers at all.

    >>> mask = np.array([[[True, False, True], [True, False, False]]])
    >>> frequent(mask, np.array([[5, 6, 7], [5, 6, 6]]))
    [7]
    """
    count = math.ceil(outliers.sum(axis=2).mean(axis=1).max())
    if count == 0:
        raise ValueError("outlier_prefix: no token is an outlier, so this model needs no prefix; lower `ratio`?")
    _, window, place = np.nonzero(outliers)
    found = Counter(tokens[window[place > 0], place[place > 0]].tolist())
    if len(found) == 1 and found.total() < 0.1 * len(tokens):
        return []
    return [token for token, _ in sorted(found.items(), key=lambda item: (-item[1], item[0]))[:count]]


def added(stage: Stage, tokens: Sequence[int], sites: tuple[str, str]) -> Edit:
    """The edit that puts the reference's keys and values of `tokens` into every layer."""
    leaves = remembered(stage, tuple(stage.reference.values()), tokens, sites)
    if present := [path for path in leaves if path in stage.params]:
        raise ValueError(f"{present[0]}: this model has a prefix already; a second one would have to stand behind it")
    return Edit(added=leaves, rows={path: {"format": f"tokens {' '.join(map(str, tokens))}"} for path in leaves})


def remembered(
    stage: Stage, leaves: tuple[Any, ...], tokens: Sequence[int], sites: tuple[str, str]
) -> Mapping[str, jax.Array]:
    """What the model with these leaves has at the sites for the tokens alone, by the path of the leaf to hold it."""
    assert stage.fn is not None
    for batch in stage.inputs:
        read(batch)
    _, found = jax.jit(captured(stage.fn, *sites))(leaves, jnp.asarray([tokens], jnp.int32))
    return {"/prefix_".join(site.rsplit("/", 1)): value[0] for site, value in found.items()}


def read(batch: Any) -> Any:
    """A calibration batch, if it is tokens."""
    if jnp.ndim(batch) != 2 or not jnp.issubdtype(jnp.asarray(batch).dtype, jnp.integer):
        raise ValueError("a prefix is read as tokens, int [batch, tokens], and the calibration batches are none")
    return batch
