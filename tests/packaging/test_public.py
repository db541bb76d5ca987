"""The public face and the habits every file keeps: documented names, no name with two meanings, files of one idea."""

from __future__ import annotations

import importlib
import inspect
import pathlib
import pkgutil
import re
import types

import pytest

import qjax

ROOT = pathlib.Path(__file__).parents[2]
MODULES = ["qjax", *(module.name for module in pkgutil.walk_packages(qjax.__path__, "qjax.", onerror=str))]
LONGEST = 450
"""Lines; what fits in a head is a few hundred, and a limit that is met by cutting blank lines serves nobody."""


def documented(value: object) -> bool:
    """Whether the docstring is a person's: dataclasses and named tuples write a signature when there is none."""
    text = (value.__doc__ or "").strip()
    generated = inspect.isclass(value) and text.startswith(f"{value.__name__}(")
    return bool(text) and not generated


@pytest.mark.parametrize("name", MODULES)
def test_every_face_is_documented(name):
    """The names a room offers in `__all__`; that every source has its docstrings is the lint's to say."""
    module = importlib.import_module(name)
    offered = {name: getattr(module, name) for name in getattr(module, "__all__", [])}
    described = {name: value for name, value in offered.items() if inspect.isroutine(value) or inspect.isclass(value)}
    assert [name for name, value in described.items() if not documented(value)] == []


@pytest.mark.parametrize("name", MODULES)
def test_no_function_hides_a_module(name):
    module = importlib.import_module(name)
    children = [child.name for child in pkgutil.iter_modules(getattr(module, "__path__", []))]
    found = {child: getattr(module, child, None) for child in children if hasattr(module, child)}
    assert [child for child, value in found.items() if not isinstance(value, types.ModuleType)] == []


def test_the_face_is_flat_and_complete():
    names = qjax.__all__
    assert len(names) == len(set(names))
    assert [name for name in names if not hasattr(qjax, name)] == []
    functions = {name for name in names if callable(getattr(qjax, name))}
    assert functions & {module.rpartition(".")[2] for module in MODULES if module.count(".") == 1} == set()


@pytest.mark.parametrize("folder", ["qjax", "kernels", "experiments", "configs", "tests", "docs"])
def test_a_file_fits_in_a_head(folder):
    paths = [path for path in (ROOT / folder).rglob("*.py") if not path.is_relative_to(ROOT / "qjax" / "kernels")]
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in paths}
    assert {path: lines for path, lines in lengths.items() if lines > LONGEST} == {}


def test_oracles_stand_where_make_oracle_looks():
    marked = [path for path in (ROOT / "tests").rglob("*.py") if re.search(r"mark\.oracle\b", path.read_text())]
    assert [path for path in marked if path.parent.name != "oracle" and path != pathlib.Path(__file__)] == []
