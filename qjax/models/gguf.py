"""GGUF files of the architectures in `qjax.models.gguf_families`, read with the `gguf` package."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from gguf import GGUFReader, ReaderTensor
from gguf.quants import dequantize
from jax import Array

from qjax import ggml
from qjax.dispatch import dense
from qjax.models.architecture import Architecture
from qjax.models.decoder import nest
from qjax.models.gguf_families import KINDS, Kind, architecture_of, neighbours, outer_scale, paths_of
from qjax.models.gguf_header import check_lengths
from qjax.qarray import QArray

# Types that hold floats, one by one.
FLOATS = ("F32", "F16", "BF16")


def open_gguf(path: str | Path) -> GGUFReader:
    """The file memory-mapped.

    Raises:
        ValueError: if it is no GGUF file, a model of another architecture than `KINDS` has, or has an empty tensor.
    """
    try:
        check_lengths(path)
        reader = GGUFReader(path)
    # The reader checks the magic number and then trusts the lengths it finds.
    except (ValueError, IndexError, KeyError, RecursionError) as error:
        raise ValueError(f"{path} is not a readable GGUF file: {error}") from error
    family = metadata(reader, "general.architecture")
    if not isinstance(family, str) or family not in KINDS:
        raise ValueError(f"{path} holds a {family!r} model; those that can be read are {', '.join(KINDS)}")
    for tensor in reader.tensors:  # what has no numbers takes no bytes, so that the file's size does not bound it
        if not all(tensor.shape):
            raise ValueError(f"{path} is malformed: its tensor {tensor.name!r} has shape {tensor.shape.tolist()}")
    return reader


def metadata(reader: GGUFReader, key: str, default: Any = None) -> Any:
    """The value stored under `key`, or `default`."""
    field = reader.fields.get(key)
    return default if field is None else field.contents()


def read_architecture(reader: GGUFReader) -> Architecture:
    """Sizes and variants from the file's metadata.

    Raises:
        ValueError: a key that is missing, malformed, or of a variant that the decoder does not have, naming it.
    """
    family, tensors = metadata(reader, "general.architecture"), {tensor.name: tensor for tensor in reader.tensors}
    if "token_embd.weight" not in tensors:
        raise ValueError("the GGUF file lacks token_embd.weight")
    keys = {
        key.removeprefix(f"{family}."): field.contents()
        for key, field in reader.fields.items()
        if key.startswith(f"{family}.")
    }
    divisors = {name: tuple(float(d) for d in tensors[name].data) for name in KINDS[family].divisors if name in tensors}
    try:
        return architecture_of(family, keys, tensors, int(tensors["token_embd.weight"].shape[1]), divisors)
    except (IndexError, OverflowError, TypeError) as error:
        raise ValueError(f"metadata of {family} are malformed ({type(error).__name__}: {error})") from error


def read_parameters(reader: GGUFReader, arch: Architecture, quantized: bool = False) -> dict[str, Any]:
    """All parameters in the decoder's tree: float32 arrays, or with `quantized` the file's own blocks as they are.

    A matrix that the file keeps in a block type is then a `QArray` whose values are exactly those of the float load;
    what the file keeps in floats stays a float32 array.

    Raises:
        ValueError: for tensors that are missing, unknown, of another shape or of a type with no `QArray`, naming them.
    """
    leaves: dict[str, Array | QArray] = {}
    kind = KINDS[metadata(reader, "general.architecture")]
    outer = _outer_scales(reader, kind)
    aside = {*kind.divisors, *(scale.name for scale in outer.values())}
    for tensor in reader.tensors:
        if tensor.name in aside:
            continue
        paths = paths_of(kind, tensor.name)
        if paths is None:
            raise ValueError(f"the GGUF file has a tensor {tensor.name!r} that no parameter answers to")
        if tensor.name in outer or (quantized and tensor.tensor_type.name not in FLOATS):
            blocks = _blocks(tensor, arch, kind, paths, outer.get(tensor.name))
            leaves |= blocks if quantized else {path: dense(q) for path, q in blocks.items()}
            continue
        # A plain view: every slice of a memmap would pay for being one.
        rows = dequantize(np.asarray(tensor.data), tensor.tensor_type)
        for path, w in _parts(tensor.name, rows, arch, kind, paths).items():
            turned = _axis(path) == -2 and w.ndim > 1
            leaves[path] = jnp.asarray(np.ascontiguousarray(np.swapaxes(w, -1, -2)) if turned else w)
    return nest(checked(leaves, arch))


def cells(path: str | Path) -> dict[str, Array]:
    """Grid spacing of every Q4_1 tensor of a GGUF file.

    A Q4_1 weight is `minimum + scale * code`, code 0 to 15, in blocks of 32 along its input axis, so `scale` is the
    width of the cell in which the original weight must have lain (but for the ends of the range).

    Returns:
        Path of the parameter to float32 [in / 32, out]; `jnp.repeat(cells[path], 32, axis=0)` gives it per weight.
    """
    reader = open_gguf(path)
    arch, kind = read_architecture(reader), KINDS[metadata(reader, "general.architecture")]
    spacing: dict[str, Array] = {}
    for tensor in reader.tensors:
        paths = paths_of(kind, tensor.name)
        if tensor.tensor_type.name == "Q4_1" and paths is not None:
            for path, blocks in _blocks(tensor, arch, kind, paths).items():
                (scale,) = blocks.scales
                assert isinstance(scale, Array)
                spacing[path] = scale.astype(jnp.float32)
    return spacing


def checked(leaves: dict[str, Any], arch: Architecture) -> dict[str, Any]:
    """The same leaves, if they are what `arch` needs: every path, each with its shape.

    Raises:
        ValueError: naming the first parameter that is missing, superfluous or of another shape.
    """
    wanted = arch.shapes
    for path, shape in wanted.items():
        if path not in leaves:
            raise ValueError(f"the checkpoint lacks {path} {shape}")
        if leaves[path].shape != shape:
            raise ValueError(f"{path} has shape {leaves[path].shape}, the architecture needs {shape}")
    extra = sorted(set(leaves) - set(wanted))
    if extra:
        raise ValueError(f"the checkpoint has parameters the architecture does not know: {', '.join(extra[:5])}")
    return leaves


def _axis(path: str) -> int:
    """Where a parameter's inputs lie: kernels are [in, out], the embedding is a table of rows."""
    return -1 if path == "embed" else -2


