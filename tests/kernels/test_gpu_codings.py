"""Codes in the order of WGMMA's operand: where each lies, what every code becomes, and the registers they are in."""

from __future__ import annotations

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from qjax.kernels.gpu import codings
from qjax.kernels.gpu.codings import E4M3, INT4, INT8
from tests import draw
from tests.kernels import mosaic_gpu

VALUES = {
    INT4: np.arange(16) - 16 * (np.arange(16) > 7),
    INT8: np.arange(256).astype(np.uint8).view(np.int8),
    E4M3: np.arange(256).astype(np.uint8).view(ml_dtypes.float8_e4m3fn),
}


@pytest.mark.parametrize("coding", VALUES, ids=lambda coding: coding.name)
@pytest.mark.parametrize("step", [64, 128])
def test_words_hold_every_code_where_the_docstring_says(step, coding):
    dtype = np.uint8 if coding == E4M3 else np.int8
    low = -(2 ** (coding.bits - 1))
    codes = np.array(draw.integers(0, low, -low, 2, 2 * step, 64)).astype(np.int8).view(dtype)
    stored = codings.pack(jnp.asarray(codes), step, coding)
    assert stored.shape == (2, 2, 64, step // coding.lanes) and stored.dtype == coding.dtype
    assert (np.asarray(codings.unpack(stored, coding, np.dtype(dtype).name)) == codes).all()
    words, part = np.asarray(stored).view(np.uint32), step * coding.bits // 16
    for i, j in ((0, 0), (1, 3), (16 // coding.bits - 1, part // 2 - 1)):
        for half in (0, 1):
            found = words[1, 1, :, j] >> (coding.bits * i + 16 * half) & (2**coding.bits - 1)
            code = codes[1, step + i * part + 2 * j + half].astype(np.int32)
            assert (found == (code & (2**coding.bits - 1))).all()


def test_inputs_are_arranged_as_bytes_are_packed():
    codes = jnp.asarray(draw.integers(0, -128, 128, 256, 64)).astype(jnp.int8)
    stored = jnp.moveaxis(codings.pack(codes, 128, INT8), 1, 0).reshape(64, 256)
    assert (codings.arranged(codes.T, 128) == stored).all()


@pytest.mark.parametrize("coding", VALUES, ids=lambda coding: coding.name)
def test_every_code_is_exact(coding):
    """In double precision, on the bits that the registers hold: on a CPU XLA takes subnormals of bfloat16 for zero."""
    values = VALUES[coding]
    codes = np.resize(np.arange(values.size), (256, 1))
    stored = codings.pack(jnp.asarray(codes, jnp.uint8), 64, coding)
    words = jnp.asarray(np.asarray(stored).view(np.int32)[:, 0])

    def halves(pairs):
        parts = [np.ascontiguousarray(p).view(ml_dtypes.bfloat16).astype(np.float64) for p in pairs]
        return np.concatenate(parts, axis=1)

    found = np.asarray(coding.operand(words, halves)).reshape(-1)
    expected = values.astype(np.float64)[codes[:, 0]]
    if coding == E4M3:
        nan = np.isnan(expected)
        assert nan.sum() == 2 and (np.abs(found[nan]) == 480).all()
        found, expected = found[~nan], expected[~nan]
        assert (np.signbit(found) == np.signbit(expected)).all()
    assert (found == expected).all()
    assert (found.astype(ml_dtypes.bfloat16).astype(np.float64) == found).all()


@mosaic_gpu.needed
def test_words_lie_in_registers_as_the_operand_does():
    """What is no more than another name for registers on the chip: element by element, by the layouts' own tilings.

    And WGMMA's by the figure of the PTX manual (m64k16, 16 bits): lane l of warp w has the rows 16 w + l / 4 and eight
    below, the columns 2 (l % 4) and the one after, and both eight to the right.
    """
    from jax.experimental.pallas import mosaic_gpu as plgpu

    def elements(layout, shape):
        """[warp, lane, register, element of it] -> flat index into shape, registers in the order of their array."""
        tiled = layout.tiling.tile_shape(shape)
        index = np.arange(np.prod(shape)).reshape(shape)
        for tile in layout.tiling.tiles:
            lead = index.ndim - len(tile)
            cut = [index.shape[:lead]] + [(n // t, t) for n, t in zip(index.shape[lead:], tile, strict=True)]
            index = index.reshape([n for part in cut for n in part])
            order = [lead + 2 * i for i in range(len(tile))] + [lead + 2 * i + 1 for i in range(len(tile))]
            index = index.transpose([*range(lead), *order])
        assert index.shape == tuple(tiled)
        warp, lanes, vector = layout.warp_dims, layout.lane_dims, layout.vector_dim
        found = np.moveaxis(index, [*warp, *lanes, vector], [0, 1, 2, -1])
        return found.reshape(4, 32, -1, found.shape[-1])

    words = elements(codings._layout(1).to_mgpu(), (64, 16))[..., 0]
    four = elements(codings._layout(4).to_mgpu(), (64, 64))
    assert (four == 4 * words[..., None] + np.arange(4)).all()
    halves = elements(plgpu.Layout.WGMMA.to_mgpu(), (64, 32))
    row, column = np.divmod(words, 16)
    assert (halves[..., 0] == row * 32 + 2 * column).all() and (halves[..., 1] == halves[..., 0] + 1).all()
    warp, lane = np.arange(4)[:, None, None], np.arange(32)[None, :, None]
    across, down = (a.reshape(-1) for a in np.meshgrid([0, 8, 16, 24], [0, 8], indexing="ij"))
    assert (halves[..., 0] == (16 * warp + lane // 4 + down) * 32 + 2 * (lane % 4) + across).all()
