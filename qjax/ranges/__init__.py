"""Range estimators: where a block's scale should reach. Hashable callables on blocked values."""

from qjax.ranges.absmax import absmax
from qjax.ranges.minmax import minmax
from qjax.ranges.mse import mse
from qjax.ranges.percentile import percentile
from qjax.ranges.range import Range

__all__ = ["Range", "absmax", "minmax", "mse", "percentile"]
