"""Input channels rescaled and ranges clipped for the sake of rounded weights, by search or descent."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from qjax import dispatch, solvers
from qjax.formats import Format, as_format
from qjax.operators import Diag
from qjax.operators.operator import batched
from qjax.quantization import fake_quantize
from qjax.reconstruct import minimize, squared_distance
from qjax.solvers import awq as awq_solver
from qjax.solvers import d2quant
from qjax.trace.use import Use
from qjax.transforms.contract import Edit, Needs, Stage, Transform, stateless
from qjax.transforms.leaves import Core, float_core, transport
from qjax.transforms.matrices import behind_maps, quantize_with
from qjax.transforms.smoothing import migration


def awq(fmt: Format | str, *, points: int = 20, weights: bool = False) -> Transform:
    """Scale channels by mean|x|^alpha, alpha of `points` in [0, 1) with the least output error of rounding in `fmt`.

    Leaves that read one input share the scale, written online as `Pre(Diag(1/s), sW)`; put `rtn(fmt)` or `clip(fmt)`
    behind it. `weights` also divides by the weights' relative size. Catalogue E8; the error is that of the leaves
    themselves (the paper's eq. 4), where its code takes the parent module's for q, k, v and gate, up.

    Raises:
        ValueError: fewer than one point.
    """
    f = as_format(fmt)
    if points < 1:
        raise ValueError(f"awq: {points} points; give at least 1")
    alphas = tuple(i / points for i in range(points))

    def edit(stage: Stage, key: jax.Array) -> Edit:
        del key
        cores = {p: float_core(p, stage.params[p], stage.uses[p]) for p in stage.targets}
        ws = [w for _, w in cores.values()]
        first = stage.targets[0]
        found = behind_maps(first, cores[first][0], stage, ("gram", "mean_abs"))

        def search(ws: list[jax.Array], gram: jax.Array, size: jax.Array) -> awq_solver.Search:
            return awq_solver.search(ws, gram, size, f, alphas=alphas, weights=weights)

        out = batched(search, ws[0].ndim - 2)(ws, found["gram"], found["mean_abs"])
        label = f"alpha {', '.join(f'{float(a):g}' for a in jnp.atleast_1d(out.alpha).reshape(-1)[:4])}"
        return Edit(
            equivalence={path: Diag(1 / out.scale) for path in stage.targets},
            rows={path: {"format": label} for path in stage.targets},
        )

    return stateless(f"awq {f.name}", "inputs", edit, Needs(statistics=("gram", "mean_abs")))


def clip(fmt: Format | str, *, points: int = 20, shrink: float = 0.5) -> Transform:
    """Round to nearest in ranges that each group clips for the least error of its share of the output.

    The second half of AWQ (catalogue E8): fractions 1 - i/points of the absmax down to 1 - shrink.
    """
    f = as_format(fmt)
    return quantize_with(
        awq_solver.clipped, f, name=f"clip {f.name}", statistics=("gram",), points=points, shrink=shrink
    )


def dual_scale(fmt: Format | str, *, steps: int = 15) -> Transform:
    """Give each input channel the scale with which rounding in `fmt` errs least: D²Quant's (catalogue E14).

    An equivalence, `Pre(Diag(c), W/c)`, for any weight method behind it. Meant for a gated block's down projection:
    where the producer is still float, `qjax.fold` moves c into it and it costs nothing.
    """
    f = as_format(fmt)

    def edit(stage: Stage, key: jax.Array) -> Edit:
        del key
        (path,) = stage.targets
        _, w = float_core(path, stage.params[path], stage.uses[path])
        found = batched(lambda w: d2quant.dual_scale(w, f, steps=steps), w.ndim - 2)(w)
        return Edit(equivalence={path: Diag(found.scale)})

    return stateless(f"dual_scale {f.name}", "leaf", edit)


def smooth_search(
    fmt: Format | str, *, alphas: Sequence[float] = tuple(i / 20 for i in range(21)), batches: int | None = None
) -> Transform:
    """SmoothQuant's scale with one alpha for the whole model, by the model's own error under rounding (catalogue E18).

    Every alpha of the grid is tried on the first `batches` calibration batches: by the loss that `run` was given, or
    else by the squared distance of the outputs to the float model's. SmoothQuant+ (Pan et al. 2023, arXiv:2312.03788).

    Raises:
        ValueError: no alphas, or one outside [0, 1].
    """
    f = as_format(fmt)
    if not alphas or not all(0 <= a <= 1 for a in alphas):
        raise ValueError(f"smooth_search: alphas {tuple(alphas)}; give some between 0 and 1")

    def edit(stage: Stage, key: jax.Array) -> Edit:
        del key
        assert stage.fn is not None
        cores = {p: float_core(p, stage.params[p], stage.uses[p]) for p in stage.targets}

        def scales(alpha: float) -> dict[str, jax.Array]:
            out = {}
            for paths in by_input(stage).values():
                core, _ = cores[paths[0]]
                x = transport(paths[0], core.maps, stage.statistics[paths[0]])["absmax"]
                s = migration(x, [cores[p][1] for p in paths], alpha)
                out.update(dict.fromkeys(paths, s))
            return out

        def rounded(alpha: float) -> tuple[Any, ...]:
            leaves = dict(stage.params)
            for path, s in scales(alpha).items():
                core, w = cores[path]
                s = s[..., None]
                new = dispatch.dense(solvers.rtn(s * w, f)) / s
                leaves[path] = core.holding(new.astype(core.matrix.dtype)).leaf()
            return tuple(leaves.values())

        inputs = stage.inputs[:batches]
        score = _scorer(stage)
        errors = [sum(float(score(rounded(alpha), x)) for x in inputs) for alpha in alphas]
        best = alphas[min(range(len(alphas)), key=errors.__getitem__)]
        return Edit(
            equivalence={path: Diag(1 / s) for path, s in scales(best).items()},
            rows={path: {"format": f"alpha {best:g}"} for path in stage.targets},
        )

    return stateless(f"smooth_search {f.name}", "model", edit, Needs(statistics=("absmax",)))


def _scorer(stage: Stage) -> Callable[[tuple[Any, ...], Any], jax.Array]:
    """(leaves, input) -> the stage's loss, or the squared distance of its output to that of the float reference."""
    if stage.loss is not None:
        return jax.jit(stage.loss)
    assert stage.fn is not None
    fn, reference = stage.fn, tuple(stage.reference.values())

    @jax.jit
    def distance(leaves: tuple[Any, ...], true: tuple[Any, ...], x: Any) -> jax.Array:
        return squared_distance(fn(leaves, x), fn(true, x))

    return lambda leaves, x: distance(leaves, reference, x)


def learned_scale(fmt: Format | str, *, steps: int = 200, rate: float = 1e-3) -> Transform:
    """Learn the input scales of a block by descent through rounding in `fmt`: TEQ (catalogue E17).

    Cheng et al., "TEQ: trainable equivalent transformation for quantization of LLMs", 2023 (arXiv:2310.10944): W x =
    Q(W diag(s)) diag(s)⁻¹ x with s trained by Adam, straight through the rounding, and folded away afterwards. The
    paper trains all blocks at once on the language modelling loss; here each learns its own output on its own inputs.

    Raises:
        ValueError: a negative number of steps or a rate that is not positive.
    """
    f = as_format(fmt)
    if steps < 0 or not rate > 0:
        raise ValueError(f"learned_scale: {steps} steps at rate {rate}; give no negative steps and a positive rate")
    optimizer = optax.adam(rate)

    def edit(stage: Stage, key: jax.Array) -> Edit:
        cores = {p: float_core(p, stage.params[p], stage.uses[p]) for p in stage.targets}
        groups = by_input(stage)
        variables = {g: jnp.zeros(cores[paths[0]][1].shape[:-1], jnp.float32) for g, paths in groups.items()}
        place = {path: i for i, path in enumerate(stage.params)}
        members = tuple((place[p], g, bare(stage.uses[p])) for g, paths in groups.items() for p in paths)
        constants = tuple(stage.params.values()), {place[p]: (core.maps, w) for p, (core, w) in cores.items()}
        items = list(zip(stage.inputs, stage.reference_outputs, strict=True))
        found = minimize(
            _Scaled(f, members), stage.fn, variables, constants, items, optimizer=optimizer, steps=steps, key=key
        )
        row = {"format": f"learned {f.name}", "error_before": float(found.before), "error_after": float(found.loss)}
        scale = {p: jnp.exp(found.variables[g]) for g, paths in groups.items() for p in paths}
        return Edit(
            equivalence={path: Diag(1 / s) for path, s in scale.items()}, rows=dict.fromkeys(stage.targets, row)
        )

    return stateless(f"learned_scale {f.name}", "block", edit, Needs(streams=True))


@dataclasses.dataclass(frozen=True)
class _Scaled:
    """The loss of `learned_scale`: squared distance of a block's output with its matrices rounded in scaled channels.

    `members`: (position, group, use) of each matrix. Equal blocks have equal losses, so they share one compiled step.
    """

    fmt: Format
    members: tuple[tuple[int, str, Use], ...]

    def __call__(
        self, fn: Any, variables: Mapping[str, jax.Array], constants: Any, item: Any, progress: jax.Array
    ) -> jax.Array:
        del progress
        leaves, matrices = list(constants[0]), constants[1]
        x, y = item
        for i, group, use in self.members:
            maps, w = matrices[i]
            s = jnp.exp(variables[group])[..., None]
            rounded = fake_quantize(s * w, self.fmt, axis=-2, batch_axes=w.ndim - 2) / s
            leaves[i] = Core(maps, rounded, use).leaf()
        return squared_distance(fn(tuple(leaves), x), y)


def by_input(stage: Stage) -> dict[str, list[str]]:
    """Targets of a stage that read one input, by a name for each input."""
    groups: dict[Any, list[str]] = {}
    for path in stage.targets:
        groups.setdefault(stage.uses[path].input_id, []).append(path)
    return {str(i): paths for i, paths in enumerate(groups.values())}


def bare(use: Use) -> Use:
    """A use without its place in the model: equal for equal leaves of equal blocks."""
    return dataclasses.replace(use, path="", input_id=None)
