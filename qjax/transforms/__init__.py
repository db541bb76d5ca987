"""Methods as transforms: the contract, its combinators, the engine that runs a chain, and the transforms themselves."""

from qjax.transforms.activations import act_quantize as act_quantize
from qjax.transforms.contract import Chain as Chain
from qjax.transforms.contract import Edit as Edit
from qjax.transforms.contract import Needs as Needs
from qjax.transforms.contract import Stage as Stage
from qjax.transforms.contract import Transform as Transform
from qjax.transforms.contract import chain as chain
from qjax.transforms.contract import masked as masked
from qjax.transforms.contract import partition as partition
from qjax.transforms.contract import stateless as stateless
from qjax.transforms.edits import NotEquivalent as NotEquivalent
from qjax.transforms.engine import plan as plan
from qjax.transforms.engine import run as run
from qjax.transforms.matrices import correct_with as correct_with
from qjax.transforms.matrices import quantize_with as quantize_with
from qjax.transforms.report import Report as Report
from qjax.transforms.smoothing import smooth as smooth
from qjax.transforms.weights import gptq as gptq
from qjax.transforms.weights import low_rank as low_rank
from qjax.transforms.weights import rtn as rtn
