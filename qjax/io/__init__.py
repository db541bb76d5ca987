"""Files: trees saved and restored without a template, and checkpoints that other runtimes open.

`save` and `load` are for any tree of ours, `save_sharded` and `load_sharded` for one that lies on a mesh. `export`
writes one of our models as another project's checkpoint; a matrix lies there as a `Layout` says, which is data, and a
container is a few layouts and the settings that name them. `qjax.models.load` reads them back. `convert` goes from one
folder to another without holding the model.
"""

from qjax.checkpoints import described, load_sharded, save_sharded
from qjax.io.converting import convert
from qjax.io.exporting import export
from qjax.io.qwix import from_qwix, to_qwix
from qjax.record import RecordError
from qjax.serialization import load, save

__all__ = [
    "RecordError",
    "convert",
    "described",
    "export",
    "from_qwix",
    "load",
    "load_sharded",
    "save",
    "save_sharded",
    "to_qwix",
]
