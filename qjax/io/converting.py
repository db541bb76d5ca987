"""From a float checkpoint to a quantized one, a matrix at a time: for models that memory does not hold."""

from __future__ import annotations

import functools
import json
import math
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file
from tqdm import tqdm

from qjax.formats import Format, as_format
from qjax.io.containers import CONTAINERS
from qjax.io.exporting import FUSES, plan, tensors_of
from qjax.io.tensors import Place, open_tensors, shards, write_index
from qjax.models.configuration import read_architecture
from qjax.models.loading import find
from qjax.models.safetensors import places, read_config
from qjax.quantization import quantize
from qjax.ranges import Range

BESIDE = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json"),
    *("chat_template.jinja", "generation_config.json"),
)
FINGERPRINT = "conversion.json"
GATES = ("/ffn/router", "/ffn/shared_gate")
SHARD = 2 * 2**30
"""Bytes of float tensors whose results share a file: these results are in memory twice while it is written."""

Choice = Format | str | Callable[[str], Format | str | None]


def convert(
    source: str | os.PathLike[str],
    path: str | os.PathLike[str],
    fmt: Choice,
    *,
    to: str = "compressed-tensors",
    layout: str | None = None,
    range: Range | None = None,
    shard: int = SHARD,
    progress: bool = True,
) -> None:
    """Round the kernels of a checkpoint's layers to nearest and write them as `export` would, file by file.

    Only one file of results and one matrix are in memory. Finished files wait in `.<name>.partial` beside `path`; a
    second call after a kill goes on behind them, and `path` appears when all is there. Floats keep the checkpoint's
    dtype; its tokenizer files come along. Catalogue U4.

    Args:
        source: a folder with config.json and safetensors, or a hub id: a float model of a family that is written
            (Llama, Mistral, Qwen2, Qwen3, OLMo2, Mixtral, Qwen2-MoE, Qwen3-MoE).
        path: the folder to write; nothing may be there yet.
        fmt: the format of every kernel in a layer but those that choose experts, or path -> format (None leaves it
            float); the head may be named so. Experts of one leaf have one format.
        to: "compressed-tensors", "gptq" or "awq".
        layout: how matrices lie, where the container knows several; the usual if None.
        range: estimator of each block's range (`qjax.ranges`); absmax or min-max if None.
        shard: bytes of float tensors whose results share a file.
        progress: show a bar.

    Raises:
        FileExistsError: there is something at `path`.
        ValueError: an unknown container, a leaf that it cannot hold, a model of another family, or a partial folder
            that other settings left; names what and the remedy.
    """
    if to not in CONTAINERS:
        raise ValueError(f"to={to!r} is no container that is written file by file; there are {', '.join(CONTAINERS)}")
    target = Path(path)
    if target.exists() or target.is_symlink():
        raise FileExistsError(f"{target} exists; remove it, or convert to another path")
    folder = find(str(source))
    config = read_config(folder)
    arch = read_architecture(config)
    found = places(folder, arch, config)
    formats = {p: f for p, place in found.items() if (f := _chosen(fmt, p, place)) is not None}
    shapes = {p: _shape(place.shape, place.dtype, formats.get(p), range) for p, place in found.items()}
    made = plan(CONTAINERS[to], shapes, config.get("model_type", "llama"), layout)
    if any("tensor_scale" in option.parts for option in made.layouts.values()):
        warnings.warn(f"every matrix gets a tensor scale of its own; {FUSES}", stacklevel=2)
    groups = shards({p: math.prod(place.shape) * place.dtype.itemsize for p, place in found.items()}, shard)

    partial = target.parent / f".{target.name}.partial"
    _begin(partial, _fingerprint(found, formats, to, layout, range, shard))
    with tqdm(total=len(found), desc=f"{folder.name} to {to}", disable=not progress, unit="tensor") as bar:
        for name, group in groups.items():
            file = partial / name
            if file.exists():
                bar.update(len(group))
                continue
            tensors: dict[str, np.ndarray] = {}
            for p in group:
                tensors |= tensors_of(p, _leaf(found[p], formats.get(p), range), made)
                bar.update()
            half = file.with_suffix(".half")
            save_file(tensors, half, metadata={"format": "pt"})
            os.replace(half, file)
    written = {name: open_tensors(partial / name) for name in groups}
    write_index(partial, written, sum(tensor.nbytes for tensors in written.values() for tensor in tensors.values()))
    kept = {k: v for k, v in config.items() if k != "torch_dtype"}
    settings = {**kept, "dtype": made.dtype, "quantization_config": made.settings}
    (partial / "config.json").write_text(json.dumps(settings, indent=2))
    for name in BESIDE:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, partial / name)
    os.rename(partial, target)
    (target / FINGERPRINT).unlink()


def _chosen(fmt: Choice, path: str, place: Place) -> Format | None:
    """The format of a parameter, None for a float; experts of a leaf have one."""
    if len(place.shape) != 2 or path == "embed":
        return None
    if callable(fmt):
        chosen = fmt(path.partition("[")[0])
        return None if chosen is None else as_format(chosen)
    return as_format(fmt) if path.startswith("layers/") and not path.endswith(GATES) else None


@functools.cache
def _shape(shape: tuple[int, ...], dtype: np.dtype, fmt: Format | None, range: Range | None) -> Any:
    """What `_leaf` gives, as shapes and dtypes."""
    w = jax.ShapeDtypeStruct(shape, dtype)
    return w if fmt is None else jax.eval_shape(functools.partial(quantize, fmt=fmt, range=range), w)


def _leaf(place: Place, fmt: Format | None, range: Range | None) -> Any:
    return place.read() if fmt is None else quantize(jnp.asarray(place.read()), fmt, range=range)


def _fingerprint(
    found: Mapping[str, Place], formats: Mapping[str, Format], to: str, layout: str | None, range: Any, shard: int
) -> dict[str, Any]:
    """What made the files of a partial folder: another conversion must not go on with them."""
    files = {str(place.file.resolve()): place.file.stat() for place in found.values()}
    return {
        "source": {name: [stat.st_size, stat.st_mtime_ns] for name, stat in files.items()},
        "formats": {path: repr(f) for path, f in formats.items()},
        "to": to,
        "layout": layout,
        "range": repr(range),
        "shard": shard,
    }


def _begin(partial: Path, fingerprint: dict[str, Any]) -> None:
    """The partial folder, new or left by the same conversion."""
    record = partial / FINGERPRINT
    if not partial.exists():
        partial.mkdir(parents=True)
        record.write_text(json.dumps(fingerprint))
    elif not record.is_file() or json.loads(record.read_text()) != fingerprint:
        raise ValueError(f"{partial} was left by a conversion with other settings; remove it to begin anew")
