"""Everything that decides a run's numbers, as data; its hash names the run's folder."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import jax
import numpy as np

from qjax.trace.paths import leaves_with_paths

PACKAGES = ("jax", "jaxlib", "numpy", "ml_dtypes", "scipy", "gguf", "tokenizers", "safetensors", "ml_collections")
ROOT = Path(__file__).resolve().parent.parent


def collect(config: dict[str, Any], text_name: str, text_sha256: str, params: Any, protocol: str) -> dict[str, Any]:
    """Config seeds, data and model hashes, versions, source and device of a run; deterministic for one machine."""
    device = jax.devices()[0]
    return {
        "study": config["study"],
        "seed": config["seed"],
        "replicates": config["replicates"],
        "data": {"name": text_name, "sha256": text_sha256},
        "model": {"name": config["model"] or "SmolLM2-135M-Instruct", "sha256": tree_sha256(params)},
        "protocol": protocol,
        "source_sha256": source_sha256(),
        "versions": {"python": platform.python_version(), **versions()},
        "device": {"platform": device.platform, "kind": device.device_kind, "count": jax.device_count()},
        "machine": {"system": platform.system(), "processor": platform.machine()},
    }


def versions() -> dict[str, str]:
    """Installed versions of the packages a number can depend on."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def source_sha256() -> str:
    """Hash of every Python file of qjax and of the study runner, so that numbers of different code are never mixed.

    FileNotFoundError where the source tree is gone.
    """
    if not (ROOT / "qjax").is_dir():
        raise FileNotFoundError(f"no source under {ROOT} to say what made these numbers")
    h = hashlib.sha256()
    for folder in ("qjax", "kernels", "experiments"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if folder == "experiments" and path.parent != ROOT / folder:
                continue  # pages and benchmarks change no number
            h.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return h.hexdigest()


def tree_sha256(tree: Any) -> str:
    """Hash of every leaf's path, dtype, shape and bytes."""
    h = hashlib.sha256()
    for path, leaf in leaves_with_paths(tree).items():
        array = np.ascontiguousarray(leaf)
        h.update(f"{path} {array.dtype} {array.shape}".encode())
        h.update(array.reshape(-1).view(np.uint8).data)
    return h.hexdigest()
