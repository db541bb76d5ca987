"""Tracing: one jaxpr interpreter that makes any JAX function quantizable, observable and cuttable.

`uses` lists what a function does with each leaf, `quantized` runs it on operator leaves, `observe` returns statistics
beside its output, `stages` cuts it into a sequence of functions.
"""
