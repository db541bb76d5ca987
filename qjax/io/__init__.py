"""Files: trees of arrays, QArrays and operators saved and restored without a template."""

from qjax.serialization import RecordError, load, save

__all__ = ["RecordError", "load", "save"]
