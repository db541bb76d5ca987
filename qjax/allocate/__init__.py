"""Which format a matrix gets: what it would lose in each, and how to choose for all layers together."""

from qjax.allocate.evolution import evolve
from qjax.allocate.pareto import least_cost, pareto_front
from qjax.allocate.selection import layer_errors

__all__ = ["evolve", "layer_errors", "least_cost", "pareto_front"]
