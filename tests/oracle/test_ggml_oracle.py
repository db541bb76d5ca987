"""Blocks of ggml against libggml itself, byte for byte: the library is the one inside the package pywhispercpp."""

from __future__ import annotations

import ctypes
import importlib.util
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from qjax import ggml
from qjax.quantization import quantize
from tests.reference.ggml_blocks import DIGESTS, digest, importance, weights

pytestmark = pytest.mark.oracle
if importlib.util.find_spec("pywhispercpp") is None:
    pytest.skip("pywhispercpp is not installed", allow_module_level=True)

CASES = [(name, weighted) for name, t in ggml.TYPES.items() for weighted in (False, True)[: 1 + t.weighted]]


@pytest.fixture(scope="module")
def library():
    spec = importlib.util.find_spec("pywhispercpp")
    (path,) = (pathlib.Path(spec.origin).parents[1] / "pywhispercpp.libs").glob("libggml-base-*")
    loaded = ctypes.CDLL(str(path))
    loaded.ggml_version.restype = ctypes.c_char_p
    loaded.ggml_quantize_chunk.restype = ctypes.c_size_t
    loaded.ggml_quantize_chunk.argtypes = [
        *(
            ctypes.c_int,
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_int64,
            ctypes.c_int64,
            ctypes.c_int64,
            ctypes.c_void_p,
        )
    ]
    assert loaded.ggml_version() == b"0.13.1"
    return loaded


def theirs(library, w, name, weights=None):
    """Bytes [rows, bytes of a row] that the library makes of rows `w`."""
    w, (rows, columns) = np.ascontiguousarray(w, np.float32), w.shape
    data = np.zeros((rows, columns // ggml.TYPES[name].block * ggml.TYPES[name].nbytes), np.uint8)
    pointer = None if weights is None else weights.ctypes.data
    kind = GGMLQuantizationType[name.upper()].value
    written = library.ggml_quantize_chunk(kind, w.ctypes.data, data.ctypes.data, 0, rows, columns, pointer)
    assert written == data.nbytes
    return data


def ours(w, name, weights=None):
    weights = None if weights is None else jnp.asarray(weights)
    return np.asarray(ggml.to_bytes(quantize(jnp.asarray(w), ggml.TYPES[name].format, axis=-1, weights=weights), name))


@pytest.mark.parametrize(("name", "weighted"), CASES)
def test_every_byte_is_libggmls(library, name, weighted):
    w, given = weights(), importance() if weighted else None
    data = theirs(library, w, name, given)
    np.testing.assert_array_equal(ours(w, name, given), data)
    assert digest(data) == DIGESTS[name, weighted], "the recorded digest is not this library's"


@pytest.mark.parametrize(("name", "weighted"), CASES)
def test_real_distributions(library, name, weighted):
    """The same shape, so that nothing compiles again: heavy tails, and rows that are not centred."""
    random = np.random.default_rng(0)
    w = random.standard_t(3, weights().shape) * np.exp2(random.integers(-6, 3, (len(weights()), 1)))
    w[::3] += 0.7 * np.abs(w[::3]).mean(axis=1, keepdims=True)
    w, given = w.astype(np.float32), random.gamma(0.3, 2.0, w.shape[1]).astype(np.float32) if weighted else None
    np.testing.assert_array_equal(ours(w, name, given), theirs(library, w, name, given))
