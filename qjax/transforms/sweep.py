"""One pass over the model, block by block: measure, let transforms edit, send the streams on.

Only the current block's leaves and one live value a batch are in use, whatever the depth. Equal blocks share one `fn`,
so each program here is compiled once a distinct block. A pass over the whole model at once is the same thing with one
block.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from qjax.statistics import Count, CrossGram, Statistic, as_statistic
from qjax.trace.paths import named_key
from qjax.trace.topology import Topology
from qjax.trace.uses import Use
from qjax.transforms.contract import Edit, Leaves, Stage, Transform
from qjax.transforms.edits import Working, applied, assert_equivalent
from qjax.transforms.leaves import shifting
from qjax.transforms.programs import Block, Programs
from qjax.transforms.report import COLUMNS, entries
from qjax.transforms.sensitivity import sensitivities


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a sweep streams. `finish` makes of what the last block puts out what the model does.

    `stream`: a block is fed by "quantized" or "float" predecessors. `within` a block, statistics are taken once
    ("together") or again before each group of leaves that share an input ("sequential").
    """

    stream: str
    within: str
    key: jax.Array
    weights: Sequence[jax.Array] | None = None
    loss: Callable[[Any, Any], jax.Array] | None = None
    topology: Topology | None = None
    batches: Sequence[Any] = ()
    finish: Callable[[Any], Any] = lambda end: end


