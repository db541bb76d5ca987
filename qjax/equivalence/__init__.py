"""Equivalences: same function, other numbers; online in front of a matmul first, folded into its producer where exact."""
