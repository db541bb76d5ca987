"""FlatQuant: an affine map in front of every input, learned through the rounding of a block."""

from __future__ import annotations

from typing import Any

import jax
import optax
from jax import lax

from qjax.formats import Format
from qjax.reconstruct import squared_distance
from qjax.transforms.contract import Transform
from qjax.transforms.learned_maps import learn_maps
from qjax.transforms.map_rules import Factors


def learn_affine(
    weights: Format | str = "int4_channel",
    inputs: Format | str = "int4",
    *,
    steps: int = 480,
    rate: float = 5e-3,
    alpha: float = 0.3,
) -> Transform:
    """Learn x -> (x c) (P1 kron P2) before each input of a block, so that its rounded output is near the float one.

    FlatQuant (Sun et al. 2024, arXiv:2410.09426): c starts as SmoothQuant's scale with `alpha`, P1 and P2 as random
    rotations of sizes as equal as their product allows; AdamW with a cosine from `rate` learns all maps of a block
    together on the squared error of its output for the float model's inputs, weights and inputs rounded straight
    through. The defaults are the authors' (15 epochs of 128 windows, 4 a step). Online, at K (n1 + n2) multiplications
    a token; an equivalence, so that any weight method may follow. The authors also learn a clipping ratio for every
    output and input, which is left out.

    Raises:
        ValueError: a negative number of steps, a rate that is not positive, alpha outside [0, 1].
    """
    if steps < 0 or not rate > 0 or not 0 <= alpha <= 1:
        raise ValueError(
            f"learn_affine: {steps} steps at rate {rate}, alpha {alpha}; give steps >= 0, a rate > 0, 0 to 1"
        )
    optimizer = optax.adamw(optax.cosine_decay_schedule(rate, max(steps, 1), alpha=1e-3), weight_decay=0.01)
    return learn_maps(
        Factors(alpha), weights, inputs, optimizer=optimizer, steps=steps, stream="float", distance=_relative
    )


def _relative(outputs: Any, targets: Any) -> jax.Array:
    """The squared distance divided by its own value: every batch counts the same."""
    distance = squared_distance(outputs, targets)
    return distance / lax.stop_gradient(distance)
