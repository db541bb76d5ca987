"""Settings every test runs under: strict promotion, no silent rank broadcasting, eight host devices."""

from __future__ import annotations

import os

# Before the first import of jax: the device count is read once, at start-up.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
