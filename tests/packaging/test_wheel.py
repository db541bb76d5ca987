"""What is built is what is in the tree: the kernels behind the link, the public face, types that check."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import tarfile
import zipfile

import pytest

pytest.importorskip("hatchling")  # an environment of one oracle builds nothing

ROOT = pathlib.Path(__file__).parents[2]


def build(source: pathlib.Path, target: str, folder: pathlib.Path) -> pathlib.Path:
    """The archive hatchling makes of `source`; without isolation, so that nothing is fetched."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)],
        cwd=source,
        check=True,
        capture_output=True,
        text=True,
    )
    (archive,) = folder.iterdir()
    return archive


def sources() -> set[str]:
    """Every Python file of the package as it is imported, kernels under qjax/kernels."""
    own = {path.relative_to(ROOT).as_posix() for path in (ROOT / "qjax").rglob("*.py") if "kernels" not in path.parts}
    return own | {"qjax/" + path.relative_to(ROOT).as_posix() for path in (ROOT / "kernels").rglob("*.py")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build(ROOT, "wheel", tmp_path_factory.mktemp("wheel"))


def test_kernels_is_a_relative_link():
    link = ROOT / "qjax" / "kernels"
    assert link.is_symlink()
    assert str(link.readlink()) == "../kernels"


def test_wheel_holds_every_source_once(wheel):
    names = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")]
    assert len(names) == len(set(names))
    assert set(names) == sources()


def test_wheel_carries_types_and_licence(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "qjax/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_wheel_of_the_source_archive_is_the_same(wheel, tmp_path):
    archive = build(ROOT, "sdist", tmp_path / "sdist")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    again = build(source, "wheel", tmp_path / "wheel")
    assert sorted(zipfile.ZipFile(again).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The wheel in a folder of its own, nothing of the repository beside it."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            "--target",
            str(folder),
            str(wheel),
        ],
        check=True,
        capture_output=True,
    )
    return folder


def test_import_outside_the_repository(installed, tmp_path):
    # -P and an empty folder keep the repository off the path; the folder given is searched first.
    program = (
        f"import sys; sys.path.insert(0, {str(installed)!r}); import pkgutil, importlib, qjax, qjax.kernels\n"
        "for module in pkgutil.walk_packages(qjax.__path__, 'qjax.'): importlib.import_module(module.name)\n"
        "print(qjax.__file__); print(qjax.kernels.__file__)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(installed / "qjax/__init__.py"), str(installed / "qjax/kernels/__init__.py")]


def test_installed_package_type_checks(installed):
    pytest.importorskip("pyright")
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, str(installed / "qjax")],
        cwd=installed,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_top_level_kernels_refuses(tmp_path):
    done = subprocess.run([sys.executable, "-c", "import kernels"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "import qjax.kernels, not kernels" in done.stderr
