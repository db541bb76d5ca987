"""Every weight method with every kind of format, alone and with something in front of it or behind it.

    python -m experiments.composability [--leaf layers/15/attn/v] [--solvers gptq,hqq] [--formats mxfp4] [--toy]

One real matrix of SmolLM2-135M with the inputs it has there, or with --toy a small random one. A cell is the error of
the matrix's output on inputs not calibrated on, divided by that of rounding to nearest in the same format, alone; a
number in brackets stands for a pair that cannot work, and its reason follows below. With one matrix the quantized
stream is the float one: GPTAQ and ResComp have nothing to correct beyond GPTQ here.

Cost: not measured on a quiet machine; an estimate is an hour and 4 GB on 2 cores, a quarter of it OBQ. `--solvers` and
`--formats` cut it to what is wanted.
"""

from __future__ import annotations

import argparse
import dataclasses
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import qjax
from experiments import errors, subject
from qjax import data, dispatch, recipes, transforms
from qjax.codebooks.kmeans import kmeans
from qjax.formats import Format, Table, as_format
from qjax.reconstruct import AdaRound, FlexRound, SignRound
from qjax.solvers import objective
from qjax.solvers.incoherence import rotation
from qjax.trace.paths import leaves_with_paths
from qjax.transforms import chain, stateless
from qjax.transforms.contract import Chain, Edit, Stage, Transform

Make = Callable[..., Any]


def formats() -> dict[str, Format]:
    """A format of every kind: both integers, tables, both microscaling formats, ternary, a table fitted to a column."""
    clusters = Table("kmeans16", tuple(np.linspace(-1, 1, 16).tolist()))
    return {
        **{name: as_format(name) for name in ("int4_g64", "int4_g64_affine", "nf4_g64", "mxfp4", "nvfp4")},
        "ternary_g64": as_format("int2_g64_narrow"),
        "kmeans16": Format(clusters, scale=None, levels=kmeans()),
    }


def leafwise(rule: Callable[[Format], Any], rate: float, format: Format) -> Chain:
    """A learned rounding of one matrix by its Gram matrix."""
    return chain(transforms.learn(rule(format), optimizer=optax.adam(rate), steps=100, scope="leaf"))


def two_widths(format: Format) -> Chain:
    """A tenth of the groups in 8 bits."""
    return chain(transforms.mixed_groups(format, dataclasses.replace(as_format("int8"), block=format.block)))


SOLVERS: Mapping[str, Make] = {
    "rtn": recipes.rtn,
    "gptq": recipes.gptq,
    "gptaq": recipes.gptaq,
    "rescomp": recipes.rescomp,
    "obq": recipes.obq,
    "quantease": recipes.quantease,
    "alternating": recipes.alternating,
    "decoupleq": recipes.decoupleq,
    "hqq": recipes.hqq,
    "gpfq": recipes.gpfq,
    "spfq": recipes.spfq,
    "gptqt": recipes.gptqt,
    "quip": recipes.quip,
    "framequant": recipes.framequant,
    "frames": recipes.frames,
    "owq": recipes.owq,
    "spqr": partial(recipes.spqr, scale_bits=None),
    "awq": partial(recipes.awq, unclipped=()),
    "dual scale": lambda format: chain(transforms.dual_scale(format), transforms.rtn(format)),
    "two widths": two_widths,
    "nupes": recipes.nupes,
    "loftq": recipes.loftq,
    "milo": partial(recipes.milo, rank=16),
    "aser": lambda format: chain(transforms.aser(format, rank=16, outliers=8)),
    "adaround": partial(leafwise, AdaRound, 1e-2),
    "flexround": partial(leafwise, FlexRound, 1e-3),
    "signround": partial(leafwise, SignRound, 1e-3),
    "adaquant": partial(recipes.adaquant, steps=100),
}


def rotated() -> Transform:
    """Random orthogonal factors in front of every matrix, not folded anywhere."""

    def edit(stage: Stage, key: jax.Array) -> Edit:
        size = jnp.shape(stage.params[stage.targets[0]])[-2]
        turn = rotation(key, size, "kronecker")
        return Edit(equivalence=dict.fromkeys(stage.targets, turn))

    return stateless("rotated", "inputs", edit)


class Setting(NamedTuple):
    """What stands around the method in the chain."""

    front: tuple[Transform, ...] = ()
    behind: tuple[Transform, ...] = ()


SETTINGS: Mapping[str, Setting] = {
    "alone": Setting(),
    "behind a rotation": Setting(front=(rotated(),)),
    "behind a split: half a percent of the weights apart": Setting(front=(transforms.outliers(0.005),)),
    "in front of a low-rank term: rank 16 by QERA": Setting(behind=(transforms.low_rank(16, scale="gram"),)),
}


class Layer(NamedTuple):
    """A matrix `w [K, N]`, inputs `x [tokens, K]` to calibrate on, and `gram [K, K]` of inputs to measure on."""

    name: str
    w: jax.Array
    x: jax.Array
    gram: jax.Array


