"""What a study's config may say. A config file starts from `defaults` and changes fields."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import operator
from collections.abc import Collection, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_collections
from ml_collections.config_dict import placeholder

PARTS = ("calibration", "development", "report")
CAUSES = ("crest", "kurtosis", "flatness", "zeros")
EFFECTS = ("output error", "perplexity")


def defaults(study: str) -> ml_collections.ConfigDict:
    """The config every study starts from.

    `recipe` names methods and the fields they share, `extra` holds more methods with fields of their own; a tuple
    means one row for each of its values. `calibration` and `evaluation` count windows of text.

    What the study judges over `replicates`: `claims` are pairs (better, worse) of row names; `places` are (measure,
    larger, smaller) of the float model's activations, by the names of `experiments.places`; `relations` are pairs
    (cause, effect) of what grows together over all rows but the float one: a number of a matrix's input
    (`experiments.outliers`) with the error of its output, or its mean over the matrices with the row's perplexity.
    """
    return ml_collections.ConfigDict(
        {
            "study": study,
            "model": placeholder(str),  # None: SmolLM2-135M; a path, a hub id, "module:function" or "file.py:function"
            "data": "topics",  # "topics", a corpus of `qjax.data`, or the path of a text file
            "seed": 0,
            "replicates": 1,
            "recipe": {"methods": (), "format": ()},
            "extra": {},
            "schedule": "blocks",
            "within": placeholder(str),  # how a block's matrices are measured (`qjax.run`); None: as each recipe needs
            "calibration": {"windows": 16, "length": 512, "batch": 4},
            "evaluation": {"windows": 32, "length": 512, "batch": 4, "part": "report"},
            "claims": (),
            "places": (),
            "relations": (),
            "samples": {"prompts": (), "rows": (), "steps": 48},
            "pictures": False,  # sizes of weights and inputs of the float model, for the report
        }
    )


def module(place: str) -> ModuleType:
    """A module by its dotted name, or by the path of its file; FileNotFoundError where there is none."""
    if not place.endswith(".py"):
        return importlib.import_module(place)
    spec = importlib.util.spec_from_file_location(Path(place).stem, place)
    if spec is None or spec.loader is None or not Path(place).is_file():
        raise FileNotFoundError(f"no Python file at {place}")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def check(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The config as plain JSON values; ValueError names a field that is unknown, missing, mistyped or out of range."""
    values = plain(config.to_dict())
    known = plain(defaults("").to_dict())
    _same_fields("config", values, known, free=("recipe", "extra"))
    if not values["study"] or "/" in values["study"]:
        raise ValueError(f"config.study is {values['study']!r}; it names a folder under runs/")
    for group, field, least in (
        ("calibration", "windows", 1),
        ("calibration", "length", 2),
        ("calibration", "batch", 1),
        ("evaluation", "windows", 1),
        ("evaluation", "length", 2),
        ("evaluation", "batch", 1),
        ("samples", "steps", 1),
    ):
        if values[group][field] < least:
            raise ValueError(f"config.{group}.{field} is {values[group][field]}; it must be at least {least}")
    if values["replicates"] < 1:
        raise ValueError(f"config.replicates is {values['replicates']}; it must be at least 1")
    for group in ("calibration", "evaluation"):
        if values[group]["windows"] % values[group]["batch"]:
            raise ValueError(
                f"config.{group}.batch is {values[group]['batch']}, which does not divide "
                f"{values[group]['windows']} windows"
            )
    if values["within"] not in (None, "together", "sequential"):
        raise ValueError(f"config.within is {values['within']!r}; give 'together', 'sequential' or None")
    if values["evaluation"]["part"] not in PARTS[1:]:
        raise ValueError(f"config.evaluation.part is {values['evaluation']['part']!r}; measure on one of {PARTS[1:]}")
    for claim in values["claims"]:
        if not isinstance(claim, list) or len(claim) != 2:
            raise ValueError(f"config.claims holds {claim!r}; a claim is a pair of row names (better, worse)")
    for place in values["places"]:
        from experiments.places import MEASURES, PLACES  # imports jax, which a config's other fields can do without

        if not _names(place, MEASURES, PLACES, PLACES):
            raise ValueError(
                f"config.places holds {place!r}; give (measure, larger, smaller): {', '.join(MEASURES)} of "
                f"{', '.join(PLACES)}"
            )
    for relation in values["relations"]:
        if not _names(relation, CAUSES, EFFECTS):
            raise ValueError(
                f"config.relations holds {relation!r}; give (cause, effect): one of {', '.join(CAUSES)} with "
                f"{' or '.join(EFFECTS)}"
            )
    for name in values["extra"]:
        if not isinstance(values["extra"][name], dict):
            raise ValueError(f"config.extra.{name} is {values['extra'][name]!r}; it holds a recipe's fields")
    return values


def claimed(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a checked config claims, as pairs of names its results have: "better" or larger first.

    >>> claimed({"claims": [["a", "b"]], "places": [["kurtosis", "keys", "values"]], "relations": [["crest", "error"]]})
    [('a', 'b'), ('kurtosis of keys', 'kurtosis of values'), ('rank correlation of crest', 'error')]
    """
    places = [(f"{measure} of {a}", f"{measure} of {b}") for measure, a, b in config["places"]]
    relations = [(f"rank correlation of {cause}", effect) for cause, effect in config["relations"]]
    return [(better, worse) for better, worse in config["claims"]] + places + relations


def plain(value: Any) -> Any:
    """Tuples as lists, all the way down: what the JSON file will hold.

    >>> plain({"a": (1, (2, 3))})
    {'a': [1, [2, 3]]}
    """
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def _names(value: Any, *known: Collection[str]) -> bool:
    return isinstance(value, list) and len(value) == len(known) and all(map(operator.contains, known, value))


def _same_fields(where: str, values: dict[str, Any], known: dict[str, Any], free: tuple[str, ...] = ()) -> None:
    for name in values:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
            raise ValueError(f"{where}.{name} is not a field; {hint}")
    for name, default in known.items():
        if name not in values:
            raise ValueError(f"{where}.{name} is missing; start the config from experiments.settings.defaults")
        value = values[name]
        if default is not None and not (name in free and isinstance(value, dict)) and type(value) is not type(default):
            raise ValueError(f"{where}.{name} is {value!r}; it must be a {type(default).__name__}")
        if isinstance(default, dict) and name not in free:
            _same_fields(f"{where}.{name}", value, default)
