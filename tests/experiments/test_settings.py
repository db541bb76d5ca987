"""Configs: every bad field is refused by name; a tuple is one row for each of its values."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from experiments import settings, sweep

CONFIGS = [path.stem for path in (Path(__file__).resolve().parents[2] / "configs").glob("[a-z]*.py")]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("study", "", "names a folder"),
        ("study", "a/b", "names a folder"),
        ("within", "parallel", "give 'together', 'sequential' or None"),
        ("replicates", 0, "at least 1"),
        ("replicates", "3", "must be a int"),
        ("claims", ("rtn", "gptq"), "pair of row names"),
        ("places", (("kurtosis", "keys"),), "measure, larger, smaller"),
        ("places", (("kurtosis", "keys", "quays"),), "measure, larger, smaller"),
        ("relations", (("crest", "bits"),), "output error or perplexity"),
        ("calibration.windows", 0, "at least 1"),
        ("evaluation.length", 1, "at least 2"),
        ("evaluation.batch", 5, "does not divide 32"),
        ("evaluation.part", "all", "measure on one of"),
        ("extra", {"w8a8": 8}, "holds a recipe's fields"),
    ],
)
def test_bad_values(field, value, message):
    config = settings.defaults("x")
    with config.unlocked(), config.ignore_type():
        config.update_from_flattened_dict({field: value}) if "." in field else config.__setitem__(field, value)
    with pytest.raises(ValueError, match=message):
        settings.check(config)


def test_unknown_and_missing_fields():
    config = settings.defaults("x")
    with config.unlocked():
        config.calibraton = 3
    with pytest.raises(ValueError, match=r"config\.calibraton is not a field; did you mean calibration"):
        settings.check(config)
    config = settings.defaults("x")
    with config.unlocked():
        del config["seed"]
    with pytest.raises(ValueError, match=r"config\.seed is missing"):
        settings.check(config)


def rows(recipe, extra=None):
    config = settings.defaults("x")
    config.recipe = recipe
    config.extra = extra or {}
    return sweep.rows(settings.check(config))


def test_tuples_are_rows():
    found = rows(
        {"methods": ("rtn", "gptq"), "format": ("int4_g64", "mxfp4"), "order": "none"},
        {"w8a8": {"granularity": ("token", "tensor")}},
    )
    assert [row.name for row in found] == [
        "float", "rtn int4_g64", "rtn mxfp4", "gptq int4_g64", "gptq mxfp4", "w8a8 token", "w8a8 tensor",
    ]  # fmt: skip
    assert found[3].recipe == "gptq(format='int4_g64', order='none', groups='static', damp=0.01)"
    assert found[1].fields == {"format": "int4_g64"}, "rtn takes no order"
    assert found[3].format == "int4_g64" and found[5].format == "int8" and found[0].format == "float"


@pytest.mark.parametrize(
    ("recipe", "extra", "message"),
    [
        ({"methods": ("rtnn",), "format": ("int8",)}, {}, "did you mean rtn"),
        ({"methods": ("rtn",), "format": ("int8",), "order": "none"}, {}, "config.recipe.order: none of rtn takes it"),
        ({"methods": ("rtn",), "format": ("int8",)}, {"w8a8": {"bits": 4}}, "config.extra.w8a8.bits: w8a8 takes"),
        ({"methods": ("rtn", "rtn"), "format": ("int8",)}, {}, "two rows are called 'rtn int8'"),
    ],
)
def test_bad_recipes(recipe, extra, message):
    with pytest.raises(ValueError, match=message):
        rows(recipe, extra)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_is_a_study(name):
    module = importlib.import_module(f"configs.{name}")
    config = settings.check(module.get_config())
    assert config["study"] == name
    found = sweep.rows(config)
    labels = {row.name for row in found}
    for row in found[1:]:
        row.build()
    for claim in config["claims"]:
        assert set(claim) <= labels
    assert set(config["samples"]["rows"]) <= labels
    for word in ("Paper", "Expected", "Cost", f"--config=configs/{name}.py"):
        assert word in module.__doc__, f"configs/{name}.py does not state: {word}"
