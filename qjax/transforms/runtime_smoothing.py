"""Runtime Smooth: inputs divided by their own channel maxima before each token is rounded."""

from __future__ import annotations

import jax

from qjax.formats import Format
from qjax.operators import RuntimeSmooth
from qjax.transforms.contract import Edit, Stage, Transform, stateless
from qjax.transforms.leaves import Core, refuse_rounded


def runtime_smooth(fmt: Format | str = "int4", *, group: int = 128) -> Transform:
    """Round what enters every target, its channels smoothed in groups of like size found in the input itself.

    In the place of `act_quantize`; behind a rotation it is Rotated Runtime Smooth (Yi et al. 2024, arXiv:2409.20361;
    catalogue H6), the rotation making one token's spike the same in all channels. See `qjax.operators.RuntimeSmooth`.

    Raises:
        ValueError: a format without one scale a token, a group below 1; an input that is quantized already.
    """
    rounding = RuntimeSmooth.of(fmt, group)

    def edit(stage: Stage, key: jax.Array) -> Edit:
        del key
        params = {}
        for path in stage.targets:
            core = Core.of(stage.params[path], stage.uses[path])
            refuse_rounded(path, core)
            params[path] = core.behind(rounding).leaf()
        label = {"format": f"input {rounding.format.name} smoothed in groups of {group}"}
        return Edit(params=params, rows=dict.fromkeys(stage.targets, label))

    return stateless(f"runtime_smooth {rounding.format.name} {group}", "inputs", edit)
