"""`run`: a chain of transforms over a model, compiled into passes, streamed block by block, resumable, reported."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
from tqdm import tqdm

from qjax.statistics import as_statistic
from qjax.statistics.batches import require_batches
from qjax.trace.paths import Where, add_leaves, leaves_with_paths, replace_leaves
from qjax.trace.sites import Program, tapped
from qjax.trace.topology import Topology
from qjax.trace.uses import Uses, uses
from qjax.transforms.contract import Chain, Transform, chain
from qjax.transforms.edits import Working, changes, restored
from qjax.transforms.programs import Block, Programs
from qjax.transforms.report import Report, excluded_summary
from qjax.transforms.resume import Progress, fingerprint
from qjax.transforms.sweep import Settings, Streams, edit_block, needs_reference
from qjax.transforms.walk import base, cut, restacked, sliced, whole

Within = Literal["together", "sequential"]


@dataclasses.dataclass(frozen=True)
class Pass:
    """Transforms that share one walk over the model, and how the model is walked."""

    transforms: Chain
    schedule: Literal["whole", "blocks"]
    needs_data: bool
    within: Within


@dataclasses.dataclass(frozen=True)
class Plan:
    """What `run` would do, before anything is computed: the passes, the targets and what is left alone."""

    passes: tuple[Pass, ...]
    targets: tuple[str, ...]
    excluded: Mapping[str, str]
    stream: str
    by: str

    def __str__(self) -> str:
        lines = []
        for n, p in enumerate(self.passes, 1):
            names = " -> ".join(t.name for t in p.transforms)
            walk = "the whole model" if p.schedule == "whole" else f"block by block ({self.by!r})"
            measured = sorted({as_statistic(s).name for t in p.transforms for s in t.needs.statistics})
            data = f"{self.stream} stream, statistics {p.within}" if p.needs_data else "no data"
            lines.append(
                f"pass {n}: {names}: {walk}, {data}" + (f"; measures {', '.join(measured)}" if measured else "")
            )
            if needs_reference(p.transforms):
                lines[-1] += "; carries the float stream too"
        lines.append(f"{len(self.targets)} targets; left alone:")
        lines += [f"  {line}" for line in excluded_summary(self.excluded)]
        return "\n".join(lines)


def plan(
    recipe: Transform | Chain,
    fn: Callable[..., Any],
    params: Any,
    batch: Any,
    *,
    schedule: Literal["whole", "blocks"] = "blocks",
    by: str = "layers/*",
    stream: Literal["quantized", "float"] = "quantized",
    within: Within | None = None,
    where: Where | None = None,
) -> Plan:
    """The passes, targets and exclusions of `run` with the same arguments; nothing is computed but shapes."""
    return _planned(chain(recipe), uses(fn, params, batch), schedule, by, stream, within, where)


def run(
    recipe: Transform | Chain,
    fn: Callable[..., Any],
    params: Any,
    batches: Sequence[Any],
    *,
    key: jax.Array | None = None,
    schedule: Literal["whole", "blocks"] = "blocks",
    by: str = "layers/*",
    stream: Literal["quantized", "float"] = "quantized",
    within: Within | None = None,
    where: Where | None = None,
    weights: Sequence[jax.Array] | None = None,
    loss: Callable[[Any, Any], jax.Array] | None = None,
    topology: Topology | None = None,
    checkpoint: str | None = None,
    progress: bool = False,
) -> tuple[Any, Report]:
    """Apply a recipe to a model: any function `fn(params, batch)` and its parameters.

    Args:
        recipe: a transform or a chain.
        fn: a pure function of (params, batch): our models, flax, equinox, haiku, plain.
        params: a pytree; leaves may be numpy arrays (memory-mapped too).
        batches: a Sequence of calibration batches, each what `fn` takes. Read more than once, so an iterator is
            refused. A recipe without data reads only the first, for shapes.
        key: folded with transform, stage and step for everything random; default `jax.random.key(0)`.
        schedule: "blocks" streams through the groups of parameters named by `by`; "whole" measures in one pass over the
            model, and needs no groups. Transforms of model scope always see the whole model, between the passes.
        by: path pattern of one block's parameters.
        stream: what a block is fed in calibration: the output of its "quantized" or of its "float" predecessors.
        within: inside a block, statistics are measured once ("together") or again before each group of leaves that
            share an input ("sequential"), which then see those before them quantized. By default each pass as its
            transforms need it: sequential where one compares the quantized with the float stream (`Needs.compared`),
            whose difference the block's own matrices are about to make.
        where: the targets, instead of the default: path pattern(s) or a predicate. The default is every leaf whose only
            use is a matmul, convolution or ragged_dot with an activation; never embeddings, heads, norms, biases,
            routers, gates or depthwise convolutions.
        weights: one array a batch, like its tokens; 0 hides a token (padding) from every statistic.
        loss: (outputs, batch) -> scalar, for transforms that need one.
        topology: how the leaves are wired, for transforms that rewrite several together; `fn.topology` if fn has one.
        checkpoint: a folder where each finished block is saved; the same call goes on from there after a kill.
        progress: show a bar with the time left.

    Returns:
        (params, report): the same tree with operators as leaves (and those that a transform added), or a `Program`
        holding it if the recipe also set taps.

    Raises:
        TypeError: `batches` is not a Sequence.
        ValueError: a transform or pattern that matched nothing, a stage that cannot be cut, an unfit leaf, an added
            leaf that fn does not read.
        NotEquivalent: an equivalence that moved an output.

    Example:
        >>> import jax, jax.numpy as jnp, qjax
        >>> model = lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"]
        >>> params = {"up": jnp.ones((64, 128)), "down": jnp.ones((128, 64))}
        >>> quantized, report = qjax.run(qjax.rtn("int8"), model, params, [jnp.ones((4, 64))], schedule="whole")
        >>> type(quantized["up"]).__name__, report.targets
        ('QArray', ('up', 'down'))
    """
    require_batches(batches, weights)
    begun = time.perf_counter()
    key = jax.random.key(0) if key is None else key
    all_uses = uses(fn, params, batches[0])
    planned = _planned(chain(recipe), all_uses, schedule, by, stream, within, where)
    names = tuple(t.name for p in planned.passes for t in p.transforms)
    order = tuple(p.within for p in planned.passes)
    identity = (
        ""
        if checkpoint is None
        else fingerprint(names, params, list(batches), key, weights, schedule, by, stream, order, planned.targets)
    )
    saved = Progress(checkpoint, identity)
    wiring = getattr(fn, "topology", None) if topology is None else topology
    original = Working(leaves_with_paths(params), leaves_with_paths(params))
    working, rows, programs = original, [], Programs()
    for n, p in enumerate(planned.passes):
        model = _with_taps(fn, working.taps)
        batches_read = batches if p.needs_data else batches[:1]
        if p.schedule == "whole":
            blocks, inputs, finish = (whole(model, params),), list(batches_read), _itself
        else:
            blocks, begin, finish = cut(model, params, batches[0], by)
            inputs = [begin(b) for b in batches_read]
        streams = Streams(inputs, list(inputs) if needs_reference(p.transforms) else None)
        settings = Settings(stream, p.within, jax.random.fold_in(key, n), weights, loss, wiring, batches_read, finish)
        bar = tqdm(total=len(blocks), desc=f"pass {n + 1} of {len(planned.passes)}", disable=not progress, unit="block")
        before = working
        working = sliced(working, blocks)
        steps = _walk(working, blocks, p, planned.targets, streams, programs, settings, saved.of(n))
        for after, new in steps:
            working = after
            rows += new
            bar.update()
        bar.close()
        working = restacked(before, working, all_uses)
        added = {path: leaf for path, leaf in working.params.items() if path not in before.params}
        params = add_leaves(params, added)
        _refuse_unread(added, fn, params, batches[0])
    if not working.plan:  # which may give a format, or a method, to no leaf
        _refuse_idle(planned, rows)
    changed = {path: leaf for path, leaf in working.params.items() if leaf is not original.params.get(path)}
    result = replace_leaves(params, changed)
    if working.taps:
        result = Program(result, dict(working.taps))
    moved = {base(path) for path in working.rewritten}
    return result, Report(
        tuple(rows),
        planned.targets,
        planned.excluded,
        tuple(path for path in planned.targets if path in moved),
        dict(working.plan),
        str(planned),
        time.perf_counter() - begun,
    )


def _itself(outputs: Any) -> Any:
    return outputs


def _refuse_unread(added: Mapping[str, Any], fn: Callable[..., Any], params: Any, batch: Any) -> None:
    found = uses(fn, params, batch) if added else {}
    if unread := [path for path in added if not found.get(path)]:
        raise ValueError(f"{unread[0]}: this function does not read such a leaf, so that adding it changes nothing")


def _with_taps(fn: Callable[..., Any], taps: Mapping[str, Any]) -> Callable[[Any, Any], Any]:
    return (lambda params, batch: tapped(fn)(Program(params, dict(taps)), batch)) if taps else fn


def _walk(
    working: Working,
    blocks: tuple[Block, ...],
    p: Pass,
    targets: tuple[str, ...],
    streams: Streams,
    programs: Programs,
    settings: Settings,
    saved: Progress,
) -> Iterator[tuple[Working, list[dict[str, Any]]]]:
    """The working copy after each block, and the block's rows. Blocks behind the last target are never run."""
    chosen = frozenset(i for b in blocks for i in b.ids if base(i) in targets)
    last = max((i for i, b in enumerate(blocks) if chosen.intersection(b.ids)), default=-1)
    done = saved.finished()
    for i, block in enumerate(blocks[: last + 1]):
        if i < done:
            working, rows = restored(working, saved.block(i))
            if i == done - 1 and i < last:
                streams = Streams(*saved.streams(i))
        else:
            before = working
            working, rows = edit_block(working, blocks, i, p.transforms, chosen, streams, programs, settings)
            if i < last and p.needs_data:
                streams = streams.advanced(block, working, programs, settings.stream)
            saved.keep(i, changes(before, working, rows), (streams.now, streams.reference) if i < last else ())
        yield working, rows


