"""Rounding of a leaf's input: the A in W8A8 and W4A4."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from qjax.formats import Format, as_format
from qjax.operators import Quantize
from qjax.transforms.contract import Edit, Needs, Stage, Transform, stateless
from qjax.transforms.leaves import Core, transport


def act_quantize(fmt: Format | str = "int8", *, static: bool = False) -> Transform:
    """Round what enters every target to a format, right in front of the weight (behind smoothing or rotations).

    The format says the granularity: "int8" has a scale for each token, "int8_tensor" one for all, "mxfp8_e4m3" one for
    each block of channels. Dynamic scales come from each input; `static=True` fixes a per-tensor range to the largest
    magnitude of the calibration data (symmetric formats).

    Catalogue C1, C3, C9; the activation side of ZeroQuant and SmoothQuant.

    Raises:
        ValueError: static with a format that is not per tensor, or that has an offset.
    """
    f = as_format(fmt)
    if static and (not f.tensor or f.offset is not None):
        raise ValueError(
            f"act_quantize: a static range needs a symmetric per-tensor format such as int8_tensor, not {f.name}"
        )

    def edit(stage: Stage, key: jax.Array) -> Edit:
        del key
        params, rows = {}, {}
        for path in stage.targets:
            core = Core.of(stage.params[path], stage.uses[path])
            if any(isinstance(m, Quantize) for m in core.maps):
                raise ValueError(f"{path}: its input is quantized already; one act_quantize a leaf")
            if static:
                reach = jnp.max(transport(path, core.maps, stage.statistics[path])["absmax"])
                rounding = Quantize.static(f, -reach, reach)
            else:
                rounding = Quantize.dynamic(f)
            params[path] = core.behind(rounding).leaf()
            rows[path] = {"format": f"input {f.name}"}
        return Edit(params=params, rows=rows)

    name = f"act_quantize {f.name}" + (" static" if static else "")
    return stateless(name, "inputs", edit, Needs(statistics=("absmax",) if static else ()))
