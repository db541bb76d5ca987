"""Rotations of a whole network learned through rounding: SpinQuant."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from qjax.equivalence.rotation import rotate_stream, rotate_values
from qjax.formats import Format, as_format
from qjax.operators import Hadamard, Map, Orthogonal, Quantize
from qjax.quantization import fake_quantize
from qjax.reconstruct import cayley_sgd, minimize, squared_distance
from qjax.trace.paths import named_key
from qjax.trace.topology import Topology
from qjax.trace.use import Use
from qjax.transforms.contract import Edit, Stage, Transform, stateless
from qjax.transforms.edits import absorbed
from qjax.transforms.leaves import Core
from qjax.transforms.rotating import SCORES, online_rotations, turned, width, wired


def learn_rotation(
    inputs: Format | str = "int4_affine",
    weights: Format | str | None = None,
    *,
    steps: int = 100,
    rate: float = 1.5,
    scores: bool = True,
    down: bool = True,
    heads: bool = False,
    sites: tuple[str, ...] = SCORES,
) -> Transform:
    """Rotate the stream and each layer's heads by matrices learned on the model's loss with rounded inputs.

    Liu et al., "SpinQuant: LLM quantization with learned rotations", 2024 (arXiv:2405.16406; catalogue H3). R1 on the
    stream and an R2 for each layer's values start as random Hadamard matrices and follow Cayley SGD, its rate falling
    to zero by a cosine, through the straight-through rounding of every target's input (and of its weights, if a format
    is given: for round to nearest afterwards; the authors leave them in float if GPTQ follows). Each step reads one
    calibration batch. The loss is that given to `run`, as the authors' next-token loss, or else the squared distance of
    the outputs from the float model's. Both matrices disappear in the weights. `scores`, `down` and `heads` add the
    Hadamard rotations of `rotate` that stay online (the paper's R3 and R4, and QuaRot's mixing of heads, which it
    leaves out); the keys and values themselves are not rounded in the loss.

    Raises:
        ValueError: a negative number of steps, a rate that is not positive, or a model whose wiring is unknown.
    """
    x_format, w_format = as_format(inputs), None if weights is None else as_format(weights)
    if steps < 0 or not rate > 0:
        raise ValueError(f"learn_rotation: {steps} steps at rate {rate}; give no negative steps and a positive rate")
    optimizer = cayley_sgd(optax.cosine_decay_schedule(rate, max(steps, 1)))

    def edit(stage: Stage, key: jax.Array) -> Edit:
        wiring = wired("learn_rotation", stage, scores)
        start: dict[str, Any] = {"stream": _dense(named_key(key, "stream"), width(stage, wiring))}
        for v in wiring.values:
            stacked = jnp.moveaxis(stage.reference[v.v.path], v.v.axis, -1).shape[:-2]
            dense = _dense(named_key(key, v.v.path), v.head_dim)
            start[v.v.path] = jnp.broadcast_to(dense, (*stacked, *dense.shape))
        online, _ = online_rotations(stage.reference, wiring, key, down, heads)
        order, uses = tuple(stage.reference), {p: stage.uses[p] for p in stage.targets}
        loss = _Rounded(wiring, order, tuple(uses.items()), x_format, w_format, stage.loss)
        leaves = tuple(stage.reference.values())
        fn = stage.fn
        assert fn is not None
        wanted = [None if stage.loss is not None else fn(leaves, x) for x in stage.inputs]
        found = minimize(
            loss,
            fn,
            start,
            (leaves, online),
            list(zip(stage.inputs, wanted, strict=True)),
            optimizer=optimizer,
            steps=steps,
            key=named_key(key, "order"),
        )
        done = turned(stage, wiring, key, rotated(stage.reference, wiring, found.variables), *_rest())
        errors = {"error_before": float(found.before), "error_after": float(found.loss)}
        return done._replace(rows={path: {**row, **errors} for path, row in done.rows.items()})

    def _rest() -> tuple[Any, ...]:
        return sites if scores else (), down, heads

    return stateless(f"learn_rotation {x_format.name}", "model", edit)


def rotated(leaves: Mapping[str, Any], wiring: Topology, rotations: Mapping[str, jax.Array]) -> dict[str, Any]:
    """The leaves that change under a rotation of the "stream" and one of each layer's values, by path."""
    new = rotate_stream(leaves, wiring, Orthogonal(rotations["stream"]))
    own = {v.v.path: Orthogonal(rotations[v.v.path]) for v in wiring.values}
    return new | rotate_values({**leaves, **new}, wiring, own)


def _dense(key: jax.Array, size: int) -> jax.Array:
    return Hadamard.random(key, size).apply(jnp.eye(size, dtype=jnp.float32))


@dataclasses.dataclass(frozen=True)
class _Rounded:
    """The loss of `learn_rotation`: of the model rotated by the variables, with rounded inputs and weights.

    `order`: the paths of the leaves; `uses`: those of the targets.
    """

    wiring: Topology
    order: tuple[str, ...]
    uses: tuple[tuple[str, Use], ...]
    inputs: Format
    weights: Format | None
    loss: Any

    def __call__(
        self, fn: Any, variables: Mapping[str, jax.Array], constants: Any, item: Any, progress: jax.Array
    ) -> jax.Array:
        del progress
        given, online = constants
        leaves = dict(zip(self.order, given, strict=True))
        leaves |= rotated(leaves, self.wiring, variables)
        for path, use in self.uses:
            leaves[path] = self.rounded(path, leaves[path], use, online.get(path))
        x, want = item
        ready = tuple(leaves[path] for path in self.order)
        return squared_distance(fn(ready, x), want) if self.loss is None else self.loss(ready, x)

    def rounded(self, path: str, leaf: Any, use: Use, online: Map | None) -> Any:
        """A leaf with the map that stays online in front of it, its input and its weights rounded."""
        core = Core.of(leaf if online is None else absorbed(path, leaf, online, use), use)
        if self.weights is not None:
            w = core.matrix
            core = core.holding(fake_quantize(w, self.weights, axis=-2, batch_axes=w.ndim - 2))
        return core.behind(Quantize.dynamic(self.inputs)).leaf()
