"""Rounding of a leaf's input: the A in W8A8 and W4A4."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax

from qjax import ranges
from qjax.formats import FULL, Format, as_format
from qjax.operators import KeepBeyond, KeepLargest, Map, Quantize, TokenAdaptive
from qjax.ranges import Range
from qjax.statistics import Histogram, Points, Statistic, as_statistic
from qjax.transforms.contract import Edit, Needs, Stage, Transform, stateless
from qjax.transforms.leaves import Core, refuse_rounded, transport


def act_quantize(
    fmt: Format | str = "int8",
    *,
    static: bool = False,
    range: Range | None = None,
    statistic: str | Statistic | None = None,
    keep: int | Literal["beyond"] | None = None,
) -> Transform:
    """Round what enters every target to a format, right in front of the weight (behind smoothing or rotations).

    The format says the granularity: "int8" has a scale for each token, "int8_tensor" one for all, "mxfp8_e4m3" one for
    each block of channels. Dynamic scales come from each input; `static=True` fixes those of the calibration data, for
    formats whose scales span the tokens: one for the tensor, or one for each block of channels (across=FULL).

    `range` is an estimator of `qjax.ranges` (the extremes if None). In calibration it sees the data as a `statistic`
    that has `points`: by default a "log_histogram" of every channel, for `ranges.entropy` the equal bins of a
    "histogram", both with the exact extremes; a "reservoir" of tokens for a chain that rotates, as only tokens pass
    through a map that mixes channels; or a "moving_average" of the extremes.

    `keep` lets outliers pass: a number, the so many largest magnitudes of each block (bfloat16; OPAL), "beyond", what a
    static range cuts off (float; the shadow outliers of a mobile NPU).

    Catalogue C1, C3, C9, B1-B5, G26, G28; the activation side of ZeroQuant and SmoothQuant.

    Raises:
        ValueError: static with a format whose scales follow the tokens; a statistic without points, or without static;
            a number kept of static ranges, or "beyond" of dynamic ones.
    """
    f = as_format(fmt)
    if static and f.across != FULL:
        raise ValueError(
            f"act_quantize: static scales must span the tokens, as those of int8_tensor (across=FULL), not of {f.name}"
        )
    if statistic is not None and not static:
        raise ValueError("act_quantize: a statistic is what static ranges are calibrated with; give static=True")
    if keep is not None and static != (keep == "beyond"):
        raise ValueError(f"act_quantize: keep={keep!r}; give 'beyond' with static ranges, a number with dynamic ones")
    if keep not in (None, "beyond") and range is not None:
        raise ValueError(
            f"act_quantize: keep={keep!r} with a range; what is left of a block is rounded by its extremes"
        )
    if statistic is not None:
        summary = as_statistic(statistic)
    else:
        extremes = range in (None, ranges.absmax, ranges.minmax)
        summary = None if extremes else as_statistic(getattr(range, "summary", "log_histogram"))
    if summary is not None and not hasattr(summary, "points"):
        raise ValueError(f"act_quantize: the statistic {summary.name!r} has no points to estimate a range from")

    def edit(stage: Stage, key: jax.Array) -> Edit:
        del key

        def rounding_of(path: str, core: Core) -> Map:
            if static:
                points = _points(path, core.maps, stage.statistics[path], summary)
                rounding = Quantize.calibrated(f, *(points.pooled() if f.tensor else points.channels()), range=range)
                return KeepBeyond(rounding) if keep == "beyond" else rounding
            return KeepLargest.of(f, keep) if isinstance(keep, int) else Quantize.dynamic(f, range)

        return _rounded(stage, rounding_of, f"input {f.name}" + ("" if keep is None else f", kept: {keep}"))

    name = f"act_quantize {f.name}" + (" static" if static else "") + ("" if range is None else f" {_label(range)}")
    name += "" if keep is None else f" keep {keep}"
    return stateless(name, "inputs", edit, Needs(statistics=_measured(summary) if static else ()))


def token_adaptive(narrow: Format | str = "int4", wide: Format | str = "int8", *, crest: float = 12.0) -> Transform:
    """Round what enters every target to `narrow`, but tokens with outliers to `wide`.

    A token is wide where max |x| over its rms is at least `crest`: about 3 for a row of 576 normal numbers, 24 where
    one channel holds everything. The rule is ours; that of the token-adaptive quantizer in the catalogue (G27) could
    not be found.

    Raises:
        ValueError: a format whose scales span several tokens, a crest factor below 1; an input quantized already.
    """
    rounding = TokenAdaptive.of(narrow, wide, crest)
    names = f"{rounding.narrow.name}, {rounding.wide.name} from crest {crest:g}"

    def edit(stage: Stage, key: jax.Array) -> Edit:
        del key
        return _rounded(stage, lambda path, core: rounding, f"input {names}")

    return stateless(f"token_adaptive {names}", "inputs", edit)


def _rounded(stage: Stage, rounding: Callable[[str, Core], Map], label: str) -> Edit:
    """Every target's input rounded right in front of its core."""
    params = {}
    for path in stage.targets:
        core = Core.of(stage.params[path], stage.uses[path])
        refuse_rounded(path, core)
        params[path] = core.behind(rounding(path, core)).leaf()
    return Edit(params=params, rows={path: {"format": label} for path in params})


def _measured(summary: Any) -> tuple[str | Statistic, ...]:
    """What is measured for a summary: a histogram knows its extremes to a bin only."""
    if summary is None:
        return ("min", "max")
    return ("min", "max", summary) if isinstance(summary, Histogram) else (summary,)


def _points(path: str, maps: tuple[Any, ...], statistics: Mapping[str, Any], summary: Any) -> Points:
    """What was measured of x as weighted values of what meets the core."""
    if summary is None:
        name, points = "min and max", Points.extremes(statistics["min"], statistics["max"])
    else:
        name, points = summary.name, summary.points(statistics[summary.name])
        if isinstance(summary, Histogram):
            points = points.between(*(statistics[end][..., None, :] for end in ("min", "max")))
    return transport(path, maps, {name: points})[name]


def _label(range: Range) -> str:
    return getattr(range, "__name__", None) or repr(range)
