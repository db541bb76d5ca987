"""Static activation ranges: what a run calibrates is what the estimator makes of all the tokens at once."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qjax
from qjax import ranges
from qjax.formats import FULL, Format, Int
from qjax.operators import Diag, Hadamard, Permute, Quantize, Shift
from qjax.quantization import fit
from qjax.statistics import Histogram, MovingAverage, Octaves, Points, Reservoir
from qjax.transforms.leaves import transport
from tests.transforms import toy

W, BATCHES = toy.params()["layers"]["0"]["up"], [b.at[0, 3].mul(40.0) for b in toy.batches()]
X = jnp.concatenate(BATCHES)
FMT = Format(Int(8, narrow=True), FULL, FULL, "float32")
COARSE = Format(Int(4), FULL, FULL, "float32", "half")

ESTIMATORS = {  # and how near a histogram of 16 bins an octave comes
    "none": (None, FMT, 0.0),
    "fixed": (ranges.fixed(-2.0, 2.0), FMT, 0.0),
    "entropy": (ranges.entropy(bins=128), FMT, 0.0),
    "percentile": (ranges.percentile(99.0), FMT, 0.04),
    "aciq": (ranges.aciq(), FMT, 0.01),
    "sawb": (ranges.sawb(), FMT, 0.03),
    "mse": (ranges.mse(points=16), COARSE, 1.0),  # flat at its least: judged by its loss
}


@functools.cache
def both() -> dict[str, list[np.ndarray]]:
    """Scales from histograms of the batches in another order, and from all tokens at once; in one program."""
    kinds = {"histogram": Histogram(), "log_histogram": Histogram(Octaves(), by_channel=True)}

    def program(batches, x):
        found = {}
        for name, s in kinds.items():
            parts = [s.update(s.init(16), b) for b in batches]
            points = s.points(functools.reduce(s.merge, reversed(parts)))
            found[name] = points.between(x.min(0, keepdims=True), x.max(0, keepdims=True)).pooled()
        out = {}
        for name, (estimator, fmt, _) in ESTIMATORS.items():
            values, weights = found[getattr(estimator, "summary", "log_histogram")]
            streamed = fit(values, fmt, axis=-1, range=estimator, weights=weights)
            out[name] = [streamed.scales[0], fit(x.reshape(-1, 1), fmt, axis=-1, range=estimator).scales[0]]
        return out

    return jax.tree.map(np.asarray, jax.jit(program)(BATCHES, X))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_streaming_estimator(name):
    got, want = both()[name]
    np.testing.assert_allclose(got, want, rtol=ESTIMATORS[name][2] + 1e-7)
    if name == "mse":

        def loss(step):
            return float(np.sum((np.clip(np.rint(X / step), -8, 7) * step - X) ** 2))

        assert loss(got) < 1.02 * loss(want) < 0.9 * loss(np.abs(X).max() / 7.5)


# Through `run`


def calibrated(*transforms):
    """The leaf W of a single product after a chain."""
    return qjax.run(qjax.chain(*transforms), lambda p, x: x @ p, W, BATCHES, schedule="whole")[0]


def scale(op) -> np.ndarray:
    while not isinstance(op.T, Quantize):
        op = op.op
    return np.asarray(op.T.grid.scales[0])


def test_extremes_are_exact_for_tensors_and_groups_of_channels():
    largest = np.abs(X).max(0)
    got = scale(calibrated(qjax.act_quantize(FMT, static=True)))
    np.testing.assert_array_equal(got, [[largest.max() / np.float32(127)]])
    groups = Format(Int(8, narrow=True), 4, FULL, "float32")
    got = scale(calibrated(qjax.act_quantize(groups, static=True, range=ranges.minmax)))
    np.testing.assert_array_equal(got, largest.reshape(4, 4).max(1)[None] / np.float32(127))


def test_channels_behind_smoothing(tmp_path):
    """The histogram of every channel follows the smoothing of that channel; the result is saved and comes back."""
    fmt = Format(Int(8, narrow=True), 1, FULL, "float32")
    op = calibrated(
        qjax.smooth(0.5), qjax.rtn("int8"), qjax.act_quantize(fmt, static=True, range=ranges.percentile(95.0))
    )
    want = np.percentile(np.abs(op.T.apply(X)), 95, axis=0) / 127
    np.testing.assert_allclose(scale(op)[0], want, rtol=0.05)
    dynamic = Quantize.dynamic("int8", ranges.percentile(90.0))
    qjax.io.save(tmp_path / "saved", {"op": op, "map": dynamic})
    back = qjax.io.load(tmp_path / "saved")
    assert jax.tree.structure(back) == jax.tree.structure({"op": op, "map": dynamic})
    jax.tree.map(np.testing.assert_array_equal, back["op"], op)


def rotate():
    def edit(stage, key):
        return qjax.Edit(equivalence=dict.fromkeys(stage.targets, Hadamard(None, 16)))

    return qjax.stateless("rotate", "inputs", edit)


def test_behind_a_rotation_only_tokens_know():
    estimator = ranges.percentile(98.0)
    with pytest.raises(ValueError, match="statistic='reservoir'"):
        calibrated(rotate(), qjax.act_quantize(FMT, static=True, range=estimator))
    tokens = Reservoir(len(X))
    op = calibrated(rotate(), qjax.act_quantize(FMT, static=True, range=estimator, statistic=tokens))
    want = np.percentile(np.abs(op.T.apply(X)), 98) / 127
    np.testing.assert_allclose(scale(op), want, rtol=1e-5)


def test_moving_average_of_the_extremes():
    got = scale(calibrated(qjax.act_quantize(FMT, static=True, statistic=MovingAverage(0.3))))
    low, high = (ranges.moving_average(jnp.stack([f(b, axis=0) for b in BATCHES]), 0.3) for f in (jnp.min, jnp.max))
    np.testing.assert_allclose(got[0, 0] * 127, max(-low.min(), high.max()), rtol=1e-6)


def test_points_under_maps_of_single_channels():
    points = Points.of(X, jnp.ones((len(X), 1)))
    for m in (Diag(jnp.linspace(-1, 2, 16)), Shift(jnp.arange(16.0)), Permute(jnp.arange(16)[::-1])):
        got = transport("w", (m,), {"log_histogram": points})["log_histogram"].channels()[0]
        np.testing.assert_allclose(got[:-2], m.apply(X), rtol=1e-6)
        np.testing.assert_allclose(got[-2:], jnp.stack([m.apply(X).min(0), m.apply(X).max(0)]), rtol=1e-6)


def test_what_is_refused():
    for call, words in (
        (lambda: qjax.act_quantize("int8", static=True), "across=FULL"),
        (lambda: qjax.act_quantize("int8_tensor", statistic="reservoir"), "static=True"),
        (lambda: qjax.act_quantize("int8_tensor", static=True, statistic="gram"), "no points"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    two = (qjax.act_quantize(FMT, static=True, statistic=Reservoir(size)) for size in (4, 8))
    with pytest.raises(ValueError, match="two transforms measure a reservoir"):
        calibrated(*two)


def test_the_plan_names_the_estimator():
    recipe = qjax.act_quantize(FMT, static=True, range=ranges.entropy())
    text = str(qjax.plan(recipe, toy.model, toy.params(), BATCHES[0]))
    assert "entropy(bins=2048)" in text and "measures histogram, max, min" in text
