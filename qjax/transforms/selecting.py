"""A format for each leaf: the plan that a partition then carries out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import jax

from qjax.allocate import layer_errors
from qjax.formats import Format, as_format
from qjax.transforms.contract import Edit, Needs, Stage, Transform, stateless
from qjax.transforms.leaves import float_core
from qjax.transforms.matrices import behind_maps


def choose(
    formats: Sequence[Format | str], *, by: Literal["weight", "output"] = "output", range: Any = None
) -> Transform:
    """Write in the plan, for each leaf, the name of the format in which rounding to nearest loses least.

    by: the error of its "weight", without data, or of its "output" on the calibration data (catalogue A29, C12).

    Raises:
        ValueError: fewer than two formats, or another `by`.

    Example:
        >>> import jax.numpy as jnp, qjax
        >>> formats = ("int4_g2_narrow", "int4_t1x2_narrow")
        >>> recipe = qjax.chain(qjax.transforms.choose(formats, by="weight"),
        ...                     qjax.partition({f: qjax.rtn(f) for f in formats}, lambda path, use, plan: plan[path]))
        >>> w = jnp.array([[1.0, 100.0], [2.0, 70.0]])
        >>> params = {"a": w, "b": w.T}
        >>> q, report = qjax.run(recipe, lambda p, x: x @ p["a"] @ p["b"], params, [jnp.ones((2, 2))])
        >>> dict(report.plan)
        {'a': 'int4_g2_narrow', 'b': 'int4_t1x2_narrow'}
    """
    candidates = tuple(map(as_format, formats))
    if len(candidates) < 2 or by not in ("weight", "output"):
        raise ValueError(f"choose: {len(candidates)} formats by={by!r}; give at least two, and by 'weight' or 'output'")

    def edit(stage: Stage, key: jax.Array) -> Edit:
        del key
        plan = {}
        for path in stage.targets:
            core, w = float_core(path, stage.params[path], stage.uses[path])
            gram = behind_maps(path, core, stage, ("gram",))["gram"] if by == "output" else None
            plan[path] = candidates[int(layer_errors(w, candidates, gram, range=range).argmin())].name
        return Edit(plan=plan)

    names = "|".join(f.name for f in candidates)
    # A plan must stand before the transforms that read it: those of one pass are chosen together.
    return stateless(f"choose {names} by {by}", "model", edit, Needs(statistics=("gram",) if by == "output" else ()))
