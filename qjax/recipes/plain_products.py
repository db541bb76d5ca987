"""Weights and what they multiply in any two formats: the plain rows of every W-A table.

Round to nearest or GPTQ for the weights; dynamic or static scales for the inputs; in front nothing, SmoothQuant's
scales, a Hadamard rotation of each input or of its blocks, or the whole network's rotations. Two rows of this recipe
differ in what they say and in nothing else.
"""

from __future__ import annotations

from typing import Literal

from qjax import ranges, transforms
from qjax.transforms.contract import Chain

Rotation = Literal["none", "blocks", "inputs", "network"]


def weights_and_inputs(
    format: str | None = "int8",
    inputs: str | None = "same",
    rotation: Rotation = "none",
    block: int = 32,
    method: Literal["rtn", "gptq"] = "rtn",
    static: bool = False,
    searched: bool = False,
    keep: float = 100.0,
    smoothing: float | None = None,
) -> Chain:
    """Rounded weights times rounded inputs. Catalogue C1, C3, C9, T24, T43.

    Args:
        format: of the weights; None leaves them float.
        inputs: a format, "same" as the weights', or None, which leaves them float.
        rotation: of the "inputs" (each by itself, online), of "blocks" of their channels, or of the "network"
            (`transforms.rotate` without its taps: stream, heads and down projections).
        block: how many channels "blocks" mixes.
        method: how the weights are rounded.
        static: one scale from calibration instead of one found anew; the format must span the tokens.
        searched: the weights' ranges are those of the least squared error, not their extremes (catalogue B5).
        keep: per cent of an input's values that its range keeps; the others are clipped to its ends (catalogue B3).
        smoothing: SmoothQuant's alpha, in front of the rotation, which must not be that of the network (catalogue G5).

    Raises:
        ValueError: a format, rotation or method that does not exist; nothing to round; smoothing in front of a rotation
            of the network, whose weights it would have changed.
    """
    if inputs == "same":
        inputs = format
    if format is None and inputs is None:
        raise ValueError("weights_and_inputs: format and inputs are both None; name what is to be rounded")
    turned = {
        "none": (),
        "blocks": transforms.rotate_inputs(block),
        "inputs": transforms.rotate_inputs(),
        "network": transforms.rotate(scores=False),
    }
    if rotation not in turned:
        raise ValueError(f"weights_and_inputs: rotation {rotation!r}; known: {', '.join(turned)}")
    if smoothing is not None and rotation == "network":
        raise ValueError("weights_and_inputs: smoothing comes in front of rotation 'inputs' or 'blocks', not 'network'")
    clipped = None if keep == 100.0 else ranges.percentile(keep)
    return transforms.chain(
        () if smoothing is None else transforms.smooth(alpha=smoothing),
        turned[rotation],
        () if format is None else transforms.round_by(method, format, range=ranges.mse() if searched else None),
        () if inputs is None else transforms.act_quantize(inputs, static=static, range=clipped),
    )
