"""observe(fn): statistics of the values that meet each leaf, as outputs of one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qjax.statistics import as_statistic
from qjax.statistics.batches import require_batches
from qjax.statistics.moments import Count
from qjax.statistics.statistic import Statistic
from qjax.trace.arguments import Input, traced
from qjax.trace.evaluation import Evaluation, Fallbacks, Watch
from qjax.trace.interpreter import array, evaluate
from qjax.trace.leaf import operator, plain
from qjax.trace.paths import Where, is_leaf
from qjax.trace.record import OUTPUT, Record, Wanted, by_site
from qjax.trace.tokens import Tokens
from qjax.trace.use import Uses
from qjax.trace.uses import follow, summary
from qjax.trace.walk import Walk

Spec = str | Statistic
Collect = Mapping[str, Sequence[Spec]] | Sequence[Spec]

OUTPUT_SUFFIX = "@output"  # a leaf's other side: the cotangents of its outputs, when fn holds a gradient


def observing(fn: Callable[..., Any], collect: Collect, where: Where | None = None) -> Callable[..., Any]:
    """g(params, batch, weights=None) -> (fn(params, batch), {path: {statistic: value}}), one forward pass; jit it.

    collect: {path or site: statistics}, or statistics for the targets `where` picks (`Uses.targets`). Values are
    measured on what enters the leaf's product, as rows [batch..., tokens, K] in the order of `Use.to_matrix`, before
    any map of an operator leaf; leading axes are the leaf's batch axes (layers of a scan, experts), of size 1 where its
    entries are indexed by traced numbers and cannot be told apart. Leaves that read one value share one measurement.
    Under a gradient inside fn, "path@output" holds the same of the cotangents that meet the leaf from its other side.
    weights [batch..., time] hide (0) or weigh tokens. A path no product reaches is left out.

    ValueError: a path of collect that is neither leaf with a product nor site; weights that cannot follow the tokens.
    """

    def run(params: Any, batch: Any, weights: Any = None) -> tuple[Any, dict[str, dict[str, Any]]]:
        out, stats, _, _ = _observed(fn, collect, where, params, batch, weights)
        return out, stats

    return run


def _observed(fn: Any, collect: Collect, where: Where | None, params: Any, batch: Any, weights: Any) -> Any:
    program = traced(fn, (params, batch), {})
    weights = None if weights is None else jnp.asarray(weights).astype(jnp.float32)
    walk = follow(program, None if weights is None else weights.shape)
    found = summary(walk, program.inputs)
    wanted = _wanted(collect, where, found, walk)
    matrices = {p: found.matrix(p) for p in found if p not in found.impossible}
    watch = Watch(
        wanted=wanted,
        contract={p: u.contract_axes for p, u in matrices.items()},
        outputs={p: u.output_axes for p, u in matrices.items()},
        labels=walk.labels,
        scans=walk.scans,
    )
    tape = Evaluation(Fallbacks(), watch, Record(wanted), None if weights is None else Tokens.of(weights))
    outs = evaluate(program.jaxpr, [_tracked(i) for i in program.inputs], tape)
    assert tape.record is not None
    collected = by_site(tape.record, {p: u.shape for p, u in matrices.items()})
    stats = {path + (OUTPUT_SUFFIX if side == OUTPUT else ""): values for (path, side), values in collected.items()}
    return program.rebuild([array(o, tape, None) for o in outs]), stats, wanted, found


def _tracked(i: Input) -> Any:
    if is_leaf(i.leaf):
        return operator(i.path, i.leaf)
    return plain(i.path, jnp.asarray(i.leaf)) if i.parameter else i.leaf


def _wanted(collect: Collect, where: Where | None, found: Uses, walk: Walk) -> Wanted:
    """Statistics by leaf or site; every name is checked."""
    if not isinstance(collect, Mapping):
        specs = tuple(as_statistic(s) for s in ((collect,) if isinstance(collect, str) else collect))
        return dict.fromkeys(found.targets(where), specs)
    if where is not None:
        raise ValueError("collect= already names the leaves: where= has nothing to pick")
    for path in collect:
        if path in walk.sites:
            continue
        if path not in found or path in found.impossible:
            reason = found.impossible.get(path, "fn uses no leaf and marks no value of that name")
            raise ValueError(f"cannot observe {path!r}: {reason}")
    return {path: tuple(as_statistic(s) for s in specs) for path, specs in collect.items()}


class Statistics(Mapping[str, dict[str, Any]]):
    """{path: {statistic: value}} over all batches; "count" (tokens, weighted) is always there.

    `unreached`: targets no token met, as path or path[entry] of a stacked leaf; `pooled`: leaves whose entries were
    indexed by traced numbers, so that one statistic (axis of size 1) stands for all of them; `uses` as found in the
    first batch.
    """

    def __init__(self, values: Mapping[str, dict[str, Any]], unreached: Sequence[str], found: Uses) -> None:
        self._values, self.unreached, self.uses = dict(values), tuple(unreached), found
        self.pooled = tuple(p for p in values if p in found and any(u.pooled_axes for u in found[p]))

    def __getitem__(self, path: str) -> dict[str, Any]:
        return self._values[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def observe(
    fn: Callable[..., Any],
    params: Any,
    batches: Sequence[Any],
    collect: Collect = ("gram", "absmax"),
    where: Where | None = None,
    weights: Sequence[Any] | None = None,
) -> Statistics:
    """Statistics of fn(params, batch) over a Sequence of batches, merged; `weights`: one [batch..., time] a batch.

    See `observing` for collect and where. TypeError for an iterator (a second pass over it would see nothing).

    >>> import jax.numpy as jnp
    >>> stats = observe(lambda p, x: x @ p["w"], {"w": jnp.ones((3, 2))}, [jnp.ones((5, 3))], collect=("absmax",))
    >>> stats["w"]["absmax"].shape, float(stats["w"]["count"])
    ((3,), 5.0)
    """
    require_batches(batches, weights)
    seen: dict[str, Any] = {}

    def step(params: Any, batch: Any, weights: Any) -> Any:
        _, stats, seen["wanted"], seen["uses"] = _observed(fn, _counted(collect), where, params, batch, weights)
        return stats

    step = jax.jit(step)
    merge = jax.jit(lambda a, b: _merge(a, b, seen["wanted"]), donate_argnums=0)
    total: Any = None
    for i, batch in enumerate(batches):
        stats = step(params, batch, None if weights is None else weights[i])
        total = stats if total is None else merge(total, stats)
    missing = [p for p in seen["wanted"] if p not in total]
    total |= {p: {"count": jnp.zeros((), jnp.float32)} for p in missing}
    return Statistics(total, [*missing, *_empty(total)], seen["uses"])


def _counted(collect: Collect) -> Collect:
    if isinstance(collect, Mapping):
        return {p: _with_count(s) for p, s in collect.items()}
    return _with_count(collect)


def _with_count(specs: Sequence[Spec]) -> tuple[Spec, ...]:
    specs = (specs,) if isinstance(specs, str) else tuple(specs)
    return specs if any(as_statistic(s).name == Count().name for s in specs) else (*specs, Count())


def _merge(a: Any, b: Any, wanted: Wanted) -> Any:
    merged = {}
    for path in a:
        stats = {s.name: s for s in wanted[path.removesuffix(OUTPUT_SUFFIX)]}
        merged[path] = {n: stats[n].merge(v, b[path][n]) for n, v in a[path].items()}
    return merged


def _empty(total: Mapping[str, dict[str, Any]]) -> list[str]:
    """Leaves, or entries of stacked leaves, that no token met."""
    names = []
    for path, values in total.items():
        count = np.asarray(values["count"])
        if count.ndim == 0 or not count.any():
            names += [path] if not count.any() else []
        else:
            names += [f"{path}[{', '.join(map(str, i))}]" for i in np.argwhere(count == 0)]
    return names
