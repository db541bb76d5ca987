"""From a C++ source beside this file to a loaded library: built once, kept in a cache folder; or why it cannot be.

The library's name holds a hash of the source, what it includes from this folder, the flags, the compiler's version and
jaxlib's (whose headers it includes), so a stale one is never loaded; it is written under another name and moved there,
so processes that build at the same time do not meet half a file. `$CXX` names the compiler, `$QJAX_CACHE_DIR` the
folder.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import pathlib
import platform
import re
import shutil
import subprocess
import tempfile
from importlib import metadata
from typing import NamedTuple

import jax

FLAGS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-fPIC", "-shared", "-w")
SECONDS = 300  # for one compilation


class Built(NamedTuple):
    """A loaded library, or why there is none."""

    library: ctypes.CDLL | None
    problem: str | None


@functools.cache
def load(name: str) -> Built:
    """The library of `name`.cc in this folder, built if the cache lacks it; never raises for want of a compiler."""
    try:
        return Built(ctypes.CDLL(str(build(pathlib.Path(__file__).with_name(f"{name}.cc")))), None)
    except (OSError, RuntimeError) as error:
        return Built(None, str(error))


def build(source: pathlib.Path, compiler: str | None = None, folder: pathlib.Path | None = None) -> pathlib.Path:
    """The shared library of `source`, from the cache `folder` or compiled into it.

    RuntimeError says what is missing or what the compiler said; OSError where the folder cannot be written.
    """
    compiler = find_compiler() if compiler is None else compiler
    folder = cache_folder() if folder is None else folder
    version = _run(compiler, "--version").partition("\n")[0]
    recipe = "\n".join((version, *FLAGS, metadata.version("jaxlib"), platform.machine()))
    key = hashlib.sha256(_text(source) + recipe.encode()).hexdigest()[:16]
    library = folder / f"{source.stem}-{key}.so"
    if not library.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = pathlib.Path(scratch) / library.name
            _run(compiler, *FLAGS, f"-I{jax.ffi.include_dir()}", str(source), "-o", str(made))
            made.replace(library)
    return library


def _text(source: pathlib.Path) -> bytes:
    """A source with the files of its folder that it includes."""
    own = source.read_bytes()
    beside = (source.with_name(name.decode()) for name in dict.fromkeys(re.findall(rb'#include "([\w.]+)"', own)))
    return own + b"".join(path.read_bytes() for path in beside)


def find_compiler() -> str:
    """`$CXX`, or the first of c++, g++ and clang++ on the path; RuntimeError where there is none."""
    named = os.environ.get("CXX")
    for candidate in (named,) if named else ("c++", "g++", "clang++"):
        found = shutil.which(candidate)
        if found is not None:
            return found
    raise RuntimeError(
        f"no C++ compiler: $CXX names {named}, which is not on the path"
        if named
        else "no C++ compiler: c++, g++ and clang++ are not on the path; install one or name it by $CXX"
    )


def cache_folder() -> pathlib.Path:
    """`$QJAX_CACHE_DIR`, else `qjax` in `$XDG_CACHE_HOME` or in `.cache` at home."""
    chosen = os.environ.get("QJAX_CACHE_DIR")
    if chosen:
        return pathlib.Path(chosen)
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "qjax"


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{command[0]} took more than {SECONDS} seconds") from error
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:2])} failed: {done.stderr.strip()[-500:]}")
    return done.stdout
