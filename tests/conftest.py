"""Settings every test runs under: strict promotion, no silent rank broadcasting, eight devices, few drawn examples."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile

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

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

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
