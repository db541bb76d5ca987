"""Which format a matrix gets: what it would lose in each."""

from qjax.allocate.selection import layer_errors

__all__ = ["layer_errors"]
