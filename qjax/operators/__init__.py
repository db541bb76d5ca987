"""Quantized weights as linear operators [batch..., K, N]: leaves, combinators and the maps they compose, one file a node.

A node answers `matmul`, `affine`, `rows`, `transpose`, `index` and `bits`; `qjax.dispatch` holds the same questions as
free functions that also take plain arrays and `QArray`. The law that ties them: for every operator without an activation
quantizer, `matmul(x, op) == x @ W + b` with `(W, b) = affine(op)`.
"""

from qjax.operators.by_use import ByUse as ByUse
from qjax.operators.columns import Columns as Columns
from qjax.operators.factored import Factored as Factored
from qjax.operators.maps.affine_map import AffineMap as AffineMap
from qjax.operators.maps.augment import Augment as Augment
from qjax.operators.maps.augment import Gather as Gather
from qjax.operators.maps.diag import Diag as Diag
from qjax.operators.maps.hadamard import Hadamard as Hadamard
from qjax.operators.maps.kronecker import Kronecker as Kronecker
from qjax.operators.maps.orthogonal import Block as Block
from qjax.operators.maps.orthogonal import Orthogonal as Orthogonal
from qjax.operators.maps.permute import Permute as Permute
from qjax.operators.maps.quantize import Quantize as Quantize
from qjax.operators.maps.shift import Identity as Identity
from qjax.operators.maps.shift import Shift as Shift
from qjax.operators.operator import Map as Map
from qjax.operators.operator import NotAffine as NotAffine
from qjax.operators.operator import NotInvertible as NotInvertible
from qjax.operators.operator import NotLinear as NotLinear
from qjax.operators.operator import Operator as Operator
from qjax.operators.post import Post as Post
from qjax.operators.pre import Pre as Pre
from qjax.operators.rows import Rows as Rows
from qjax.operators.sparse import Sparse as Sparse
from qjax.operators.stacked import Stacked as Stacked
from qjax.operators.sum import Sum as Sum
from qjax.operators.view import View as View
