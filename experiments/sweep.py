"""A config as a list of rows: every combination of the tuple-valued fields of its recipes."""

from __future__ import annotations

import difflib
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from qjax import recipes

FLOAT = "float"


class Row(NamedTuple):
    """One line of a study's table: a recipe of `qjax.recipes` with its fields; the float model has none."""

    name: str
    method: str
    fields: Mapping[str, Any]

    @property
    def recipe(self) -> str:
        """The call as a user would write it."""
        return (
            f"{self.method}({', '.join(f'{k}={v!r}' for k, v in self.fields.items())})"
            if self.method != FLOAT
            else FLOAT
        )

    @property
    def format(self) -> str:
        return str(self.fields.get("format", FLOAT))

    def build(self) -> Any:
        """The transform chain of this row."""
        return method(self.method)(**self.fields)


def method(name: str) -> Callable[..., Any]:
    """The recipe of that name; an unknown one raises ValueError listing close names.

    >>> method("gtpq")
    Traceback (most recent call last):
    ValueError: no recipe 'gtpq' in qjax.recipes; did you mean gptq?
    """
    if name not in recipes.__all__:
        close = difflib.get_close_matches(name, recipes.__all__, 1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(recipes.__all__)}"
        raise ValueError(f"no recipe {name!r} in qjax.recipes; {hint}")
    return getattr(recipes, name)


def rows(config: Mapping[str, Any]) -> list[Row]:
    """The float model first, then `recipe.methods` over the shared fields, then `extra`.

    A shared field goes to the methods that take it; one that no method takes raises ValueError, as does a field a
    recipe of `extra` does not take, or two rows of one name.
    """
    shared = {name: value for name, value in config["recipe"].items() if name != "methods"}
    names = config["recipe"].get("methods", [])
    taken: set[str] = set()
    found = [Row(FLOAT, FLOAT, {})]
    for name in names:
        fields = {key: value for key, value in shared.items() if key in inspect.signature(method(name)).parameters}
        taken |= fields.keys()
        found.extend(_combinations(name, fields))
    if names and (unused := shared.keys() - taken):
        raise ValueError(f"config.recipe.{min(unused)}: none of {', '.join(names)} takes it")
    for name, fields in config["extra"].items():
        accepted = inspect.signature(method(name)).parameters
        for key in fields:
            if key not in accepted:
                raise ValueError(f"config.extra.{name}.{key}: {name} takes {', '.join(accepted)}")
        found.extend(_combinations(name, fields))
    labels = [row.name for row in found]
    if doubled := {label for label in labels if labels.count(label) > 1}:
        raise ValueError(f"two rows are called {min(doubled)!r}; vary a field by a tuple instead")
    return found


def _combinations(name: str, fields: Mapping[str, Any]) -> Iterator[Row]:
    # The row's name carries its format and what varies; everything else, defaults included, is in the recipe
    # column.
    defaults = {key: parameter.default for key, parameter in inspect.signature(method(name)).parameters.items()}
    swept = {key: value if isinstance(value, list) else [value] for key, value in fields.items()}
    for values in itertools.product(*swept.values()):
        chosen = dict(zip(swept, values, strict=True))
        shown = [str(value) for key, value in chosen.items() if key == "format" or len(swept[key]) > 1]
        yield Row(" ".join([name, *shown]), name, defaults | chosen)
