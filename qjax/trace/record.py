"""What one evaluation collects: statistics by groups of sites that read one value, as pytrees that loops can carry."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec, auto_axes

from qjax.statistics.statistic import Statistic
from qjax.trace.leaf import SCANNED, TRACED, Source

Wanted = Mapping[str, tuple[Statistic, ...]]
INPUT, OUTPUT, ACTIVATION = "input", "output", "activation"


class Site(NamedTuple):
    """Where rows are measured (static).

    `batch`: the stored axes the value's leading axes are; `pending`: scanned axes of the leaf not yet stacked,
    outermost first; `indexed`: (axis, number or "traced") of axes indexed away.
    """

    path: str
    side: str
    features: int
    batch: tuple[int, ...] = ()
    pending: tuple[int, ...] = ()
    indexed: tuple[tuple[int, int | str], ...] = ()

    def stacked(self) -> Site:
        """The site after the scan that sliced its last pending axis."""
        return self._replace(batch=(self.pending[-1], *self.batch), pending=self.pending[:-1])


def leaf_site(source: Source, side: str, features: int, batch: tuple[int, ...]) -> Site:
    """The site of a product with a leaf."""
    pending = tuple(a for a, i in source.dropped if i == SCANNED)
    index = tuple((a, i) for a, i in source.dropped if i != SCANNED)
    return Site(source.path, side, features, batch, pending, index)


Sites = tuple[Site, ...]
Stats = dict[Sites, dict[str, Any]]


class Record:
    """Statistics of one frame (the function, or a loop's body); leaves that read one value share a measurement."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.by_name = {s.name: s for stats in wanted.values() for s in stats}
        self._seen: dict[Any, tuple[list[Site], dict[str, Any], Any]] = {}
        self._done: Stats = {}

    def measure(self, site: Site, x: Any, rows: Any, weights: Any, identity: Any, members: Any = None) -> None:
        """Rows [batch..., tokens, K] (a function that makes them) of the activation x; `identity` tells equal rows.

        `members` (a function too) gives [entries, tokens]: which of the shared rows [tokens, K] belong to each entry.
        """
        key = (id(x), identity, len(site.pending))
        sites, values, _ = self._seen.setdefault(key, ([], {}, x))  # holding x keeps its id its own
        sites.append(site)
        missing = [s for s in self.wanted[site.path] if s.name not in values]
        if not missing:
            return
        matrix, w = rows(), weights()
        if members is not None:
            own = members().astype(jnp.float32)
            own = own if w is None else own * w[None]
            for s in missing:  # one entry at a time: a masked copy of the rows for each would not fit
                values[s.name] = lax.map(partial(_update, s, matrix), own)
            return
        if w is not None and w.ndim < matrix.ndim - 1:
            w = jnp.broadcast_to(jnp.expand_dims(w, tuple(range(matrix.ndim - 1 - w.ndim))), matrix.shape[:-1])
        for s in missing:
            values[s.name] = _update(s, matrix, w)

    def take(self) -> Stats:
        """Everything collected in the frame; the keys are the same at every trace of it."""
        for sites, values, _ in self._seen.values():
            self.add({tuple(sorted(set(sites), key=str)): values})
        self._seen = {}
        return self._done

    def add(self, stats: Stats) -> None:
        self._done = self.combine(self._done, stats)

    def combine(self, a: Stats, b: Stats) -> Stats:
        out = dict(a)
        for key, values in b.items():
            if key not in out:
                out[key] = values
                continue
            have = out[key]
            out[key] = {
                n: self.by_name[n].merge(have[n], values[n])
                if n in have and n in values
                else have.get(n, values.get(n))
                for n in {**have, **values}
            }
        return out

    def zero(self, shapes: Stats) -> Stats:
        """The identity of `combine` for statistics of these shapes."""
        return {k: {n: self.empty(n, k[0].features, a) for n, a in values.items()} for k, values in shapes.items()}

    def empty(self, name: str, features: int, shape: Any) -> Any:
        start = self.by_name[name].init(features)
        return jax.tree.map(lambda z, a: jnp.broadcast_to(z, a.shape).astype(a.dtype), start, shape)


def _update(statistic: Statistic, matrix: Any, weights: Any) -> Any:
    def update(matrix: Any, weights: Any) -> Any:
        return statistic.update(statistic.init(matrix.shape[-1], matrix.shape[:-2]), matrix, weights)

    mesh = jax.typeof(matrix).sharding.mesh
    if AxisType.Explicit not in mesh.axis_types:
        return update(matrix, weights)
    # On an Explicit mesh a sum over tokens that lie on several devices has to say where it goes: to all of them.
    everywhere: Any = auto_axes(update, out_sharding=NamedSharding(mesh, PartitionSpec()))
    return everywhere(matrix, weights)


def split(stats: Stats, layers: frozenset[tuple[str, int]]) -> tuple[Stats, Stats]:
    """(statistics of single layers of the scan that sliced `layers`, statistics shared by its iterations)."""
    single: Stats = {}
    shared: Stats = {}
    for sites, values in stats.items():
        mine = tuple(s for s in sites if s.pending and (s.path, s.pending[-1]) in layers)
        others = tuple(s for s in sites if s not in mine)
        if mine:
            single[mine] = values
        if others:
            shared[others] = values
    return single, shared


def stacked(stats: Stats) -> Stats:
    """Statistics of single layers after the scan has stacked them."""
    return {tuple(s.stacked() for s in sites): values for sites, values in stats.items()}


def by_site(record: Record, shapes: Mapping[str, tuple[int, ...]]) -> dict[tuple[str, str], dict[str, Any]]:
    """{(path, side): {statistic: value}} with leading axes in the order of the leaf (`shapes`: path -> stored shape).

    An axis indexed by numbers is stacked again, entries never used being empty; one indexed by traced numbers has
    size 1.
    """
    found: dict[tuple[str, str], dict[Site, dict[str, Any]]] = {}
    for sites, values in record.take().items():
        for site in sites:
            mine = {s.name: values[s.name] for s in record.wanted[site.path] if s.name in values}
            there = found.setdefault((site.path, site.side), {})
            there[site] = _merged(record, there[site], mine) if site in there else mine
    return {key: _joined(key[0], sites, record, shapes.get(key[0], ())) for key, sites in found.items()}


def _merged(record: Record, a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    return record.combine({(): a}, {(): b})[()]


def _joined(path: str, sites: Mapping[Site, dict[str, Any]], record: Record, shape: tuple[int, ...]) -> dict[str, Any]:
    """One statistic a leaf from those of entries that were used one by one."""
    forms = {(tuple(sorted(s.batch)), tuple((a, i == TRACED) for a, i in sorted(s.indexed))) for s in sites}
    if len(forms) > 1:
        raise ValueError(
            f"leaf {path!r} is indexed in different ways, so its entries cannot be told apart: use it in one loop only"
        )
    ((axes, index),) = forms
    parts: dict[tuple[int | str, ...], dict[str, Any]] = {}
    for site, values in sites.items():
        where = tuple(i for _, i in sorted(site.indexed))
        ordered = {n: _ordered(v, site) for n, v in values.items()}
        parts[where] = _merged(record, parts[where], ordered) if where in parts else ordered
    features = next(iter(sites)).features
    present = list(axes)
    for axis, pooled in reversed(index):  # the last index first: the others stay keys
        place = sum(a < axis for a in present)
        present = sorted((*present, axis))
        grouped: dict[tuple[int | str, ...], dict[int | str, dict[str, Any]]] = {}
        for where, values in parts.items():
            grouped.setdefault(where[:-1], {})[where[-1]] = values
        parts = {w: _stack(entries, place, pooled, shape[axis], features, record) for w, entries in grouped.items()}
    return parts[()]


def _stack(
    entries: Mapping[int | str, dict[str, Any]], place: int, pooled: bool, size: int, features: int, record: Record
) -> dict[str, Any]:
    if pooled:
        (values,) = entries.values()
        return jax.tree.map(lambda v: jnp.expand_dims(v, place), values)
    out = {}
    for name, example in next(iter(entries.values())).items():
        empty = record.empty(name, features, example)
        row = [entries[i][name] if i in entries else empty for i in range(size)]
        out[name] = jax.tree.map(lambda *v: jnp.stack(v, axis=place), *row)
    return out


def _ordered(value: Any, site: Site) -> Any:
    """Leading axes in the order of the stored leaf."""
    order = sorted(range(len(site.batch)), key=lambda k: site.batch[k])
    if order == list(range(len(order))):
        return value
    return jax.tree.map(lambda v: jnp.transpose(v, (*order, *range(len(order), v.ndim))), value)
