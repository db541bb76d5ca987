"""The contract every method keeps: a transform looks at a stage and answers with an edit.

Like optax, a transform is a NamedTuple of pure functions and its state is a pytree. Unlike optax, it changes leaf
*types* (an array becomes an operator), needs calibration data between `init` and the last `step`, and may leave an
online part behind (a scale in front of a matmul). Hence three nouns:

- a `Stage` is what a transform may see: some leaves, their float reference, statistics of their inputs, streams;
- an `Edit` is what it answers: an *equivalence* (same function, other numbers), an *approximation* (new leaves), an
  *annotation* (a plan: path -> format) or a change of the program around the leaves (taps, leaves it had not);
- the `scope` says how much of the model one stage holds: one leaf, the leaves that read one value, a block, a window of
  blocks, the model.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax

from qjax.statistics import CrossGram, Statistic, as_statistic
from qjax.trace.topology import Topology
from qjax.trace.uses import Use

Scope = Literal["leaf", "inputs", "block", "window", "model"]
SCOPES: tuple[Scope, ...] = ("leaf", "inputs", "block", "window", "model")
Leaves = Mapping[str, Any]


class Needs(NamedTuple):
    """What must be measured or kept for a transform before its first step.

    Attributes:
        statistics: statistics of the targets' inputs (`qjax.statistics`) or their names, measured on the stream;
            "cross_gram" of it and the float stream (GPTAQ).
        paired: also measure `statistics` on the float stream (mean shifts).
        streams: also keep, per batch, the stage's inputs and its reference inputs and outputs.
        loss: the stage must offer `loss` (model scope).
        window: number of consecutive blocks in a stage (window scope); None for all blocks of the model.
        inner: the stage puts out what each of its blocks does, as a tuple (window scope).
        sensitivity: also measure `Stage.sensitivities` (with `streams`): of the "loss" given to `run`, or of the
            "outputs" of the model, which takes no labels.
    """

    statistics: tuple[str | Statistic, ...] = ()
    paired: bool = False
    streams: bool = False
    loss: bool = False
    window: int | None = 1
    inner: bool = False
    sensitivity: Literal["loss", "outputs"] | None = None

    @property
    def compared(self) -> bool:
        """Whether the quantized stream is compared with the float one: measured sequentially, unless `run` is told."""
        return self.paired or any(as_statistic(s) == CrossGram() for s in self.statistics)


@dataclasses.dataclass(frozen=True)
class Stage:
    """What a transform sees. Paths are those of the user's tree, with `[i]` behind the layer of a scanned stack.

    Attributes:
        name: the stage's name, such as "layers/3" or "layers/3/attn/q".
        targets: paths of the leaves the transform may edit, in order of their first use.
        params: every leaf the stage reads, as it is now (arrays or operators).
        reference: the same leaves in float, with every equivalence so far applied.
        uses: path -> `Use`, how a leaf is contracted; `use.to_matrix` gives [batch..., K, N].
        statistics: path -> {name: value} of the value that enters the leaf's matmul, before any `Pre` of the leaf.
        reference_statistics: the same in the float model (`Needs.paired`).
        plan: path -> format, written by annotations.
        topology: how the leaves are wired, if the model or the call of `run` says so; at model scope only.
        fn: (leaves, input) -> output of this stage, for leaves as a tuple in the order of `params`, operators allowed.
            Equal stages hold the same `fn`, so a program built on it is compiled once for all of them.
        inputs, reference_inputs, reference_outputs: one entry a calibration batch (`Needs.streams`); at model scope
            `inputs` are the batches themselves.
        sensitivities: like `reference_outputs`, how much each number of them matters in the float model: the square of
            the loss's slope, or the mean square over the model's outputs' slopes (`Needs.sensitivity`); 0 for integers.
        loss: (leaves, input) -> scalar, at model scope when `run` was given a loss; leaves as for `fn`.
    """

    name: str
    targets: tuple[str, ...]
    params: Leaves
    reference: Leaves
    uses: Mapping[str, Use]
    statistics: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    reference_statistics: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    plan: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fn: Callable[[tuple[Any, ...], Any], Any] | None = None
    inputs: Sequence[Any] = ()
    reference_inputs: Sequence[Any] = ()
    reference_outputs: Sequence[Any] = ()
    sensitivities: Sequence[Any] = ()
    loss: Callable[[tuple[Any, ...], Any], jax.Array] | None = None
    topology: Topology | None = None


class Edit(NamedTuple):
    """A transform's answer. Every field may stay empty.

    Attributes:
        equivalence: path -> invertible map T: the leaf W becomes `Pre(T, T^-1 W)`, in params and in the reference.
        rewritten: path -> new leaf, all of them together the same function (a rotation folded into both sides of the
            stream): in params and in the reference, before `equivalence`; not only targets.
        params: path -> new leaf, an approximation: the reference keeps its own.
        plan: path -> format (annotation).
        taps: site -> map on that activation, behind what an earlier transform put there.
        added: path -> leaf that the function reads where its tree holds one, such as a prefix: in params and in the
            reference, before all else; `params` may give the first another value at once. At model scope only.
        rows: path -> extra columns of the report (method, format, warnings, ...).
    """

    equivalence: Mapping[str, Any] = {}
    rewritten: Mapping[str, Any] = {}
    params: Mapping[str, Any] = {}
    plan: Mapping[str, Any] = {}
    taps: Mapping[str, Any] = {}
    added: Mapping[str, Any] = {}
    rows: Mapping[str, Mapping[str, Any]] = {}


Select = Callable[[str, Use, Mapping[str, Any]], bool]


class Transform(NamedTuple):
    """A method: what it needs, and how it edits one stage.

    Attributes:
        name: shown in plans, progress and reports, such as "gptq int4_g64".
        scope: how much of the model a stage holds.
        needs: what must be measured before.
        init: (Stage) -> State, any pytree; it is saved with the run.
        step: (Stage, State, key) -> (Edit, State, done); called again, on the edited stage, until done.
        select: (path, use, plan) -> bool on top of the run's targets; `masked` and `partition` set it.
    """

    name: str
    scope: Scope
    needs: Needs
    init: Callable[[Stage], Any]
    step: Callable[[Stage, Any, jax.Array], tuple[Edit, Any, bool]]
    select: Select | None = None


Chain = tuple[Transform, ...]


def stateless(
    name: str, scope: Scope, edit: Callable[[Stage, jax.Array], Edit], needs: Needs | None = None
) -> Transform:
    """A transform of one step and no state: `edit(stage, key)`."""
    return Transform(
        name, scope, needs or Needs(), lambda stage: (), lambda stage, state, key: (edit(stage, key), state, True)
    )


def chain(*transforms: Transform | Chain) -> Chain:
    """Transforms one after the other; statistics of a later one are those of the edited model.

    Raises:
        TypeError: something that is not a transform, with its position.

    Example:
        >>> import qjax
        >>> [t.name for t in qjax.chain(qjax.smooth(alpha=0.5), qjax.rtn("int8"))]
        ['smooth 0.5', 'rtn int8']
    """
    flat: list[Transform] = []
    for i, t in enumerate(transforms):
        parts = (t,) if isinstance(t, Transform) else t
        if not isinstance(parts, tuple) or not all(isinstance(p, Transform) for p in parts):
            raise TypeError(
                f"chain: argument {i} is {t!r}, not a transform; did you forget to call it (qjax.rtn('int8'))?"
            )
        flat.extend(parts)
    return tuple(flat)


def masked(transform: Transform | Chain, select: Select) -> Chain:
    """Only the targets for which `select(path, use, plan)` holds; a mask that never holds is an error of `run`."""

    def narrow(t: Transform) -> Transform:
        before = t.select
        both = (
            select if before is None else (lambda path, use, plan: before(path, use, plan) and select(path, use, plan))
        )
        return t._replace(select=both)

    return tuple(narrow(t) for t in chain(transform))


def named(transform: Transform | Chain, *patterns: str) -> Chain:
    """Only the targets whose path matches one of the globs, such as "*/ffn/down" or "*/attn/[qkv]".

    >>> import qjax
    >>> q = qjax.transforms.named(qjax.rtn("int8"), "*/down")
    >>> q[0].select("layers/3/ffn/down", None, {}), q[0].select("layers/3/ffn/up", None, {})
    (True, False)
    """
    return masked(transform, lambda path, use, plan: any(fnmatch.fnmatchcase(path, p) for p in patterns))


def partition(
    transforms: Mapping[Any, Transform | Chain], label: Callable[[str, Use, Mapping[str, Any]], Any]
) -> Chain:
    """Each target through the chain of its label, as in optax. A label without a transform is an error.

    Example (int8 where the plan says so, int4 elsewhere):
        >>> import qjax
        >>> recipe = qjax.partition({"int8": qjax.rtn("int8"), "int4": qjax.rtn("int4_g64")},
        ...                         lambda path, use, plan: "int8" if "down" in path else "int4")
        >>> len(recipe)
        2
    """

    def wants(name: Any) -> Select:
        def select(path: str, use: Use, plan: Mapping[str, Any]) -> bool:
            found = label(path, use, plan)
            if found not in transforms:
                raise ValueError(
                    f"partition: {path} has label {found!r}; transforms exist for {sorted(map(str, transforms))}"
                )
            return found == name

        return select

    return chain(*(masked(t, wants(name)) for name, t in transforms.items()))
