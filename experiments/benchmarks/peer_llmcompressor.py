"""The peer's side of `gptq_model`: llm-compressor's `oneshot` on weights and tokens from a folder. Needs no qjax.

python peer_llmcompressor.py FOLDER        (called by the benchmark)
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import llmcompressor
import numpy as np
import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

folder = Path(sys.argv[1])
tokens = np.load(folder / "tokens.npy")
model = LlamaForCausalLM(LlamaConfig(**json.loads((folder / "config.json").read_text()))).float().eval()
missing, unexpected = model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
assert not unexpected, unexpected
assert set(missing) <= {"lm_head.weight"}, missing
model.tie_weights()
model.config._name_or_path = str(folder)  # oneshot reads the configuration again from there
rows = [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in tokens]
scheme = QuantizationScheme(
    targets=["Linear"],
    weights=QuantizationArgs(num_bits=4, type="int", symmetric=True, strategy="group", group_size=64),
)
recipe = GPTQModifier(config_groups={"group_0": scheme}, ignore=["lm_head"])
# The rows are tokenized already; oneshot asks for a tokenizer all the same.
unused = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"-": 0}, unk_token="-")), pad_token="-")
start = time.perf_counter()
oneshot(
    model=model,
    tokenizer=unused,
    dataset=Dataset.from_list(rows),
    recipe=recipe,
    max_seq_length=tokens.shape[1],
    num_calibration_samples=len(rows),
)
wall = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
versions = f"llmcompressor {llmcompressor.__version__}, torch {torch.__version__}"
print(json.dumps({"wall": wall, "peak": peak, "versions": versions}))
