"""Quantized weights as linear operators [batch..., K, N]: leaves, combinators, maps, one file a node.

A node answers `matmul`, `affine`, `rows`, `transpose`, `index` and `bits`; `qjax.dispatch` holds the same questions as
free functions that also take plain arrays and `QArray`. The law that ties them: for every operator without an
activation quantizer, `matmul(x, op) == x @ W + b` with `(W, b) = affine(op)`.
"""

from qjax.operators.by_use import ByUse as ByUse
from qjax.operators.columns import Columns as Columns
from qjax.operators.constructors import act_quantized as act_quantized
from qjax.operators.constructors import counter as counter
from qjax.operators.constructors import lora as lora
from qjax.operators.constructors import rotated as rotated
from qjax.operators.explanation import explain as explain
from qjax.operators.factored import Factored as Factored
from qjax.operators.latent import Latent as Latent
from qjax.operators.latent import StraightThrough as StraightThrough
from qjax.operators.latent import harden as harden
from qjax.operators.latent import straight_through as straight_through
from qjax.operators.layout import as_matrix as as_matrix
from qjax.operators.maps.affine_map import AffineMap as AffineMap
from qjax.operators.maps.augment import Augment as Augment
from qjax.operators.maps.augment import Gather as Gather
from qjax.operators.maps.block_kronecker import BlockKronecker as BlockKronecker
from qjax.operators.maps.composed import Composed as Composed
from qjax.operators.maps.diag import Diag as Diag
from qjax.operators.maps.frame import Frame as Frame
from qjax.operators.maps.hadamard import Hadamard as Hadamard
from qjax.operators.maps.head_order import HeadOrder as HeadOrder
from qjax.operators.maps.kept_apart import KeepBeyond as KeepBeyond
from qjax.operators.maps.kept_apart import KeepLargest as KeepLargest
from qjax.operators.maps.kronecker import Kronecker as Kronecker
from qjax.operators.maps.orthogonal import Block as Block
from qjax.operators.maps.orthogonal import Orthogonal as Orthogonal
from qjax.operators.maps.per_head import PerHead as PerHead
from qjax.operators.maps.permute import Permute as Permute
from qjax.operators.maps.pinned import Pinned as Pinned
from qjax.operators.maps.quantize import Quantize as Quantize
from qjax.operators.maps.reassemble import Reassemble as Reassemble
from qjax.operators.maps.residual_channels import ResidualChannels as ResidualChannels
from qjax.operators.maps.runtime_smooth import RuntimeSmooth as RuntimeSmooth
from qjax.operators.maps.shift import Identity as Identity
from qjax.operators.maps.shift import Shift as Shift
from qjax.operators.maps.token_adaptive import TokenAdaptive as TokenAdaptive
from qjax.operators.operator import Map as Map
from qjax.operators.operator import NotAffine as NotAffine
from qjax.operators.operator import NotInvertible as NotInvertible
from qjax.operators.operator import NotLinear as NotLinear
from qjax.operators.operator import Operator as Operator
from qjax.operators.output_directed import OutputDirected as OutputDirected
from qjax.operators.packed import Packed as Packed
from qjax.operators.placement import shardings as shardings
from qjax.operators.post import Post as Post
from qjax.operators.pre import Pre as Pre
from qjax.operators.preparation import prepare as prepare
from qjax.operators.preparation import unpack as unpack
from qjax.operators.rows import Rows as Rows
from qjax.operators.scaled import Scaled as Scaled
from qjax.operators.sparse import Sparse as Sparse
from qjax.operators.stacked import Stacked as Stacked
from qjax.operators.sum import Sum as Sum
from qjax.operators.trainables import merge as merge
from qjax.operators.trainables import trainable as trainable
from qjax.operators.view import View as View