def _planned(
    recipe: Chain, all_uses: Uses, schedule: Any, by: str, stream: Any, within: Any, where: Where | None
) -> Plan:
    """Transforms in passes, and what each walks over."""
    for name, value, allowed in (
        ("schedule", schedule, ("blocks", "whole")),
        ("stream", stream, ("quantized", "float")),
        ("within", within, (None, "together", "sequential")),
    ):
        if value not in allowed:
            raise ValueError(f"{name}={value!r}; give one of {', '.join(map(str, allowed))}")
    if not recipe:
        raise ValueError("the recipe is empty: chain() has no transforms")
    passes: list[Pass] = []
    for transforms in _together(recipe):
        model = transforms[0].scope == "model"
        data = model or any(t.scope in ("block", "window") or _reads(t) for t in transforms)
        order = within or ("sequential" if any(t.needs.compared for t in transforms) else "together")
        passes.append(Pass(transforms, schedule if data and not model else "whole", data, order))
    targets = all_uses.targets(where)
    left = {p: all_uses.excluded.get(p, "not picked by where=") for p in all_uses if p not in targets}
    return Plan(tuple(passes), targets, {**all_uses.impossible, **left}, stream, by)


def _together(recipe: Chain) -> Iterator[Chain]:
    """Transforms that share a pass, in order.

    One of model scope has its own. One that sees blocks ahead begins one: what stands before it must be done with them.
    """
    part: list[Transform] = []
    for t in recipe:
        ahead = t.scope == "window" and t.needs.window != 1
        if part and (ahead or "model" in (t.scope, part[-1].scope)):
            yield tuple(part)
            part = []
        part.append(t)
    yield tuple(part)


def _reads(t: Transform) -> bool:
    return bool(t.needs.statistics) or t.needs.streams or t.needs.loss


def _refuse_idle(planned: Plan, rows: Sequence[Mapping[str, Any]]) -> None:
    busy = {row["method"] for row in rows}
    idle = [t.name for p in planned.passes for t in p.transforms if t.name not in busy and t.scope != "model"]
    if idle:
        some = ", ".join(planned.targets[:4])
        raise ValueError(
            f"{', '.join(idle)}: matched no leaf; the run's {len(planned.targets)} targets are {some}, ..."
        )
