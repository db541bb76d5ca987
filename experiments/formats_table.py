"""Formats in numbers: `python -m experiments.formats_table site/` (part of `make docs`).

Writes `formats_table.json` and the page `formats_table.html` made of it. A row is a format of `qjax.formats.EXAMPLES`,
with all names it has there:

- bits a weight, of a 4096 x 4096 matrix: codes, scales of every level, offsets; of a block type of ggml, its bytes;
- the element's levels, and its range: the largest over the smallest positive level, in decibels;
- the signal over the quantization noise, 10 log10(sum w^2 / sum (w - w')^2), of round-to-nearest with the format's own
  range rule (signs and ternary numbers: `RANGES`), on independent Gaussian and Laplace numbers of variance 1 and on the
  weights of SmolLM2-135M.

The noise of the model is the sum over all its decoder matrices, blocks along the inputs. Its weights were shipped on a
4-bit grid (Q4_1), on which some formats are lossless and others unlucky; so they are those of replicate 0 of the paired
protocol (`qjax.evaluate.perturb`), each moved within a quarter of its own cell.
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import qjax
from experiments import provenance, store, subject
from experiments.report import format_table
from qjax import evaluate, formats, ggml
from qjax.trace.paths import leaves_with_paths

SEED = 0
SAMPLE = (4096, 1024)
NOMINAL = (4096, 4096)
RANGES = {"binary_g64": qjax.ranges.absmean, "int2_narrow_g64": qjax.ranges.absmean}
"""Where the scale is not that of the largest magnitude, under which two or three values are worth little."""
SHOWN = 256
"""Levels that are listed; an element with more has them counted."""


def samples() -> dict[str, jax.Array]:
    """{distribution: [1, *SAMPLE] float32 of variance 1}."""
    keys = jax.random.split(jax.random.key(SEED))
    return {
        "gaussian": jax.random.normal(keys[0], (1, *SAMPLE), jnp.float32),
        "laplace": jax.random.laplace(keys[1], (1, *SAMPLE), jnp.float32) / jnp.float32(math.sqrt(2)),
    }


def matrices(params: Any) -> list[jax.Array]:
    """The decoder matrices [K, N] of a model's parameters, those of one shape stacked: [matrices, K, N] each."""
    found: dict[tuple[int, ...], list[jax.Array]] = {}
    for path, leaf in leaves_with_paths(params).items():
        if path.startswith("layers/") and leaf.ndim == 2:
            found.setdefault(leaf.shape, []).append(leaf)
    return [jnp.stack(group) for group in found.values()]


def facts(name: str) -> dict[str, Any]:
    """What is true of a format whatever is quantized: words, bits, levels, range."""
    fmt = formats.parse(name)
    levels = fmt.element.levels().astype(np.float64)
    positive = levels[levels > 0]
    nominal = jax.eval_shape(lambda w: qjax.quantize(w, name), jax.ShapeDtypeStruct(NOMINAL, jnp.float32))
    is_ggml = fmt.rule == "ggml"
    bits = ggml.TYPES[name.removeprefix("ggml_")].bits_per_weight if is_ggml else qjax.bits_per_weight(nominal)
    under = f"; range {RANGES[name].__name__}" if name in RANGES else ""
    return {
        "name": name,
        "description": formats.describe(name) + under,
        "kind": "ggml" if is_ggml else type(fmt.element).__name__,
        "element": fmt.element.name,
        "bits": bits,
        "levels": len(levels),
        "values": levels.tolist() if len(levels) <= SHOWN else None,
        "range_db": 20 * math.log10(positive[-1] / positive[0]),
    }


def sqnr(name: str, stacks: Sequence[jax.Array]) -> float:
    """Decibels of signal over noise of float32 [matrices, K, N], one sum over all of them; ValueError without noise."""
    signal, noise = np.sum([np.asarray(_powers(w, name), np.float64).sum(1) for w in stacks], axis=0)
    if noise == 0:
        raise ValueError("no noise at all: every number is one of the format's")
    return 10 * math.log10(signal / noise)


@functools.partial(jax.jit, static_argnames=("name",))
def _powers(w: jax.Array, name: str) -> jax.Array:
    """[2, matrices]: the sum of squares of each matrix and of its error."""
    error = qjax.dequantize(qjax.quantize(w, name, axis=-2, batch_axes=1, range=RANGES.get(name))) - w
    return jnp.stack([jnp.sum(jnp.sum(x * x, -1), -1) for x in (w, error)])


def row(name: str, data: dict[str, Sequence[jax.Array]]) -> dict[str, Any]:
    """The facts and the signal over noise on each of the data; None with the reason where a format refuses a shape."""
    found: dict[str, Any] = {**facts(name), "sqnr": {}, "refused": {}}
    for source, stacks in data.items():
        try:
            found["sqnr"][source] = sqnr(name, stacks)
        except ValueError as error:
            found["sqnr"][source], found["refused"][source] = None, str(error)
    return found


def distinct(names: Sequence[str]) -> dict[str, list[str]]:
    """Each format's first name and its others. Block types of ggml with equal numbers differ in their bytes."""
    first: dict[Any, str] = {}
    found: dict[str, list[str]] = {}
    for name in names:
        fmt = formats.parse(name)
        key = name if fmt.rule == "ggml" else fmt
        found.setdefault(first.setdefault(key, name), []).append(name)
    return {name: others for name, (_, *others) in found.items()}


def table(names: Sequence[str] = formats.EXAMPLES, model: str | None = None) -> dict[str, Any]:
    """Rows in order of bits and where they come from; deterministic for one machine."""
    subject_ = subject.load(model)
    params = evaluate.perturb(subject_.params, subject_.cells, 0)
    weights = matrices(params)
    data: dict[str, Sequence[jax.Array]] = {name: [x] for name, x in samples().items()}
    data["model"] = weights
    found = distinct(names)

    def named(name: str) -> dict[str, Any]:
        return row(name, data) | {"also": found[name]}

    # Two at a time: one compiles while another runs.
    with ThreadPoolExecutor(2) as pool:
        rows = list(tqdm(pool.map(named, found), total=len(found), unit="format"))
    shapes = ", ".join(f"{w.shape[0]} of {w.shape[1]} x {w.shape[2]}" for w in weights)
    return {
        "rows": sorted(rows, key=lambda r: (r["bits"], r["name"])),
        "command": "python -m experiments.formats_table site/",
        "seed": SEED,
        "sample": list(SAMPLE),
        "nominal": list(NOMINAL),
        "model": {
            "name": model or "SmolLM2-135M-Instruct",
            "matrices": shapes,
            "weights": sum(w.size for w in weights),
            "sha256": provenance.tree_sha256(params["layers"]),
        },
        "source_sha256": provenance.source_sha256(),
        "versions": provenance.versions(),
        "device": jax.devices()[0].device_kind,
    }


def main() -> None:
    """Write the numbers and the page into a folder."""
    parser = argparse.ArgumentParser(prog="python -m experiments.formats_table", description="Formats in numbers.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", type=lambda text: text.split(","), default=formats.EXAMPLES, help="with commas")
    arguments = parser.parse_args()
    found = table(arguments.only)
    store.write_json(arguments.folder / "formats_table.json", found)
    store.write_bytes(arguments.folder / "formats_table.html", format_table.render(found).encode())
    print(f"{len(found['rows'])} formats: {arguments.folder}/formats_table.html and .json")


if __name__ == "__main__":
    main()
