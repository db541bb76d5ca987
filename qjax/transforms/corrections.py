"""What a quantized layer is off by on average, taken back: biases, shifts of a norm's output, gains of a norm."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from qjax import dispatch
from qjax.operators import Diag, Post, Pre, Shift
from qjax.reconstruct import distribution_distance, minimize
from qjax.trace.use import Use
from qjax.transforms.contract import Edit, Needs, Stage, Transform, stateless
from qjax.transforms.leaves import Core, transport
from qjax.transforms.scaling import bare, by_input


def bias_correction(*, paired: bool = False) -> Transform:
    """Add to each quantized leaf what its output lacks on average: -E[x](Ŵ - W), as a bias behind it.

    With `paired` the mean of the float model's output is restored, E[x_float] W - E[x] Ŵ, errors of earlier layers
    included. Stands behind a weight method. Catalogue D15; Nagel et al. 2019 (arXiv:1906.04721), section 4.2.
    """

    def edit(stage: Stage, key: jax.Array) -> Edit:
        del key
        (path,) = stage.targets
        use = stage.uses[path]
        core, reference = Core.of(stage.params[path], use), Core.of(stage.reference[path], use)
        now, true = (jnp.asarray(dispatch.dense(c.matrix)).astype(jnp.float32) for c in (core, reference))
        mean = transport(path, core.maps, stage.statistics[path])["mean"]
        meant = transport(path, reference.maps, stage.reference_statistics[path])["mean"] if paired else mean
        shift = _through(meant, true) - _through(mean, now)
        new = core.holding(Post(core.matrix, Shift(shift)))
        label = f"bias {float(jnp.sqrt(jnp.mean(shift * shift))):.2g}"
        return Edit(params={path: new.leaf()}, rows={path: {"format": label}})

    needs = Needs(statistics=("mean",), paired=paired)
    return stateless("bias_correction" + (" paired" if paired else ""), "leaf", edit, needs)


def _through(x: jax.Array, w: jax.Array) -> jax.Array:
    x = jnp.broadcast_to(x, w.shape[:-1])
    return jnp.einsum("...k,...kn->...n", x, w, precision="highest")


def mean_shift() -> Transform:
    """Shift what leaves read by E[x_float - x], the mean deviation that earlier quantization caused (catalogue E14).

    D²Quant's deviation-aware correction (Yan et al. 2026, arXiv:2602.02546, section 3.3): written online in front of
    the leaves that read a norm's output, it is a bias of that norm. The paper corrects the norm behind attention, whose
    deviation is the most systematic: select its readers with `qjax.masked`. `run` measures it sequentially, so that
    attention is quantized by then.
    """

    def edit(stage: Stage, key: jax.Array) -> Edit:
        del key
        first = stage.targets[0]
        shift = stage.reference_statistics[first]["mean"] - stage.statistics[first]["mean"]
        params = {p: in_front(Shift(shift), stage.params[p], stage.uses[p]) for p in stage.targets}
        label = f"shift {float(jnp.sqrt(jnp.mean(shift * shift))):.2g}"
        return Edit(params=params, rows={p: {"format": label} for p in stage.targets})

    return stateless("mean_shift", "inputs", edit, Needs(statistics=("mean",), paired=True))


def norm_tweak(*, steps: int = 32, rate: float = 1e-5) -> Transform:
    """Learn one gain a channel for what leaves read, so that the block's outputs keep their mean and variance.

    Li et al., "Norm tweaking: high-performance low-bit quantization of large language models", 2023 (arXiv:2309.02784,
    eq. 3; catalogue D14): after a block is quantized, Adam minimizes |mean - mean'| + |var - var'| over its channels. A
    gain in front of all readers of a norm is that norm's own, and `qjax.fold` moves it there; select those leaves with
    `qjax.masked`. Stands behind a weight method. Each step reads one calibration batch.

    Raises:
        ValueError: a negative number of steps or a rate that is not positive.
    """
    if steps < 0 or not rate > 0:
        raise ValueError(f"norm_tweak: {steps} steps at rate {rate}; give no negative steps and a positive rate")
    optimizer = optax.adam(rate)

    def edit(stage: Stage, key: jax.Array) -> Edit:
        groups = by_input(stage)
        place = {path: i for i, path in enumerate(stage.params)}
        members = tuple((place[p], g, bare(stage.uses[p])) for g, paths in groups.items() for p in paths)
        variables = {g: jnp.ones(stage.uses[paths[0]].matrix_shape[:-1], jnp.float32) for g, paths in groups.items()}
        items = list(zip(stage.inputs, stage.reference_outputs, strict=True))
        found = minimize(
            _Distribution(members),
            stage.fn,
            variables,
            tuple(stage.params.values()),
            items,
            optimizer=optimizer,
            steps=steps,
            key=key,
        )
        row = {"format": "gain", "error_before": float(found.before), "error_after": float(found.loss)}
        params = {
            p: in_front(Diag(found.variables[g]), stage.params[p], stage.uses[p])
            for g, paths in groups.items()
            for p in paths
        }
        return Edit(params=params, rows=dict.fromkeys(stage.targets, row))

    return stateless("norm_tweak", "block", edit, Needs(streams=True))


@dataclasses.dataclass(frozen=True)
class _Distribution:
    """The loss of `norm_tweak`; `members`: (position, group, use) of each leaf whose input has a gain."""

    members: tuple[tuple[int, str, Use], ...]

    def __call__(
        self, fn: Any, variables: Mapping[str, jax.Array], constants: Any, item: Any, progress: jax.Array
    ) -> jax.Array:
        del progress
        leaves = list(constants)
        x, y = item
        for i, group, use in self.members:
            leaves[i] = in_front(Diag(variables[group]), leaves[i], use)
        return distribution_distance(fn(tuple(leaves), x), y)


def in_front(m: Any, leaf: Any, use: Use) -> Any:
    """The leaf with a map in front of everything it holds."""
    return use.from_matrix(Pre(m, use.to_matrix(leaf)))