def real(leaf: str, windows: int = 4, length: int = 512) -> Layer:
    """A matrix of SmolLM2-135M; calibrated on its calibration text, measured on its development text."""
    model, params, tokenizer, _ = found = subject.load(None)
    del tokenizer
    uses = qjax.uses(model, params, jnp.zeros((1, length), jnp.int32))
    if leaf not in uses.targets():
        raise ValueError(f"--leaf {leaf}: none of the model's matrices, {', '.join(uses.targets()[:7])}, ...")
    parts = data.split(data.load_text("topics").text)
    rows = []
    for text in (parts.calibration, parts.development):
        tokens = np.asarray(subject.tokenize(found, text))
        rows.append(errors.inputs(model, params, data.windows(tokens, length, windows), [leaf])[leaf])
    weight = leaves_with_paths(params)[leaf]
    w = uses[leaf][0].to_matrix(weight).astype(jnp.float32)
    return Layer(f"{leaf} of SmolLM2-135M-Instruct", w, rows[0].astype(jnp.float32), rows[1].T @ rows[1])


def toy(inputs: int = 64, outputs: int = 24) -> Layer:
    """A random matrix, and inputs that a few directions explain, two of them large."""
    keys = jax.random.split(jax.random.key(0), 4)
    mix = jax.random.normal(keys[0], (inputs // 8, inputs)) * jnp.ones(inputs).at[jnp.array([3, 17])].set(10.0)[None, :]

    def inputs_of(key: jax.Array) -> jax.Array:
        hidden, noise = jax.random.split(key)
        x = jax.random.normal(hidden, (8 * inputs, inputs // 8)) @ mix
        return x + 0.5 * jax.random.normal(noise, x.shape)

    x, y = inputs_of(keys[1]), inputs_of(keys[2])
    return Layer("a random matrix", jax.random.normal(keys[3], (inputs, outputs)) / 8, x, y.T @ y)


def model(params: Any, x: jax.Array) -> jax.Array:
    """The layer as a function that `qjax.run` can take."""
    return x @ params["w"]


def output_error(layer: Layer, leaf: Any) -> float:
    """‖X(W - Ŵ)‖ on the measured inputs."""
    return float(jnp.sqrt(objective(layer.gram, layer.w - dispatch.dense(leaf).astype(jnp.float32))))


def attempt(layer: Layer, make: Make, format: Format, setting: Setting) -> float | str:
    """The output error of the layer so quantized, or why it cannot be."""
    try:
        recipe = chain(*setting.front, *make(format=format), *setting.behind)
        params, _ = qjax.run(recipe, model, {"w": layer.w}, [layer.x], key=jax.random.key(0), by="w")
        return output_error(layer, params["w"])
    except (ValueError, TypeError, NotImplementedError) as refusal:
        # A refusal is a sentence that a line of qjax raises; what jax itself says of shapes or dtypes is a fault.
        *_, (frame, _) = traceback.walk_tb(refusal.__traceback__)
        if not frame.f_globals["__name__"].startswith("qjax."):
            raise
        return str(refusal).splitlines()[0]


def table(
    layer: Layer, solvers: Mapping[str, Make], columns: Mapping[str, Format], setting: Setting
) -> dict[str, dict[str, float | str]]:
    """Solver -> format -> error relative to rounding alone, or the reason of a refusal."""
    unit = {name: attempt(layer, recipes.rtn, f, Setting()) for name, f in columns.items()}
    found: dict[str, dict[str, float | str]] = {}
    for solver, make in solvers.items():
        cells = {name: attempt(layer, make, f, setting) for name, f in columns.items()}
        found[solver] = {
            name: cell if isinstance(cell, str) else cell / float(unit[name]) for name, cell in cells.items()
        }
    return found


def text(found: Mapping[str, Mapping[str, float | str]]) -> str:
    """The table as it is printed, the reasons numbered below."""
    columns = list(next(iter(found.values())))
    reasons: list[str] = []
    lines = [" " * 12 + "".join(f"{name:>17}" for name in columns)]
    for solver, cells in found.items():
        shown = []
        for cell in cells.values():
            if isinstance(cell, str) and cell not in reasons:
                reasons.append(cell)
            shown.append(f"[{reasons.index(cell) + 1}]" if isinstance(cell, str) else f"{cell:.3f}")
        lines.append(f"{solver:<12}" + "".join(f"{cell:>17}" for cell in shown))
    return "\n".join([*lines, *(f"  [{i}] {reason}" for i, reason in enumerate(reasons, 1))])


def main(arguments: list[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--leaf", default="layers/15/attn/v")
    parser.add_argument("--solvers", default=",".join(SOLVERS))
    parser.add_argument("--formats", default=",".join(formats()))
    parser.add_argument("--toy", action="store_true")
    options = parser.parse_args(arguments)
    jax.config.update("jax_traceback_filtering", "off")  # `attempt` reads who raised
    solvers = chosen("--solvers", options.solvers, SOLVERS)
    columns = chosen("--formats", options.formats, formats())
    layer = toy() if options.toy else real(options.leaf)
    print(f"{layer.name}, {layer.w.shape[0]} x {layer.w.shape[1]}, {len(layer.x)} tokens; jax {jax.__version__}")
    for name, setting in SETTINGS.items():
        print(f"\n{name}\n{text(table(layer, solvers, columns, setting))}", flush=True)
    print("\ngobo, squeezellm and bitstack choose their values themselves: of a format they take the bits at most.")


def chosen(option: str, names: str, known: Mapping[str, Any]) -> dict[str, Any]:
    """The named entries; ValueError lists what is known."""
    if unknown := [name for name in names.split(",") if name not in known]:
        raise ValueError(f"{option}: {unknown[0]!r} is none of {', '.join(known)}")
    return {name: known[name] for name in names.split(",")}


if __name__ == "__main__":
    main()