def _outer_scales(reader: GGUFReader, kind: Kind) -> dict[str, ReaderTensor]:
    """Tensors with the scale above those of NVFP4's blocks, by the name of theirs."""
    tensors, found = {tensor.name: tensor for tensor in reader.tensors}, {}
    for name, tensor in tensors.items():
        paths = paths_of(kind, name) if tensor.tensor_type.name == "NVFP4" else None
        scale = outer_scale(kind, paths[0]) if paths else None
        if scale in tensors:
            found[name] = tensors[scale]
    return found


def _blocks(
    tensor: ReaderTensor, arch: Architecture, kind: Kind, paths: tuple[str, ...], outer: ReaderTensor | None = None
) -> dict[str, QArray]:
    """The tensor's bytes as quantized arrays in our layout, by path; `outer` holds the scale above those of NVFP4."""
    name = tensor.tensor_type.name.lower()
    if name not in ggml.TYPES:
        raise ValueError(
            f"{tensor.name} is {tensor.tensor_type.name}, which cannot be kept quantized (types that can: "
            f"{', '.join(ggml.TYPES)}); load with quantized=False"
        )
    parts = _parts(tensor.name, np.asarray(tensor.data), arch, kind, paths)
    found = {path: ggml.from_bytes(jnp.asarray(rows), name, _axis(path)) for path, rows in parts.items()}
    return found if outer is None else {path: _under(q, outer) for path, q in found.items()}


def _under(q: QArray, outer: ReaderTensor) -> QArray:
    """NVFP4 blocks under the scale of a tensor, one for all or one an expert."""
    inner = q.scales[0]
    assert isinstance(inner, QArray) and isinstance(inner.scales[0], Array)
    shape, scale = inner.scales[0].shape, np.asarray(outer.data)
    if scale.dtype != np.float32 or scale.size != inner.scales[0].size or not np.all(np.isfinite(scale)):
        raise ValueError(f"{outer.name} is {scale.dtype} {scale.shape}; finite float32 {shape[:-2] or (1,)} is needed")
    return replace(q, scales=(replace(inner, scales=(jnp.asarray(scale).reshape(shape),)),))


def _parts(name: str, w: np.ndarray, arch: Architecture, kind: Kind, paths: tuple[str, ...]) -> dict[str, np.ndarray]:
    """A tensor's rows (outputs), numbers or bytes, by path and in our order.

    Where llama.cpp's RoPE turns neighbours, it has ordered those of q and k so; ours turns i and i + n. The gate of a
    shared expert, which has one output, is stored as a vector.
    """
    path, *more = paths
    if more:
        shapes = arch.shapes
        sizes = [shapes[path][-1] if path in shapes else 0 for path in paths]
        rows = -1 if w.ndim == 1 else -2
        if w.shape[rows] != sum(sizes):
            raise ValueError(f"{name} has {w.shape[rows]} outputs, but {', '.join(paths)} have {sizes}")
        return dict(zip(paths, np.split(w, np.cumsum(sizes)[:-1], axis=rows), strict=True))
    own = path.rpartition("/")[2]
    if own == "shared_gate" and w.ndim == 1:
        return {path: w[None]}
    if kind.neighbours and own.removesuffix("_bias") in ("q", "k"):
        if w.shape[0] % arch.head_dim:
            raise ValueError(f"{name} has {w.shape[0]} outputs, no whole heads of {arch.head_dim} channels")
        return {path: w.reshape(-1, arch.head_dim, *w.shape[1:])[:, neighbours(arch)].reshape(w.shape)}
    return {path: w}
