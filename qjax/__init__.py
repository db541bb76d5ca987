"""qjax: every published way of making a network's numbers smaller, as a pure transform over a pytree of parameters.

>>> import jax, qjax
>>> w = jax.random.normal(jax.random.key(0), (128, 64))
>>> q = qjax.quantize(w, "nvfp4", axis=-2)
>>> qjax.matmul(jax.numpy.ones((2, 128)), q).shape
(2, 64)
"""

from __future__ import annotations

from qjax import (
    allocate,
    codebooks,
    data,
    equivalence,
    evaluate,
    formats,
    ggml,
    integer,
    io,
    kernels,
    kv,
    metrics,
    models,
    operators,
    ranges,
    recipes,
    reconstruct,
    rounding,
    solvers,
    statistics,
    trace,
    transforms,
)
from qjax.accounting import bits_per_weight, nbytes
from qjax.dispatch import affine, dense, matmul, rows, transpose
from qjax.equivalence import fold
from qjax.formats import Format, as_format
from qjax.operators import (
    ByUse,
    Columns,
    Factored,
    Latent,
    NotAffine,
    NotLinear,
    Packed,
    Post,
    Pre,
    Rows,
    Sparse,
    Stacked,
    Sum,
    View,
    merge,
    prepare,
    trainable,
    unpack,
)
from qjax.operators.explanation import explain
from qjax.qarray import FULL, Grid, Meta, QArray
from qjax.quantization import dequantize, encode, fake_quantize, fit, quantize
from qjax.statistics import STATISTICS, fisher
from qjax.trace.observe import observe
from qjax.trace.quantized import quantized
from qjax.trace.sites import Program, sites, tapped
from qjax.trace.stages import stages
from qjax.trace.topology import Topology
from qjax.trace.uses import uses
from qjax.transforms import (
    Edit,
    Needs,
    Report,
    Stage,
    Transform,
    act_quantize,
    chain,
    gptq,
    low_rank,
    masked,
    partition,
    plan,
    rtn,
    run,
    smooth,
    stateless,
)
from qjax.validity import check

__all__ = [
    "FULL",
    "STATISTICS",
    "ByUse",
    "Columns",
    "Edit",
    "Factored",
    "Format",
    "Grid",
    "Latent",
    "Meta",
    "Needs",
    "NotAffine",
    "NotLinear",
    "Packed",
    "Post",
    "Pre",
    "Program",
    "QArray",
    "Report",
    "Rows",
    "Sparse",
    "Stacked",
    "Stage",
    "Sum",
    "Topology",
    "Transform",
    "View",
    "act_quantize",
    "affine",
    "allocate",
    "as_format",
    "bits_per_weight",
    "chain",
    "check",
    "codebooks",
    "data",
    "dense",
    "dequantize",
    "encode",
    "equivalence",
    "evaluate",
    "explain",
    "fake_quantize",
    "fisher",
    "fit",
    "fold",
    "formats",
    "ggml",
    "gptq",
    "integer",
    "io",
    "kernels",
    "kv",
    "low_rank",
    "masked",
    "matmul",
    "merge",
    "metrics",
    "models",
    "nbytes",
    "observe",
    "operators",
    "partition",
    "plan",
    "prepare",
    "quantize",
    "quantized",
    "ranges",
    "recipes",
    "reconstruct",
    "rounding",
    "rows",
    "rtn",
    "run",
    "sites",
    "smooth",
    "solvers",
    "stages",
    "stateless",
    "statistics",
    "tapped",
    "trace",
    "trainable",
    "transforms",
    "transpose",
    "unpack",
    "uses",
]
