"""Maps in front of the inputs of a block, and the ranges of its weights, learned together through their rounding."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from qjax.formats import Format, as_format
from qjax.operators import Composed, Map, Quantize
from qjax.qarray import QArray
from qjax.quantization import bits_per_weight, encode, fake_quantize
from qjax.reconstruct import LearnedQuantize, minimize, squared_distance
from qjax.reconstruct.straight import block_scales, project, scaled_grid
from qjax.trace.paths import named_key
from qjax.trace.use import Use
from qjax.transforms.contract import Edit, Needs, Stage, Transform
from qjax.transforms.edits import countered
from qjax.transforms.leaves import Core, channel_ends, float_core
from qjax.transforms.map_rules import MapRule, Scales
from qjax.transforms.scaling import bare, by_input

Distance = Callable[[Any, Any], jax.Array]
State = Mapping[str, tuple[Mapping[str, jax.Array], Quantize | None]]
# A share of sigmoid(4) = 0.982 of each end: where the authors of OmniQuant begin.
START = 4.0


def learn_maps(
    rule: MapRule | None,
    weights: Format | str,
    inputs: Format | str | None = None,
    *,
    optimizer: optax.GradientTransformation,
    steps: int,
    clip: bool = False,
    static: bool = False,
    whole: bool = False,
    stream: str = "quantized",
    augmented: bool = False,
    corrected: tuple[str, ...] = (),
    distance: Distance = squared_distance,
) -> Transform:
    """Learn the map before each input of a block so that its rounded output is near the float model's.

    One map for the leaves that read one input, of the family `rule` (`Scales`, `Banded`, `Factors`, `BlockFactors`);
    weights and inputs (None: float) are rounded straight through. An equivalence, so that any weight method may follow.

    Args:
        rule: the family of maps; None for no maps, which leaves the ranges to learn.
        weights: format of the weights.
        inputs: format of the inputs, dynamic unless `static`.
        optimizer: optax; the variables are {"maps": ..., "clips": ..., "ranges": ...}, see `separate_rates`.
        steps: number of updates a block, each on one calibration batch.
        clip: also learn a share sigmoid(.) of the upper and of the lower end of every block of the weights, and round
            the weights with it: learnable weight clipping (OmniQuant, arXiv:2308.13137, eq. 2). No weight method then
            follows.
        static: with `clip`, also learn one range for each input, as factors of both ends of what calibration sees
            behind the map as it is, and round the inputs in it (MobileQuant, arXiv:2408.13933). No `act_quantize` then
            follows.
        whole: learn all blocks of the model at once, on what the last one puts out, not one after the other.
        stream: "quantized" shows the block what the blocks before it, rounded, put out; "float" what the float model's
            do.
        augmented: add the distance to what the float block makes of the same input.
        corrected: with `clip`, globs of leaves to which the product of two learned vectors is added before rounding
            (ABQ-LLM's compensation of down projections, arXiv:2408.08554).
        distance: (outputs, targets) -> scalar, descended; start and end are compared by the squared distance, and a
            block keeps the start where nothing better was found.

    Raises:
        ValueError: a negative number of steps, an unknown stream, nothing to learn, static ranges that cannot be; a
            leaf that is quantized already.

    Source: OmniQuant (arXiv:2308.13137) and what came after it. Catalogue G10, G11, G18, G20, H5.
    """
    w_format, x_format = as_format(weights), None if inputs is None else as_format(inputs)
    if steps < 0 or stream not in ("quantized", "float"):
        raise ValueError(f"learn_maps: {steps} steps on the {stream!r} stream; give steps >= 0, 'quantized' or 'float'")

    if rule is None and not clip:
        raise ValueError("learn_maps: neither a rule nor clip=True, nothing is left to learn")

    if static and not (clip and x_format is not None and x_format.tensor and isinstance(rule, Scales | None)):
        raise ValueError(
            f"learn_maps: static ranges of {inputs} behind {type(rule).__name__}; give inputs one scale (int8_tensor), "
            "clip=True and Scales or no rule, whose ends can be followed"
        )

    measured = static or rule is not None

    def learn(stage: Stage, key: jax.Array) -> tuple[Edit, State]:
        assert stage.fn is not None
        cores = {p: float_core(p, stage.params[p], stage.uses[p]) for p in stage.targets}
        groups = by_input(stage)
        place = {path: i for i, path in enumerate(stage.params)}
        ends = {
            g: channel_ends(paths[0], cores[paths[0]][0], stage.statistics[paths[0]])
            for g, paths in groups.items()
            if measured
        }
        maps = {}
        if rule is not None:
            for g, paths in groups.items():
                maps[g] = rule.init(*ends[g], [cores[p][1] for p in paths], named_key(key, paths[0]))
        clips = {}
        if clip:
            for p, (_, w) in cores.items():
                start = jnp.full_like(block_scales(w, w_format), START)
                clips[str(place[p])] = {"low": start, "high": start}
                if any(fnmatch.fnmatchcase(p, pattern) for pattern in corrected):
                    left, right = jnp.ones((*w.shape[:-1], 1)), jnp.zeros((*w.shape[:-2], 1, w.shape[-1]))
                    clips[str(place[p])] |= {"left": left, "right": right}
        ranges = {g: {"low": jnp.float32(0), "high": jnp.float32(0)} for g in groups if static}
        members = tuple((place[p], g, bare(stage.uses[p])) for g, paths in groups.items() for p in paths)
        constants = tuple(stage.params.values()), {place[p]: (c.maps, w, c.bias) for p, (c, w) in cores.items()}, ends
        seen = stage.inputs if stream == "quantized" else stage.reference_inputs
        reference = tuple(stage.reference.values())
        wanted = [
            (y, stage.fn(reference, x)) if augmented else (y,)
            for x, y in zip(seen, stage.reference_outputs, strict=True)
        ]
        judge = _Mapped(rule, w_format, x_format, static, members, clip, squared_distance)
        found = minimize(
            dataclasses.replace(judge, distance=distance),
            stage.fn,
            {"maps": maps, "clips": clips, "ranges": ranges},
            constants,
            list(zip(seen, wanted, strict=True)),
            optimizer=optimizer,
            steps=steps,
            key=named_key(key, "order"),
            judge=judge,
        )
        row = {"error_before": float(found.before), "error_after": float(found.loss)}
        learned = {} if rule is None else {g: _settled(rule, v) for g, v in found.variables["maps"].items()}
        chosen = {p: learned[g] for g, paths in groups.items() if g in learned for p in paths}
        roundings = {
            g: _hardened(learned.get(g, Composed(())), ends[g], found.variables["ranges"][g], fmt=x_format)
            for g in ranges
        }
        state = {
            p: (found.variables["clips"][str(place[p])], roundings.get(g))
            for g, paths in groups.items()
            for p in paths
            if clip
        }
        return Edit(equivalence=chosen, rows=dict.fromkeys(stage.targets, row)), state

    def step(stage: Stage, state: State, key: jax.Array) -> tuple[Edit, State, bool]:
        if not state:
            edit, state = learn(stage, key)
            return edit, state, not clip
        params, rows = {}, {}
        for path, (shares, rounding) in state.items():  # on the leaves that now stand behind their maps
            core, w = float_core(path, stage.params[path], stage.uses[path])
            q = _rounded(w, shares, fmt=w_format)
            params[path] = (core if rounding is None else core.behind(rounding)).holding(q).leaf()
            rows[path] = {"format": w_format.name, "bits": bits_per_weight(q)}
        return Edit(params=params, rows=rows), state, True

    needs = Needs(statistics=("min", "max") if measured else (), streams=True, window=None if whole else 1)
    family = "ranges" if rule is None else type(rule).__name__
    name = f"learn_maps {family} {w_format.name}" + ("" if x_format is None else f" {x_format.name}")
    name += (" static" if static else "") + (" whole" if whole else "")
    return Transform(name, "window" if whole else "block", needs, lambda stage: {}, step)


def separate_rates(
    maps: optax.ScalarOrSchedule, clips: optax.ScalarOrSchedule, ranges: optax.ScalarOrSchedule = 0.0
) -> optax.GradientTransformation:
    """AdamW without decay at a rate for the maps, one for the shares of the weights' ranges, one for the inputs'."""
    rates: dict[Hashable, optax.GradientTransformation] = {
        name: optax.adamw(rate, weight_decay=0.0)
        for name, rate in {"maps": maps, "clips": clips, "ranges": ranges}.items()
    }
    return optax.multi_transform(rates, {name: name for name in ("maps", "clips", "ranges")})


@functools.partial(jax.jit, static_argnums=0)
def _settled(rule: MapRule, variables: Any) -> Map:
    return rule.map(variables, jnp.float32(1))


@functools.partial(jax.jit, static_argnames="fmt")
def _hardened(m: Map, ends: Any, shares: Any, *, fmt: Format) -> Quantize:
    return LearnedQuantize(fmt, _behind(m, *ends), shares).harden()


def _behind(m: Map, low: jax.Array, high: jax.Array) -> jax.Array:
    """Least and largest value [2, 1], 0 among them, behind a map that mixes no channels, whose ends [..., K] are."""
    y = m.apply(jnp.stack([low, high], axis=-2))
    return jnp.stack([jnp.minimum(jnp.min(y), 0.0), jnp.maximum(jnp.max(y), 0.0)])[:, None]


@functools.partial(jax.jit, static_argnames="fmt")
def _rounded(w: jax.Array, clips: Mapping[str, jax.Array], *, fmt: Format) -> QArray:
    w = _corrected(w, clips)
    grid, _ = scaled_grid(w, fmt, jax.nn.sigmoid(clips["low"]), jax.nn.sigmoid(clips["high"]))
    return encode(grid, w)


def _corrected(w: jax.Array, clips: Mapping[str, jax.Array]) -> jax.Array:
    return w + clips["left"] * clips["right"] if "left" in clips else w


@dataclasses.dataclass(frozen=True)
class _Mapped:
    """The loss of `learn_maps`; `members`: (position, group, use) of each matrix.

    Equal blocks have equal losses, so they share one compiled step.
    """

    rule: MapRule | None
    weights: Format
    inputs: Format | None
    static: bool
    members: tuple[tuple[int, str, Use], ...]
    clip: bool
    distance: Distance

    def __call__(
        self, fn: Any, variables: Mapping[str, Any], constants: Any, item: Any, progress: jax.Array
    ) -> jax.Array:
        leaves, matrices, ends = list(constants[0]), constants[1], constants[2]
        x, wanted = item
        for i, group, use in self.members:
            maps, w, bias = matrices[i]
            core = Core(maps, w, use, bias=bias)
            m = Composed(()) if self.rule is None else self.rule.map(variables["maps"][group], progress)
            for part in m.maps if isinstance(m, Composed) else (m,):
                w, moved = countered(part, w)
                core = core.behind(part).adding(moved)
            if self.inputs is not None and self.static:
                core = core.behind(LearnedQuantize(self.inputs, _behind(m, *ends[group]), variables["ranges"][group]))
            elif self.inputs is not None:
                core = core.behind(Quantize.dynamic(self.inputs))
            leaves[i] = core.holding(self._rounded(w, variables["clips"].get(str(i)))).leaf()
        y = fn(tuple(leaves), x)
        return sum((self.distance(y, want) for want in wanted), jnp.float32(0))

    def _rounded(self, w: jax.Array, clips: Mapping[str, jax.Array] | None) -> jax.Array:
        if clips is None:
            return fake_quantize(w, self.weights, axis=-2, batch_axes=w.ndim - 2)
        w = _corrected(w, clips)
        grid, learned = scaled_grid(w, self.weights, jax.nn.sigmoid(clips["low"]), jax.nn.sigmoid(clips["high"]))
        return project(grid, w, learned)
