"""Greedy decoding by llama.cpp, for `experiments.benchmarks.decoding`, which starts this in an environment of its own.

    python peer_llama_cpp.py FILE.gguf THREADS,THREADS... STEPS SCRATCH TOKEN TOKEN ...

Loads the file and its weights again as Q4_0, embedding and head included (written to the folder SCRATCH), and says so
in a line of JSON. For every line it then reads it decodes STEPS tokens with each, on every number of threads, after the
prompt and answers with a line of JSON: [file, threads, seconds of all tokens but the first, tokens] of each. Needs
llama-cpp-python alone.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from typing import Any


def main() -> None:
    """Load, announce, and decode once for every line."""
    import llama_cpp

    quiet = llama_cpp.llama_log_callback(lambda *_: None)
    file, threads, steps, scratch, *prompt = sys.argv[1:]
    llama_cpp.llama_backend_init()
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    smaller = os.path.join(scratch, "q4_0.gguf")
    quantize(file, smaller)
    contexts = {"the file": load(file), "Q4_0": load(smaller)}
    system = llama_cpp.llama_print_system_info().decode()
    sizes = {"the file": os.path.getsize(file), "Q4_0": os.path.getsize(smaller)}
    print(json.dumps({"version": llama_cpp.__version__, "system": system, "sizes": sizes}), flush=True)
    for _ in sys.stdin:
        runs = [
            (name, count, *decode(context, count, [int(t) for t in prompt], int(steps)))
            for name, context in contexts.items()
            for count in map(int, threads.split(","))
        ]
        print(json.dumps(runs), flush=True)


def quantize(file: str, out: str) -> None:
    """All matrices of a GGUF file as Q4_0, in a new file."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    params.allow_requantize, params.pure = True, True
    if llama_cpp.llama_model_quantize(file.encode(), out.encode(), ctypes.byref(params)):
        raise SystemExit(f"llama.cpp could not quantize {file}")


def load(file: str) -> Any:
    """A context of 512 tokens."""
    import llama_cpp

    model = llama_cpp.llama_model_load_from_file(file.encode(), llama_cpp.llama_model_default_params())
    if not model:
        raise SystemExit(f"llama.cpp could not load {file}")
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = 512
    return llama_cpp.llama_init_from_model(model, params)


def decode(context: Any, threads: int, prompt: list[int], steps: int) -> tuple[float, list[int]]:
    """Seconds for all tokens but the first, which the prompt gives, and the tokens."""
    import llama_cpp

    llama_cpp.llama_set_n_threads(context, threads, threads)
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    sampler = llama_cpp.llama_sampler_init_greedy()
    found: list[int] = []
    start, tokens = 0.0, prompt
    for _ in range(steps):
        batch = (llama_cpp.llama_token * len(tokens))(*tokens)
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(batch, len(tokens))):
            raise SystemExit("llama.cpp could not decode")
        found.append(int(llama_cpp.llama_sampler_sample(sampler, context, -1)))
        tokens = found[-1:]
        start = start or time.perf_counter()
    seconds = time.perf_counter() - start
    llama_cpp.llama_sampler_free(sampler)
    return seconds, found


if __name__ == "__main__":
    main()