@dataclasses.dataclass
class Streams:
    """One live value a batch, in the model under edit and (only where somebody needs it) in the float reference."""

    now: list[Any]
    reference: list[Any] | None

    def advanced(self, block: Block, working: Working, programs: Programs, stream: str) -> Streams:
        """The values behind a block."""
        advance = programs.advance(block.fn)

        def through(leaves: Leaves, values: list[Any]) -> list[Any]:
            ready = block.ready(leaves)
            for i, value in enumerate(values):  # in place: one old value is alive at a time
                values[i] = advance(ready, value)
            return values

        reference = None if self.reference is None else through(working.reference, self.reference)
        if stream == "float" and reference is not None:
            return Streams(reference, reference)
        return Streams(through(working.params if stream == "quantized" else working.reference, self.now), reference)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a pass stands: a block (or a window as one), what flows into it, and what holds for the whole pass."""

    block: Block
    streams: Streams
    targets: frozenset[str]
    programs: Programs
    settings: Settings

    def uses(self, working: Working) -> dict[str, Use]:
        """Uses by leaf id, in order of first use; the reference leaves hold the stored shapes."""
        block = self.block
        by_position = self.programs.uses(block.fn, block.of(working.reference), self.streams.now[0])
        return {block.ids[p]: dataclasses.replace(use, path=block.ids[p]) for p, use in by_position.items()}

    def selected(self, t: Transform, uses: Mapping[str, Use], working: Working) -> list[str]:
        """The targets here that a transform edits."""
        return [
            p for p, use in uses.items() if p in self.targets and (t.select is None or t.select(p, use, working.plan))
        ]


def needs_reference(transforms: Sequence[Transform]) -> bool:
    """Whether a sweep must carry the float stream beside its own."""
    return any(t.needs.streams or t.needs.compared for t in transforms)


def edit_block(
    working: Working,
    blocks: Sequence[Block],
    at: int,
    transforms: Sequence[Transform],
    targets: frozenset[str],
    streams: Streams,
    programs: Programs,
    settings: Settings,
) -> tuple[Working, list[dict[str, Any]]]:
    """Every transform of a pass on one block (for window scope: the window that begins there)."""
    here = Place(blocks[at], streams, targets, programs, settings)
    rows: list[dict[str, Any]] = []
    for wide, part in itertools.groupby(transforms, key=lambda t: t.scope not in ("leaf", "inputs")):
        part = list(part)
        if wide:
            for t in part:
                window = _window(blocks, at, t.needs.window)
                if window:
                    place = dataclasses.replace(here, block=programs.joined(window, t.needs.inner))
                    working, new = _edit_wide(working, t, place, window, blocks[at + len(window) :])
                    rows += new
        else:
            working, new = _edit_leaves(working, part, here)
            rows += new
    return working, rows


def _window(blocks: Sequence[Block], at: int, size: int | None) -> Sequence[Block]:
    """The blocks of the window that begins here; none if it does not fit, or if all blocks are one and began before."""
    if size is None:
        groups = [i for i, b in enumerate(blocks) if b.group]
        return blocks[at : groups[-1] + 1] if groups and at == groups[0] else ()
    window = blocks[at : at + size]
    return window if len(window) == size and all(b.group for b in window) else ()


def _edit_wide(
    working: Working, t: Transform, place: Place, window: Sequence[Block], after: Sequence[Block]
) -> tuple[Working, list[dict[str, Any]]]:
    block, streams, programs, loss = place.block, place.streams, place.programs, place.settings.loss
    block_uses = place.uses(working)
    chosen = place.selected(t, block_uses, working)
    if not chosen:
        return working, []
    asked = [(t, chosen)]
    found = _measured(working, asked, place)
    reference = streams.reference or streams.now
    outputs: Sequence[Any] = ()
    if t.needs.streams:
        advance = programs.advance(block.fn)
        ready = block.ready(working.reference)
        outputs = [advance(ready, x) for x in reference]
    if (t.needs.loss or t.needs.sensitivity == "loss") and loss is None:
        raise ValueError(f"{t.name} needs a loss: run(..., loss=lambda outputs, batch: scalar)")
    weights: Sequence[Any] = ()
    if t.needs.sensitivity is not None:
        finish = place.settings.finish
        leaves = [b.ready(working.reference) for b in (*window, *after)]
        fns, perturbed = [programs.advance(b.fn) for b in (*window, *after)], range(len(window))
        weights = sensitivities(
            fns,
            leaves,
            perturbed if t.needs.inner else perturbed[-1:],
            list(zip(reference, place.settings.batches, strict=True)),
            None if loss is None or t.needs.sensitivity == "outputs" else lambda y, batch: loss(finish(y), batch),
            named_key(place.settings.key, f"sensitivities {block.name}"),
        )
        weights = weights if t.needs.inner else [own for (own,) in weights]
    stage = Stage(
        name=block.name,
        targets=tuple(chosen),
        params={},  # what the working copy holds at each step
        reference={},
        uses=block_uses,
        statistics=found,
        reference_statistics=_measured_in_float(working, asked, place),
        fn=programs.run(block.fn),
        inputs=streams.now,
        reference_inputs=reference,
        reference_outputs=outputs,
        sensitivities=weights,
        loss=None if loss is None else programs.loss(block.fn, loss),
        topology=place.settings.topology,
    )
    return _steps(working, stage, t, place)


def _edit_leaves(working: Working, part: Sequence[Transform], place: Place) -> tuple[Working, list[dict[str, Any]]]:
    block_uses = place.uses(working)
    chosen = {id(t): place.selected(t, block_uses, working) for t in part}
    if not any(chosen.values()):
        return working, []
    groups = list(_groups([p for p in block_uses if any(p in c for c in chosen.values())], block_uses))
    rows: list[dict[str, Any]] = []
    # Statistics once for all groups, or again for each: its leaves then see the groups before them quantized.
    for batch_of_groups in [groups] if place.settings.within == "together" else [[g] for g in groups]:
        leaves = {p for g in batch_of_groups for p in g}
        asked = [(t, [p for p in chosen[id(t)] if p in leaves]) for t in part]
        found, true = _measured(working, asked, place), _measured_in_float(working, asked, place)
        for t in part:
            for group in batch_of_groups:
                mine = [p for p in group if p in chosen[id(t)]]
                for members in [mine] if t.scope == "inputs" else [[p] for p in mine]:
                    if not members:
                        continue
                    name = members[0] if len(members) == 1 else f"{place.block.name}({', '.join(members)})"
                    fn = place.programs.run(place.block.fn)
                    stage = Stage(name, tuple(members), {}, {}, block_uses, found, true, fn=fn)
                    working, new = _steps(working, stage, t, place)
                    rows += new
    return working, rows


def _groups(paths: Sequence[str], block_uses: Mapping[str, Use]) -> Iterator[list[str]]:
    """Leaves that read the same value, in order of first use."""
    by_input: dict[Any, list[str]] = {}
    for p in paths:
        by_input.setdefault(block_uses[p].input_id, []).append(p)
    yield from by_input.values()


def _measured(
    working: Working, asked: Sequence[tuple[Transform, Sequence[str]]], place: Place
) -> dict[str, dict[str, Any]]:
    """Statistics by leaf id over all batches, each leaf only what its transforms need."""
    names: dict[str, dict[str, Statistic]] = {}
    for t, paths in asked:
        for p in paths:
            for statistic in t.needs.statistics:
                _ask(names.setdefault(p, {}), p, statistic)
    if any("gram" in wanted for wanted in names.values()):
        uses = place.uses(working)
        for p, wanted in names.items():
            if "gram" in wanted and shifting(working.params[p], uses[p]):
                _ask(wanted, p, "mean")
    leaves = working.params if place.settings.stream == "quantized" else working.reference
    return _statistics(names, leaves, place.streams.now, working, place)


def _ask(names: dict[str, Statistic], path: str, statistic: str | Statistic) -> None:
    """Put a statistic on a leaf's list; two of one name must be the same."""
    asked = as_statistic(statistic)
    if names.setdefault(asked.name, asked) != asked:
        raise ValueError(f"{path}: two transforms measure a {asked.name}, as {names[asked.name]} and as {asked}")


