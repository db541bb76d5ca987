"""Range estimators: where a block's scale should reach. Hashable callables on blocked values."""

from qjax.ranges.extremes import minmax
from qjax.ranges.magnitude import absmax
from qjax.ranges.quantiles import percentile
from qjax.ranges.range import Range, extremes
from qjax.ranges.search import mse

__all__ = ["Range", "absmax", "extremes", "minmax", "mse", "percentile"]
