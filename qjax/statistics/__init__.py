"""Statistics of activations as monoids (init, update, merge), and the Fisher diagonal of a loss.

A value is carried beside the computation by `qjax.trace.observe`; nothing here knows how it was reached.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from qjax.statistics.extrema import AbsMax, Max, Min
from qjax.statistics.gradients import fisher
from qjax.statistics.histogram import Counts, Even, Histogram, Octaves
from qjax.statistics.moments import Count, Mean, Moment
from qjax.statistics.moving import Moving, MovingAverage
from qjax.statistics.points import Points
from qjax.statistics.reservoir import Reservoir, Sample
from qjax.statistics.second_moments import CrossGram, Gram, gram
from qjax.statistics.statistic import Statistic

STATISTICS: Mapping[str, Statistic] = MappingProxyType(
    {
        s.name: s
        for s in (
            Gram(),
            CrossGram(),
            AbsMax(),
            Min(),
            Max(),
            Mean(),
            Mean(absolute=True),
            Histogram(),
            Histogram(Octaves(), by_channel=True),
            MovingAverage(),
            Reservoir(),
            Count(),
        )
    }
)


def as_statistic(spec: str | Statistic) -> Statistic:
    """A statistic by name or itself; ValueError lists the names."""
    if not isinstance(spec, str):
        return spec
    if spec not in STATISTICS:
        raise ValueError(f"no statistic named {spec!r}; there are {', '.join(STATISTICS)}")
    return STATISTICS[spec]


__all__ = [
    "STATISTICS",
    "AbsMax",
    "Count",
    "Counts",
    "CrossGram",
    "Even",
    "Gram",
    "Histogram",
    "Max",
    "Mean",
    "Min",
    "Moment",
    "Moving",
    "MovingAverage",
    "Octaves",
    "Points",
    "Reservoir",
    "Sample",
    "Statistic",
    "as_statistic",
    "fisher",
    "gram",
]
