"""FlatQuant: an affine map in front of every input, learned through the rounding of a block."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from qjax.formats import Format, as_format
from qjax.operators import Composed, Diag, Kronecker, Quantize
from qjax.quantization import fake_quantize
from qjax.reconstruct import minimize, squared_distance
from qjax.trace.paths import named_key
from qjax.trace.use import Use
from qjax.transforms.contract import Edit, Needs, Stage, Transform, stateless
from qjax.transforms.edits import countered
from qjax.transforms.leaves import Core, float_core, transport
from qjax.transforms.scaling import bare, by_input
from qjax.transforms.smoothing import migration


def learn_affine(
    weights: Format | str = "int4_channel",
    inputs: Format | str = "int4",
    *,
    steps: int = 480,
    rate: float = 5e-3,
    alpha: float = 0.3,
) -> Transform:
    """Learn x -> (x c) (P1 kron P2) before each input of a block, so that its rounded output is near the float one.

    FlatQuant (Sun et al. 2024, arXiv:2410.09426): c starts as SmoothQuant's scale with `alpha`, P1 and P2 as random
    rotations of sizes as equal as their product allows; AdamW with a cosine from `rate` learns all maps of a block
    together on the squared error of its output for the float model's inputs, weights and inputs rounded straight
    through. The defaults are the authors' (15 epochs of 128 windows, 4 a step). Online, at K (n1 + n2) multiplications
    a token; an equivalence, so that any weight method may follow. The authors also learn a clipping ratio for every
    output and input, which is left out.

    Raises:
        ValueError: a negative number of steps, a rate that is not positive, alpha outside [0, 1].
    """
    w_format, x_format = as_format(weights), as_format(inputs)
    if steps < 0 or not rate > 0 or not 0 <= alpha <= 1:
        raise ValueError(
            f"learn_affine: {steps} steps at rate {rate}, alpha {alpha}; give steps >= 0, a rate > 0, 0 to 1"
        )
    optimizer = optax.adamw(optax.cosine_decay_schedule(rate, max(steps, 1), alpha=1e-3), weight_decay=0.01)

    def edit(stage: Stage, key: jax.Array) -> Edit:
        cores = {p: float_core(p, stage.params[p], stage.uses[p]) for p in stage.targets}
        groups = by_input(stage)
        start = {}
        for g, paths in groups.items():
            core, w = cores[paths[0]]
            size = transport(paths[0], core.maps, {"absmax": stage.statistics[paths[0]]["absmax"]})["absmax"]
            size = jnp.broadcast_to(size, w.shape[:-1])
            scale = 1 / migration(size, [cores[p][1] for p in paths], alpha)
            start[g] = {"scale": scale, "factors": _rotations(named_key(key, paths[0]), w.shape[:-1])}
        place = {path: i for i, path in enumerate(stage.params)}
        members = tuple((place[p], g, bare(stage.uses[p])) for g, paths in groups.items() for p in paths)
        constants = tuple(stage.params.values()), {place[p]: (core.maps, w) for p, (core, w) in cores.items()}
        judge = _Flat(w_format, x_format, members)
        found = minimize(
            dataclasses.replace(judge, relative=True),
            stage.fn,
            start,
            constants,
            list(zip(stage.reference_inputs, stage.reference_outputs, strict=True)),
            optimizer=optimizer,
            steps=steps,
            key=named_key(key, "order"),
            judge=judge,
        )
        row = {"error_before": float(found.before), "error_after": float(found.loss)}
        maps = {p: affine(found.variables[g]) for g, paths in groups.items() for p in paths}
        return Edit(equivalence=maps, rows=dict.fromkeys(stage.targets, row))

    name = f"learn_affine {w_format.name} {x_format.name}"
    return stateless(name, "block", edit, Needs(statistics=("absmax",), streams=True))


def affine(variables: Mapping[str, Any]) -> Composed:
    """The map of a scale [..., K] and two Kronecker factors."""
    return Composed((Diag(variables["scale"]), Kronecker(tuple(variables["factors"]))))


def _rotations(key: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Two random rotations [batch..., n, n] for inputs [batch..., K], of sizes as equal as their product K allows."""
    *batch, k = shape
    first = next(n for n in range(math.isqrt(k), 0, -1) if k % n == 0)
    keys = jax.random.split(key)
    drawn = (jax.random.orthogonal(own, n) for own, n in zip(keys, (first, k // first), strict=True))
    return tuple(jnp.broadcast_to(r, (*batch, *r.shape)) for r in drawn)  # pyright: ignore[reportReturnType]


@dataclasses.dataclass(frozen=True)
class _Flat:
    """The loss of `learn_affine`; `members`: (position, group, use) of each matrix, `relative`: divided by its value.

    Equal blocks have equal losses, so they share one compiled step.
    """

    weights: Format
    inputs: Format
    members: tuple[tuple[int, str, Use], ...]
    relative: bool = False

    def __call__(
        self, fn: Any, variables: Mapping[str, Any], constants: Any, item: Any, progress: jax.Array
    ) -> jax.Array:
        del progress
        leaves, matrices = list(constants[0]), constants[1]
        x, y = item
        for i, group, use in self.members:
            maps, w = matrices[i]
            m = affine(variables[group])
            for part in m.maps:
                w, _ = countered(part, w)
            rounded = fake_quantize(w, self.weights, axis=-2, batch_axes=w.ndim - 2)
            leaves[i] = Core((*maps, *m.maps, Quantize.dynamic(self.inputs)), rounded, use).leaf()
        distance = squared_distance(fn(tuple(leaves), x), y)
        return distance / lax.stop_gradient(distance) if self.relative else distance
