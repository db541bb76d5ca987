"""Settings every test runs under: strict promotion, no silent rank broadcasting, eight devices, few drawn examples."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

# Before the first import of jax: the device count is read once, at start-up.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

# Compilation is most of the time: what one worker has compiled the others load, and a test that builds the same program
# anew. The first process makes the folder, its workers find it in the environment, nothing outlives the session.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="qjax-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# What these ask is which programs run on which arrays, to a tolerance: compiling is nearly all their time, and without
# most of XLA's optimizations it takes a third less. What optimizing makes of the bits is for the other folders to show.
QUICKLY_COMPILED = (
    "equivalence",
    "experiments",
    "kv",
    "models",
    "packaging",
    "trace",
    "transforms",
    "solvers/test_descent",
    "solvers/test_error_feedback",
    "solvers/test_incoherence",
)


def optimize(thoroughly: bool) -> None:
    """Sets how hard XLA tries. jit does not tell its programs apart by this, so those made without are forgotten."""
    if jax.config.read("jax_disable_most_optimizations") == thoroughly:
        jax.config.update("jax_disable_most_optimizations", not thoroughly)
        if thoroughly:
            jax.clear_caches()


def quickly_compiled(item: pytest.Item | None) -> bool:
    return item is not None and str(item.path).startswith(
        tuple(f"{Path(__file__).parent}/{at}" for at in QUICKLY_COMPILED)
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    optimize(thoroughly=not quickly_compiled(item))


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    if not quickly_compiled(nextitem):  # the next may be a docstring's example, which is set up without this file
        optimize(thoroughly=True)


# The folder kernels/ at the top refuses to be imported under that name, and transformers imports any package of that
# name which it finds. To every test it is not there.
sys.modules["kernels"] = None  # type: ignore[assignment]

try:
    import hypothesis
except ModuleNotFoundError:  # an environment of one oracle need not have it
    pass
else:
    # No deadline: the first example of a shape compiles. In CI the same examples are drawn every time.
    hypothesis.settings.register_profile("local", max_examples=20, deadline=None)
    hypothesis.settings.register_profile("ci", max_examples=20, deadline=None, derandomize=True, print_blob=True)
    hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")
