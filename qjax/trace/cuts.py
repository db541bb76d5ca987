"""Where a flat function is cut: every equation is given to the prologue, one parameter group, or the epilogue.

Level 0 is the prologue, level k the k-th group in order of first use, level n + 1 the epilogue. An equation can stand
no earlier than the parameters and values it reads (`low`) and no later than its readers (`high`). What lies between (a
norm's mean square before the next layer's gain) is cut where the fewest bytes cross, and so that layers come out equal.

Values that do not depend on the batch (masks, rotary tables, casts of parameters) are not carried: each segment that
reads one computes it again, inside its own compiled function, so a carry holds activations only.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

from qjax.trace.flat import Flat, LeafKey, Node

_TRIES = 16  # cuts tried for making a segment equal to an earlier one, cheapest first


@dataclass
class Cut:
    """One segment: its equations, leaves and the values that cross into and out of it."""

    name: str
    nodes: list[Node]
    leaves: list[LeafKey]
    carry_in: list[int]
    carry_out: list[int]
    key: Hashable = None


@dataclass
class _Plan:
    flat: Flat
    names: list[str]
    level: dict[int, int] = field(default_factory=dict)  # index of a main node -> segment
    readers: dict[int, list[int]] = field(default_factory=dict)  # value -> nodes


def cut(flat: Flat, key: Callable[[Flat, Cut], Hashable]) -> tuple[list[Cut], list[str]]:
    """The segments in order, and the groups no equation uses.

    Where several cuts let equally few bytes cross (a cast or a scale between two layers), the end of the prologue and
    the ends of the layers are tried late and early, and the choice with the fewest different segments is taken.
    """
    main = _main_nodes(flat)
    names = _order(flat, main)
    unused = [g for g in dict.fromkeys(flat.groups.values()) if g not in names]
    plan = _Plan(flat, names)
    for i in main:
        for v in flat.nodes[i].inputs:
            plan.readers.setdefault(v, []).append(i)
    bounds = _bounds(plan, main)
    best: list[Cut] = []
    for late in ((True, True), (True, False), (False, True), (False, False)):
        cuts = _cut(plan, main, bounds, key, *late)
        if not best or _kinds(cuts) < _kinds(best):
            best = cuts
        if _kinds(best) <= 1:
            break
    return best, unused


def _kinds(cuts: Sequence[Cut]) -> int:
    return len({c.key for c in cuts[1:-1]})


def _cut(
    plan: _Plan,
    main: Sequence[int],
    bounds: tuple[dict[int, int], dict[int, int]],
    key: Callable[[Flat, Cut], Hashable],
    late_prologue: bool,
    late: bool,
) -> list[Cut]:
    flat, names = plan.flat, plan.names
    low, high = bounds
    plan.level = dict(low)
    cuts: list[Cut] = []
    seen: set[Hashable] = set()
    for k in range(len(names) + 1):
        free = [i for i in main if low[i] == k and high[i] == k + 1]
        for i in free:
            plan.level[i] = k + 1
        order = _cheapest(plan, k, free, late if k else late_prologue)
        chosen = order[0]
        if k > 1:  # a layer with one before it: prefer the cut that makes them equal
            for p in order[:_TRIES]:
                _place(plan, k, free, p)
                if key(flat, _segment(plan, main, k)) in seen:
                    chosen = p
                    break
        _place(plan, k, free, chosen)
        cuts.append(_segment(plan, main, k))
        cuts[-1].key = key(flat, cuts[-1])
        seen.add(cuts[-1].key)
    cuts.append(_segment(plan, main, len(names) + 1))
    cuts[-1].key = key(flat, cuts[-1])
    return cuts


def _main_nodes(flat: Flat) -> list[int]:
    """Equations that depend on the batch and lead to the output; the others are recomputed where they are read."""
    needed = {*flat.outputs, *flat.keep}
    main = []
    for i in reversed(range(len(flat.nodes))):
        node = flat.nodes[i]
        if node.kept or any(o in needed for o in node.outputs):
            needed.update(node.inputs)
            if node.kept or (node.outputs and flat.values[node.outputs[0]].batch):
                main.append(i)
    return main[::-1]


def _reads(flat: Flat, node: Node) -> frozenset[LeafKey]:
    """The leaves an equation reads, itself or through values computed from parameters alone."""
    return frozenset().union(*(flat.values[v].leaves for v in node.inputs if not flat.values[v].batch))


def _order(flat: Flat, main: Sequence[int]) -> list[str]:
    names: dict[str, None] = {}
    for i in main:
        found = {flat.groups[k] for k in _reads(flat, flat.nodes[i]) if k in flat.groups}
        names.update(dict.fromkeys(g for g in dict.fromkeys(flat.groups.values()) if g in found))
    return list(names)


def _bounds(plan: _Plan, main: Sequence[int]) -> tuple[dict[int, int], dict[int, int]]:
    flat, last = plan.flat, len(plan.names)
    index = {g: k + 1 for k, g in enumerate(plan.names)}
    own: dict[int, int] = {}  # the latest group whose leaves an equation reads
    foreign: set[int] = set()  # equations that read leaves outside every group
    for i in main:
        reads = _reads(flat, flat.nodes[i])
        own[i] = max((index[flat.groups[k]] for k in reads if k in flat.groups), default=0)
        own[i] = max(own[i], index.get(flat.nodes[i].home or "", 0))
        if any(k not in flat.groups for k in reads):
            foreign.add(i)
    producer = {o: i for i in main for o in flat.nodes[i].outputs}

    def lows(floor: dict[int, int]) -> dict[int, int]:
        low: dict[int, int] = {}
        for i in main:
            before = (low[producer[v]] for v in flat.nodes[i].inputs if v in producer)
            low[i] = max(own[i], floor.get(i, 0), *before, 0)
        return low

    outputs = {*flat.outputs, *flat.keep}

    def highs(low: dict[int, int]) -> dict[int, int]:
        high: dict[int, int] = {}
        for i in reversed(main):
            node = flat.nodes[i]
            readers = [high[r] for o in node.outputs for r in plan.readers.get(o, ())]
            if any(o in flat.outputs for o in node.outputs):
                readers.append(last + 1)
            h = min(readers, default=low[i])
            rooted = node.kept or node.state or any(o in flat.keep for o in node.outputs)
            if own[i] or rooted or low[i] == last + 1:
                h = low[i]  # reads a group's leaves, or is a loop's bookkeeping: it belongs there
            elif low[i] == 0 and i in foreign:
                h = 0  # an embedding
            elif low[i] == 0 and not _parameters(flat, node):
                h = h if len(set(readers)) == 1 and not any(o in outputs for o in node.outputs) else 0
            elif h > low[i] + 1 and not (i in foreign and h == last + 1):
                h = low[i]  # a skip connection: computed where its inputs are
            high[i] = h
        return high

    low = lows({})
    high = highs(low)
    # The head: reads leaves of no group, and no group's leaf is read after it.
    floor = {i: last + 1 for i in foreign if low[i] >= 1 and high[i] == last + 1}
    # A value made from the batch alone that one later segment reads (labels) is made there.
    floor |= {i: high[i] for i in main if low[i] == 0 and high[i] > 1 and not _parameters(flat, flat.nodes[i])}
    low = lows(floor)
    return low, highs(low)


def _parameters(flat: Flat, node: Node) -> bool:
    return any(flat.values[v].leaves for v in node.inputs)


def _place(plan: _Plan, k: int, free: Sequence[int], p: int) -> None:
    plan.level.update({i: k if j < p else k + 1 for j, i in enumerate(free)})


def _cheapest(plan: _Plan, k: int, free: Sequence[int], late: bool) -> list[int]:
    """Cut positions among the free equations by bytes that cross, the latest (or earliest) first among equals."""
    flat, spot = plan.flat, {i: j for j, i in enumerate(free)}
    end = len(free)
    born: dict[int, int] = {}
    read_until: dict[int, int] = {}
    for j, i in enumerate(free):
        node = flat.nodes[i]
        born.update(dict.fromkeys(node.outputs, j))
        for v in node.inputs:
            if flat.values[v].batch:
                born.setdefault(v, -1)
    for v in born:
        later = [spot.get(r, end) for r in plan.readers.get(v, ()) if r in spot or plan.level[r] > k]
        if v in flat.outputs or v in flat.keep:
            later.append(end)
        read_until[v] = max(later, default=-1)
    cost = [sum(flat.values[v].nbytes for v, b in born.items() if b < p <= read_until[v]) for p in range(end + 1)]
    return sorted(range(end + 1), key=lambda p: (cost[p], -p if late else p))


def _segment(plan: _Plan, main: Sequence[int], k: int) -> Cut:
    flat, last = plan.flat, len(plan.names)
    nodes = [i for i in main if plan.level[i] == k]
    inside = {o for i in nodes for o in flat.nodes[i].outputs}
    carry_in = [] if k == 0 else _crossing(plan, main, k - 1)
    carry_out = list(flat.outputs) if k == last + 1 else _crossing(plan, main, k)
    if k == 0:
        carry_in = [v for v in flat.inputs if flat.values[v].leaf is None]
    chosen = _with_sources(flat, nodes, [v for v in carry_out if v not in inside])
    keys = {leaf for n in chosen for v in n.inputs if (leaf := flat.values[v].leaf) is not None}
    keys |= {leaf for v in carry_out if (leaf := flat.values[v].leaf) is not None}
    rank = {leaf: j for j, leaf in enumerate(_leaf_order(flat))}
    leaves = sorted(keys, key=lambda leaf: (leaf not in flat.groups, rank[leaf]))
    name = "prologue" if k == 0 else "epilogue" if k == last + 1 else plan.names[k - 1]
    return Cut(name, chosen, leaves, carry_in, carry_out)


def _leaf_order(flat: Flat) -> list[LeafKey]:
    place = {flat.values[v].leaf[0]: j for j, v in enumerate(flat.inputs) if flat.values[v].leaf is not None}  # pyright: ignore[reportOptionalSubscript]
    found = {v.leaf for v in flat.values if v.leaf is not None}
    return sorted(found, key=lambda leaf: (place[leaf[0]], -1 if leaf[1] is None else leaf[1]))


def _with_sources(flat: Flat, nodes: Sequence[int], extra: Sequence[int]) -> list[Node]:
    """The equations with everything they read that does not depend on the batch, in program order."""
    position = {id(n): i for i, n in enumerate(flat.nodes)}
    wanted = set(nodes)
    stack = [v for i in nodes for v in flat.nodes[i].inputs] + list(extra)
    while stack:
        value = flat.values[stack.pop()]
        if value.node is not None and not value.batch and (i := position[id(value.node)]) not in wanted:
            wanted.add(i)
            stack.extend(value.node.inputs)
    return [flat.nodes[i] for i in sorted(wanted)]


def _crossing(plan: _Plan, main: Sequence[int], k: int) -> list[int]:
    """The values alive between segments k and k + 1, longest-lived first so that equal layers see equal carries."""
    flat, last = plan.flat, len(plan.names)
    born = {v: 0 for v in flat.inputs if flat.values[v].batch}
    until: dict[int, int] = {}
    for i in main:
        for o in flat.nodes[i].outputs:
            born[o] = plan.level[i]
    for v, b in born.items():
        reads = sorted({plan.level[i] for i in plan.readers.get(v, ())})
        if v in flat.outputs:
            reads.append(last + 1)
        if v in flat.keep:
            reads.append(b + 1)
        until[v] = max(reads, default=-1)
        # What two layers running read (a mask) is handed on by the last of them too: then it equals the others.
        if until[v] == last and last - 1 in reads and last > 1:
            until[v] = last + 1
    alive = [v for v, b in born.items() if b <= k < until[v]]
    return sorted(alive, key=lambda v: (-until[v], v))
