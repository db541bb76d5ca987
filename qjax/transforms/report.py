"""What a run did: one row a leaf and method, the targets and what was left alone, and why."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

COLUMNS = ("path", "method", "format", "bits", "tokens", "error_before", "error_after", "seconds", "warnings")


@dataclasses.dataclass(frozen=True)
class Report:
    """The record of one `run`.

    Attributes:
        rows: one dict an edited leaf and transform, in order, with the columns
            path; method (the transform's name); format; bits (stored bits a weight, scales included); tokens
            (calibration tokens its statistics saw, None for data-free methods); error_before and error_after (relative
            error of the leaf's output, sqrt(tr(E^T H E) / tr(W^T H W)) where a Gram matrix H was measured, else of its
            weights: of round-to-nearest in the same format, and of the result); seconds; warnings (a tuple of strings).
        targets: paths the run set out to edit.
        excluded: path -> why it was left alone.
        rewritten: targets that read or write in other coordinates than the float leaf of that path (a rotation folded
            into the stream): the model's function is the same, but leaf and float leaf are not to be compared.
        plan: path -> format, where a transform annotated one.
        passes: the printed plan of passes.
        seconds: wall time of the whole run, compilation included.
    """

    rows: tuple[Mapping[str, Any], ...]
    targets: tuple[str, ...]
    excluded: Mapping[str, str]
    rewritten: tuple[str, ...]
    plan: Mapping[str, Any]
    passes: str
    seconds: float

    @property
    def warnings(self) -> tuple[str, ...]:
        """Every warning with its leaf."""
        return tuple(f"{row['path']}: {w}" for row in self.rows for w in row["warnings"])

    def __str__(self) -> str:
        lines = [" ".join(f"{name:>12}" for name in COLUMNS[1:-1]) + "  path"]
        for row in self.rows:
            cells = (_cell(row[name]) for name in COLUMNS[1:-1])
            lines.append(
                " ".join(f"{c:>12}" for c in cells) + f"  {row['path']}" + "".join(f"  ! {w}" for w in row["warnings"])
            )
        lines.append(f"{len(self.targets)} targets, {len(self.excluded)} leaves left alone, {self.seconds:.1f} s")
        return "\n".join(lines)


def entries(mask: Any) -> str:
    """The matrices of a leaf for which `mask` [batch...] is true, as a warning names them.

    >>> entries(np.array([False, True, False, True])), entries(np.array(True))
    ('[1], [3]', 'the matrix')
    """
    found = np.argwhere(np.asarray(mask)).tolist()
    return ", ".join(str(where) for where in found) if np.ndim(mask) else "the matrix"


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def excluded_summary(excluded: Mapping[str, str]) -> list[str]:
    """One line a reason and kind of leaf: the layers of a stack read as one."""
    groups: dict[tuple[str, str], int] = {}
    for path, why in excluded.items():
        kind = re.sub(r"(?<=/)\d+(?=/)", "*", path)
        groups[kind, why] = groups.get((kind, why), 0) + 1
    return [f"{kind} ({n})  {why}" if n > 1 else f"{kind}  {why}" for (kind, why), n in groups.items()]
