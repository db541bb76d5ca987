"""GPTQ over the whole of SmolLM2-135M, side by side with llm-compressor's `oneshot` on the same weights and tokens.

    python -m experiments.benchmarks.gptq_model --peer .venv-llmcompressor/bin/python

Each side runs in a process of its own, one after the other, and reports wall time, peak resident memory and (ours)
where the time went: compilation, solving with the errors that the report wants, solving alone (one layer's matrices
again, times the layers), the operations executed and the share of this machine's GEMM rate, measured in the same
process. `make oracle` builds the peer's environment; without --peer only our side is printed.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
INPUTS = 4
"""Inputs of a layer that its matrices share: of q, k and v, of o, of gate and up, of down."""


def main() -> None:
    """Run both sides and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="python of an environment with llmcompressor")
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--batch", type=int, default=2, help="windows a batch, ours")
    parser.add_argument("--format", default="int4_g64")
    parser.add_argument("--data", default=None, help="text file; default: the built-in text")
    parser.add_argument("--side", choices=("ours",), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(ours(args)))
        return
    with tempfile.TemporaryDirectory() as folder:
        prepare(args, Path(folder))
        mine = child([sys.executable, "-m", "experiments.benchmarks.gptq_model", "--side", "ours", "--folder", folder,
                      "--batch", str(args.batch), "--format", args.format])  # fmt: skip
        tokens = args.windows * args.length
        print(f"GPTQ {args.format}, SmolLM2-135M, {args.windows} x {args.length} = {tokens} calibration tokens")
        show("qjax", mine)
        print(f"  compilation {mine['compile']:.1f} s in {mine['compilations']} programs (within the wall time)")
        print(f"  solving and errors {mine['solve']:.1f} s, of which solving alone {mine['alone']:.1f} s")
        rate = mine["tflop"] / (mine["wall"] - mine["compile"] - mine["solve"])
        print(f"  {mine['tflop']:.2f} TFLOP in forward passes and Gram matrices: {rate * 1000:.0f} GFLOP/s outside")
        share = 100 * rate * 1000 / mine["gemm"]
        print(f"  compilation and solving = {share:.0f} % of the GEMM rate {mine['gemm']:.0f} GFLOP/s")
        if args.peer:
            peer = child([args.peer, "-I", str(HERE / "peer_llmcompressor.py"), folder])
            show("llm-compressor oneshot", peer)
            print(f"ratio qjax / llm-compressor: wall {mine['wall'] / peer['wall']:.2f}, "
                  f"peak memory {mine['peak'] / peer['peak']:.2f}")  # fmt: skip


def show(name: str, result: dict[str, Any]) -> None:
    """One line a side."""
    print(f"{name}: {result['wall']:.1f} s, peak {result['peak']:.2f} GB ({result['versions']})")


def child(command: list[str]) -> dict[str, Any]:
    """Run one side; its last line of output is a JSON record."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def prepare(args: argparse.Namespace, folder: Path) -> None:
    """The same tokens and float weights for both sides, as plain files."""
    from safetensors.numpy import save_file

    import qjax
    from qjax import data

    model, params, tokenizer = qjax.models.load(None)
    text = data.load_text(args.data)
    ids = tokenizer.encode(data.split(text.text).calibration)
    np.save(folder / "tokens.npy", data.windows(ids, args.length, args.windows))
    arch = model.arch
    weights = {"model.embed_tokens.weight": params["embed"], "model.norm.weight": params["norm"]["scale"]}
    names = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
             "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}  # fmt: skip
    for i, layer in params["layers"].items():
        root = f"model.layers.{i}"
        weights[f"{root}.input_layernorm.weight"] = layer["attn_norm"]["scale"]
        weights[f"{root}.post_attention_layernorm.weight"] = layer["ffn_norm"]["scale"]
        for name, kernel in {**layer["attn"], **layer["ffn"]}.items():
            weights[f"{root}.{names[name]}.weight"] = np.asarray(kernel).T
    save_file({k: np.ascontiguousarray(v) for k, v in weights.items()}, folder / "model.safetensors")
    config = {
        "model_type": "llama", "vocab_size": arch.vocab, "hidden_size": arch.width, "num_hidden_layers": arch.layers,
        "num_attention_heads": arch.heads, "num_key_value_heads": arch.kv_heads, "head_dim": arch.head_dim,
        "intermediate_size": arch.ffn, "rms_norm_eps": arch.eps, "rope_theta": arch.theta,
        "tie_word_embeddings": arch.tied, "max_position_embeddings": 2048,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


def ours(args: argparse.Namespace) -> dict[str, Any]:
    """Our side, in its own process."""
    import jax
    import jax.monitoring
    import jax.numpy as jnp

    import qjax
    from experiments.benchmarks.timing import gemm_rate, seconds
    from qjax.solvers.gptq import factor, sweep

    model, params, _ = qjax.models.load(None)
    tokens = np.load(Path(args.folder) / "tokens.npy")
    batches = [jnp.asarray(tokens[i : i + args.batch]) for i in range(0, len(tokens), args.batch)]
    gemm = gemm_rate()
    compiled: list[float] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    (method,) = qjax.chain(qjax.gptq(args.format))
    solving: list[float] = []
    inputs: list[tuple[jax.Array, list[jax.Array]]] = []

    def timed(stage: Any, *rest: Any) -> Any:
        """One step of the method, without what it compiles."""
        if len(inputs) < INPUTS:
            gram = stage.statistics[stage.targets[0]]["gram"]
            inputs.append((gram, [jnp.asarray(stage.params[path]) for path in stage.targets]))
        start, before = time.perf_counter(), sum(compiled)
        done = jax.block_until_ready(method.step(stage, *rest))
        solving.append(time.perf_counter() - start - (sum(compiled) - before))
        return done

    start = time.perf_counter()
    qjax.run(method._replace(step=timed), model, params, batches)
    wall = time.perf_counter() - start
    result = {
        "wall": wall, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "compile": sum(compiled), "compilations": len(compiled), "solve": sum(solving),
        "tflop": operations(model.arch, *tokens.shape) / 1e12, "gemm": gemm, "versions": f"jax {jax.__version__}",
    }  # fmt: skip

    def solved() -> list[Any]:
        """One layer's matrices, each input's factor made once."""
        factors = [(factor(gram), weights) for gram, weights in inputs]
        return [sweep(w, factored, args.format) for factored, weights in factors for w in weights]

    # The first call compiles.
    return result | {"alone": model.arch.layers * min(seconds(solved) for _ in range(4))}


def operations(arch: Any, windows: int, length: int) -> float:
    """Multiplications and additions executed in forward passes and Gram matrices.

    One pass measures (up to the last matrix of a block, with the upper triangles of its Gram matrices) and, but for the
    last block, one sends the streams on.
    """
    from qjax.kv.attention import causal_parts
    from qjax.statistics.second_moments import halvings

    tokens = windows * length
    query, key = arch.heads * arch.head_dim, arch.kv_heads * arch.head_dim
    down = 2 * tokens * arch.ffn * arch.width
    attention = 4 * windows * query * sum((stop - start) * slots for start, stop, slots in causal_parts(length))
    forward = 2 * tokens * arch.width * (2 * query + 2 * key + 2 * arch.ffn) + down + attention
    widths = (arch.width, query, arch.width, arch.ffn)
    gram = sum(2 * tokens * k * k * (1 + 2 ** -halvings(k)) / 2 for k in widths)
    return arch.layers * (forward - down + gram) + (arch.layers - 1) * forward


if __name__ == "__main__":
    main()
