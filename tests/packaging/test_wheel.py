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
SOURCES = (".py", ".cc", ".h", ".tsv")


def run(*command: str, cwd: pathlib.Path) -> subprocess.CompletedProcess[str]:
    """This interpreter on `command`; the exit status is the caller's to judge."""
    return subprocess.run([sys.executable, *command], cwd=cwd, capture_output=True, text=True, check=False)


def build(source: pathlib.Path, target: str, folder: pathlib.Path) -> pathlib.Path:
    """The archive hatchling makes of `source`; without isolation, so that nothing is fetched."""
    done = run("-m", "hatchling", "build", "-t", target, "-d", str(folder), cwd=source)
    assert done.returncode == 0, done.stderr
    (archive,) = folder.iterdir()
    return archive


def sources() -> set[str]:
    """Every source of the package, Python, C++ and tables, as it is imported, kernels under qjax/kernels."""
    own = {path.relative_to(ROOT).as_posix() for path in (ROOT / "qjax").rglob("*.py") if "kernels" not in path.parts}
    kernels = (path for path in (ROOT / "kernels").rglob("*") if path.suffix in SOURCES)
    return own | {"qjax/" + path.relative_to(ROOT).as_posix() for path in kernels}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build(ROOT, "wheel", tmp_path_factory.mktemp("wheel"))


def test_kernels_is_a_relative_link():
    link = ROOT / "qjax" / "kernels"
    assert link.is_symlink()
    assert str(link.readlink()) == "../kernels"


def test_wheel_holds_every_source_once(wheel):
    names = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(SOURCES)]
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
    done = run(
        "-m", "pip", "install", "-qq", "--no-deps", "--no-index", "--target", str(folder), str(wheel), cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_import_outside_the_repository(installed, tmp_path):
    # -P and an empty folder keep the repository off the path; the folder given is searched first.
    program = (
        f"import sys; sys.path.insert(0, {str(installed)!r}); import pkgutil, importlib, qjax, qjax.kernels\n"
        "for module in pkgutil.walk_packages(qjax.__path__, 'qjax.'): importlib.import_module(module.name)\n"
        "print(qjax.__file__); print(qjax.kernels.__file__)"
    )
    done = run("-P", "-c", program, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(installed / "qjax/__init__.py"), str(installed / "qjax/kernels/__init__.py")]


def test_installed_package_type_checks(installed):
    pytest.importorskip("pyright")
    package = str(installed / "qjax")
    done = run("-m", "pyright", "--pythonpath", sys.executable, package, cwd=installed)
    assert done.returncode == 0, done.stdout


def test_top_level_kernels_refuses():
    done = run("-c", "import kernels", cwd=ROOT)
    assert done.returncode != 0
    assert "import qjax.kernels, not kernels" in done.stderr