def _measured_in_float(
    working: Working, asked: Sequence[tuple[Transform, Sequence[str]]], place: Place
) -> dict[str, dict[str, Any]]:
    """The statistics of transforms that compare both streams (`Needs.paired`), of the float one."""
    names: dict[str, dict[str, Statistic]] = {}
    for t, paths in asked:
        for p in paths if t.needs.paired else ():
            for statistic in t.needs.statistics:
                _ask(names.setdefault(p, {}), p, statistic)
    return _statistics(names, working.reference, place.streams.reference or (), working, place)


def _statistics(
    names: Mapping[str, Mapping[str, Statistic]],
    leaves: Leaves,
    values: Sequence[Any],
    working: Working,
    place: Place,
) -> dict[str, dict[str, Any]]:
    """The named statistics of each leaf's input over all batches of one stream, and its count of tokens."""
    if not names:
        return {}
    position = {p: i for i, p in enumerate(place.block.ids)}
    wanted = {position[p]: (*s.values(), Count()) for p, s in names.items()}
    measure, merge = place.programs.measure(place.block.fn, wanted), place.programs.merge(wanted)
    ready, reference = place.block.ready(leaves), place.streams.reference
    beside = place.block.ready(working.reference) if any(CrossGram.name in asked for asked in names.values()) else None
    weights, total = place.settings.weights, None
    for i, x in enumerate(values):
        pair = None if beside is None or reference is None else (beside, reference[i])
        found = measure(ready, x, None if weights is None else weights[i], pair)
        total = found if total is None else merge(total, found)
    assert total is not None
    jax.block_until_ready(total)  # so that the seconds of a transform are its own
    return {p: {s.name: s.result(total[position[p]][s.name]) for s in wanted[position[p]]} for p in names}


def _steps(working: Working, stage: Stage, t: Transform, place: Place) -> tuple[Working, list[dict[str, Any]]]:
    """A transform's steps on one stage until it is done."""
    start = time.perf_counter()
    block, advance = place.block, place.programs.advance(place.block.fn)
    key = named_key(place.settings.key, f"{t.name} {stage.name}")

    def seen(w: Working) -> Stage:
        return dataclasses.replace(
            stage,
            params={i: w.params[i] for i in block.ids},
            reference={i: w.reference[i] for i in block.ids},
            plan=w.plan,
        )

    state = t.init(seen(working))
    merged: dict[str, dict[str, Any]] = {}
    for n in itertools.count():
        edit, state, done = t.step(seen(working), state, jax.random.fold_in(key, n))
        _refuse_strangers(t, stage, edit)
        before = working
        working = applied(working, edit, stage.uses)
        if edit.equivalence or edit.rewritten:
            was, now = block.ready(before.params), block.ready(working.params)
            assert_equivalent(f"{t.name} at {stage.name}", advance, was, now, place.streams.now[0])
        for p in (*edit.equivalence, *edit.params, *edit.rows):
            merged.setdefault(p, {}).update(edit.rows.get(p, {}))
        if done:
            break
    # Dispatch is asynchronous: wait, so that the seconds are those of this work.
    jax.block_until_ready([x for p in merged for x in jax.tree.leaves(working.params[p])])
    seconds = (time.perf_counter() - start) / max(len(merged), 1)
    return working, [_row(p, t, stage, extra, seconds) for p, extra in merged.items()]


def _refuse_strangers(t: Transform, stage: Stage, edit: Edit) -> None:
    if edit.added and t.scope != "model":
        raise ValueError(f"{t.name} at {stage.name}: adds {sorted(edit.added)}; only a transform of model scope may")
    foreign = [p for p in (*edit.equivalence, *edit.params) if p not in stage.targets and p not in edit.added]
    if foreign:
        raise ValueError(
            f"{t.name} at {stage.name}: edits {foreign}, which its mask left out; "
            f"widen the mask or edit only {list(stage.targets)}"
        )


def _row(path: str, t: Transform, stage: Stage, extra: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    count = stage.statistics.get(path, {}).get("count")
    tokens, warnings = None, ()
    if count is not None:
        tokens = int(count) if jnp.ndim(count) == 0 else [int(c) for c in count.reshape(-1)]  # experts: each its own
        if bool(jnp.any(count == 0)):
            warnings = (f"{entries(count == 0)} met no token in calibration",)
    row = dict.fromkeys(COLUMNS) | {"path": path, "method": t.name, "tokens": tokens, "seconds": seconds}
    return {**row, **extra, "warnings": (*warnings, *extra.get("warnings", ()))}
